"""Starts a process in a session of its own, without a living parent or an ear for signals, and waits at a gate: if told to."""

import os
import signal
from pathlib import Path


def handler(job):
    given = job["input"]
    if given.get("grandchild"):
        print("grandchild", leave_a_grandchild(), flush=True)
    if "gate" in given:
        print("at the gate", flush=True)
        Path(given["gate"]).read_text()
    return {"n": given["n"]}


def leave_a_grandchild():
    readable, writable = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(signum, signal.SIG_IGN)
            os.write(writable, b"%d" % os.getpid())
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)
    return int(os.read(readable, 20))
