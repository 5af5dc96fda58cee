"""Blocks for ever and has no ear for SIGTERM, nor for SIGINT."""

import signal

for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, signal.SIG_IGN)
print("not to be stopped", flush=True)
while True:
    signal.pause()
