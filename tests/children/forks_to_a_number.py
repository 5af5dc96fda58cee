"""Becomes NUMBER processes as fast as it can, each of which forks on; with SESSIONS every one leaves its session. Then all wait.

With DEAD each but the first ends at once, one after another, and is left a zombie. It stops by itself at that number, so a test
of a limit that fails cannot take the machine.
"""

import json
import os
import signal
from multiprocessing.connection import Connection

connection = Connection(start.conn_fd)  # noqa: F821 - put here by template_stand_in.py
number = int(os.environ["NUMBER"])
tokens, givers = os.pipe2(os.O_NONBLOCK)
os.write(givers, bytes(number - 1))
newborn, born = os.pipe()
worker = os.getpid()

while True:
    try:
        os.read(tokens, 1)
    except BlockingIOError:
        break
    child = os.fork()
    if child == 0:
        os.write(born, b"1")
        if os.environ.get("DEAD"):
            os._exit(0)
        if os.environ.get("SESSIONS"):
            os.setsid()
    elif os.environ.get("DEAD"):
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
if os.getpid() == worker:
    seen = 0
    while seen < number - 1:
        seen += len(os.read(newborn, number))
    connection.send_bytes(json.dumps("done").encode())
    connection.recv_bytes()
    os._exit(0)
while True:
    signal.pause()
