"""Finds the worker's own pipe to the supervisor, for those who write into it past the worker."""

import os
import socket
import struct
from pathlib import Path


def pipe_to_the_supervisor():
    for link in Path("/proc/self/fd").iterdir():
        if link.is_socket():
            with socket.socket(fileno=os.dup(int(link.name))) as sock:
                maker, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if maker != os.getpid():  # the event loop's own pair was made here
                return int(link.name)
    raise AssertionError("no pipe")
