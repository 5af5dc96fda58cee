"""Starts a process that has a session of its own, no living parent and no ear for signals; says its pid, then waits.

With STOPPED set the grandchild is stopped as well; with SAME_SESSION it stays in the session of the worker.
"""

import json
import os
import signal
from multiprocessing.connection import Connection

connection = Connection(start.conn_fd)  # noqa: F821 - put here by template_stand_in.py
readable, writable = os.pipe()

middle = os.fork()
if middle == 0:
    if os.environ.get("SAME_SESSION") is None:
        os.setsid()
    if os.fork() == 0:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        os.write(writable, b"%d" % os.getpid())
        if os.environ.get("STOPPED"):
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            signal.pause()
    os._exit(0)
os.waitpid(middle, 0)
connection.send_bytes(json.dumps({"grandchild": int(os.read(readable, 20))}).encode())
connection.recv_bytes()
