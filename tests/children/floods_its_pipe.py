"""Writes messages into its own pipe to the supervisor: ``count`` times (0: for ever) the one that the input has, whose ``index``
counts on. Not by the channel of the worker, which would hold back."""

import itertools
import runpy
import socket
import struct
from pathlib import Path

import msgspec

given = job["input"]  # noqa: F821 - put here by runs_a_child.py
find = runpy.run_path(str(Path(__file__).with_name("finds_its_pipe.py")))["pipe_to_the_supervisor"]
message = {"job": job["id"], **given["message"]}  # noqa: F821 - as above
if isinstance(message.get("value"), str):
    message["value"] = message["value"].encode()

with socket.socket(fileno=find()) as pipe:
    for number in range(given["count"]) if given["count"] else itertools.count():
        if "index" in message:
            message["index"] = number
        frame = msgspec.msgpack.encode(message)
        pipe.sendall(struct.pack("!i", len(frame)) + frame)
    pipe.detach()
result = "all written"
