"""Is killed by SIGKILL, as by the kernel when memory runs out."""

import os
import signal

print("allocating")
os.kill(os.getpid(), signal.SIGKILL)
