"""Prints through C's stdio and is killed by a segmentation fault before anybody flushes."""

import ctypes
import os
import signal

ctypes.CDLL(None).printf(b"last words of C\n")
os.kill(os.getpid(), signal.SIGSEGV)
