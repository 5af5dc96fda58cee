"""One HTTP connection: uvicorn's protocol with limits on what a client may leave unfinished; in the supervisor's loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httptools
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

_OFFER = (b"upgrade", b"http2-settings")
"""What a client's offer to speak another protocol consists of (RFC 9110, section 7.8; RFC 7540, section 3.2)."""


class _Parser(httptools.HttpRequestParser):
    """Has ``connection`` decline offers of other protocols, and goes on: by itself httptools takes all that is behind the
    headers, a body of announced length too, for that protocol's."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._connection = connection
        # As uvicorn does, to answer pipelined requests; httptools has it from 0.6.3 on.
        with contextlib.suppress(AttributeError):
            self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: Any) -> None:
        parser = self
        while True:
            try:
                return super(_Parser, parser).feed_data(data)
            except httptools.HttpParserUpgrade as offer:  # noqa: PERF203 - mostly there is none
                if not self._connection.offered:
                    raise
                data = memoryview(data)[offer.args[0] :]
                parser = self._connection.decline()


class Connection(HttpToolsProtocol):
    """A client's connection. ``on_lost`` is called when it is gone."""

    def __init__(self, config: Config, state: ServerState, on_lost: Callable[[], None]) -> None:
        """Serve ``config``'s application."""
        super().__init__(config=config, server_state=state, app_state={})
        self.parser = _Parser(self)
        self.offered = False
        self._on_lost = on_lost
        self._head = 0
        self._heads = 0
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
        head = self._head
        super().data_received(data)
        if head and head == self._head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse(b"431 Request Header Fields Too Large", f"the headers are larger than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._heads += 1
        self._head = self._heads
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """The empty line behind the headers."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self.offered = True  # nobody is to act on it before it was declined
            return
        self._head = 0
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self.offered:
            return
        super().on_message_complete()
        self._in_body = False
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # It was answered before it was whole, and what came since has stopped uvicorn's idle timer.
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

    def decline(self) -> _Parser:
        """Go on as if the request had not offered another protocol, as any server may: the parser for what is behind its headers.

        Java's client, for one, makes that offer with whatever it sends.
        """
        self.offered = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [word for word in value.split(b",") if word.strip().lower() not in _OFFER]
                head.append(b"connection: %b" % b",".join(kept))
            elif name not in _OFFER:
                head.append(b"%b: %b" % (name, value))
        self.parser = parser = _Parser(self)
        parser.feed_data(b"\r\n".join((*head, b"", b"")))
        return parser

    @property
    def reading(self) -> bool:
        """Whether a request has begun and is not whole."""
        return self._head > 0 or self._in_body

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
