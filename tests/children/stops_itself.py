"""Is stopped by SIGSTOP, so that no signal but SIGKILL (or SIGCONT) does anything."""

import os
import signal

print("stopped", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
