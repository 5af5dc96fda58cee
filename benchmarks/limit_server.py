"""The limit: what any server that keeps the handler in another process could at best do.

Raw ASGI on uvicorn, one forked worker behind a socket pair, the next job sent when the last one's result is in. No queue limits,
no store, no supervision, nothing checked. ``uvicorn limit_server:app``
"""

import asyncio
import os
import socket
import struct
from collections import deque

import msgspec

from handlers import noop

HEAD = struct.Struct("!I")
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def serve(sock):
    buffer = b""
    while True:
        got = sock.recv(65536)
        if not got:
            os._exit(0)
        buffer += got
        out, at = [], 0
        while len(buffer) - at >= 4 and len(buffer) - at - 4 >= HEAD.unpack_from(buffer, at)[0]:
            size = HEAD.unpack_from(buffer, at)[0]
            result = encode(noop(decode(buffer[at + 4 : at + 4 + size])))
            out.append(HEAD.pack(len(result)) + result)
            at += 4 + size
        buffer = buffer[at:]
        sock.sendall(b"".join(out))


class Worker:
    def __init__(self, waiting):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            serve(theirs)
        theirs.close()
        ours.setblocking(False)
        self.sock, self.waiting, self.flight, self.buffer = ours, waiting, None, b""

    def feed(self):
        if self.waiting and self.flight is None:
            body, self.flight = self.waiting.popleft()
            self.sock.send(HEAD.pack(len(body)) + body)

    def on_read(self):
        buffer = self.buffer + self.sock.recv(65536)
        size = HEAD.unpack_from(buffer)[0] if len(buffer) >= 4 else None
        if size is None or len(buffer) - 4 < size:
            self.buffer = buffer
            return
        self.flight.set_result(buffer[4 : 4 + size])
        self.buffer, self.flight = buffer[4 + size :], None
        self.feed()


waiting, workers = deque(), []


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    loop = asyncio.get_running_loop()
    if not workers:
        workers.append(Worker(waiting))
        loop.add_reader(workers[0].sock.fileno(), workers[0].on_read)
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    future = loop.create_future()
    waiting.append((encode({"id": "x", "input": decode(body)["input"]}), future))
    workers[0].feed()
    out = b'{"id":"x","status":"COMPLETED","output":' + await future + b"}"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(out))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": out})
