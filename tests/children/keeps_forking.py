"""Starts runners in sessions of their own that fork a successor and end, for ever: whoever lists them sees the one before."""

import json
import os
from multiprocessing.connection import Connection

connection = Connection(start.conn_fd)  # noqa: F821 - put here by template_stand_in.py

for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
connection.send_bytes(json.dumps("running").encode())
connection.recv_bytes()
