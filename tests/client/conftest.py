"""A server that answers what it is told, over TCP and over a Unix socket."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import os
import queue
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Answers:
    """What the server says, and what it heard."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"{}"
        self.raw: bytes | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.heard: queue.Queue[tuple[str, str, dict[str, str], bytes]] = queue.Queue()


class _Tcp(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _handler(answers: Answers) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def address_string(self) -> str:
            return "a client"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            assert len(self.headers) == len({name.lower() for name in self.headers}), "a name stands twice"
            answers.heard.put((self.command, self.path, dict(self.headers), body))
            answers.hold.wait(20)
            if answers.raw is not None:
                self.wfile.write(answers.raw)
                return
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(answers.body)))
            with contextlib.suppress(ConnectionError):  # whoever asked has given up
                self.end_headers()
                self.wfile.write(answers.body)

        def do_POST(self) -> None:
            self.do_GET()

    return Handler


@pytest.fixture
def answers() -> Iterator[Answers]:
    found = Answers()
    yield found
    found.hold.set()


@pytest.fixture
def own_host() -> str:
    """A loopback address of this process alone: nobody else takes a port that a test has left."""
    return str(ipaddress.IPv4Address(0x7F01_0000 + os.getpid()))


def _serve(server: socketserver.BaseServer) -> Iterator[socketserver.BaseServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(20)


@pytest.fixture
def tcp(answers: Answers) -> Iterator[str]:
    for server in _serve(_Tcp(("127.0.0.1", 0), _handler(answers))):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def unix(answers: Answers, tmp_path: Path) -> Iterator[str]:
    for _ in _serve(_Unix(str(tmp_path / "s.sock"), _handler(answers))):
        yield f"unix://{tmp_path}/s.sock"
