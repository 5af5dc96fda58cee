"""One HTTP connection: uvicorn's protocol with limits on what a client may leave unfinished; in the supervisor's loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

MAX_HEAD = 64 * 1024
"""Most bytes of a request's line and headers: the parser itself has no limit."""

SILENCE_S = 60.0
"""How long a client may be silent in the middle of its request, or before its first."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients poll."""


class Connection(HttpToolsProtocol):
    """A client's connection. ``on_lost`` is called when it is gone."""

    def __init__(self, config: Config, state: ServerState, on_lost: Callable[[], None]) -> None:
        """Serve ``config``'s application."""
        super().__init__(config=config, server_state=state, app_state={})
        self._on_lost = on_lost
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._heard_at = 0.0
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
        """The client is here."""
        super().connection_made(transport)
        self._heard_at = self.loop.time()
        self._silence = self.loop.call_later(SILENCE_S, self._check_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        super().connection_lost(exc)
        if self._silence is not None:
            self._silence.cancel()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        self._heard_at = self.loop.time()
        in_head = self._in_head
        super().data_received(data)
        if in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse(b"431 Request Header Fields Too Large", f"the headers are larger than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """The empty line behind the headers."""
        self._in_head = False
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        self._in_body = False
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # It was answered before it was whole, and what came since has stopped uvicorn's idle timer.
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

    @property
    def reading(self) -> bool:
        """Whether a request has begun and is not whole."""
        return self._in_head or self._in_body

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all other errors."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse(self, status: bytes, message: str) -> None:
        body = msgspec.json.encode({"error": message})
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self.transport.close()

    def _check_silence(self) -> None:
        """Close a connection that waits for the client, and has for too long; one that waits for a job may wait."""
        idle = self.loop.time() - self._heard_at
        unfinished = self.cycle is None or self.reading
        answering = bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )
        if unfinished and not answering and idle >= SILENCE_S:
            self.transport.close()
            return
        left = SILENCE_S - idle if unfinished and idle < SILENCE_S else SILENCE_S
        self._silence = self.loop.call_later(left, self._check_silence)
