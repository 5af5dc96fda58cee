"""Takes the webhooks of a run, in threads of the chaos program; answers some of them 500, late, or not at all."""

from __future__ import annotations

import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.chaos.journal import Journal, Post, short


class Receiver:
    """Listens on a port of its own; a webhook's URL is ``url(ticket)``."""

    def __init__(self, journal: Journal) -> None:
        tries: dict[str, int] = {}
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # its supervisor was killed meanwhile
                webhook_id = self.headers["webhook-id"] or ""
                with lock:
                    number = tries[webhook_id] = tries.get(webhook_id, 0) + 1
                code = whim(webhook_id, number)
                post = Post(self.path.strip("/"), time.monotonic(), webhook_id, short(body), code)
                if code:
                    self.send_response(code)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                journal.posts.append(post)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A supervisor that is killed breaks its connections."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True).start()

    def url(self, ticket: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{ticket}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def whim(webhook_id: str, number: int) -> int:
    """How the try of that number is answered: 200, 500, 302, or 0: not at all. Not every webhook is taken in the end."""
    fate = zlib.crc32(f"{webhook_id}/{number}".encode()) % 100
    return 0 if fate < 5 else 500 if fate < 25 else 302 if fate < 28 else 200
