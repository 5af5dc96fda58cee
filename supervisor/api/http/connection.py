"""An HTTP connection: uvicorn's protocol with limits on unfinished requests; in the supervisor's loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from supervisor.protocol.answers import Error
from supervisor.protocol.responses import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from supervisor.api.http.connection_limit import ConnectionLimiter

MAX_HEAD = 64 * 1024
"""Maximum bytes of a request's line and headers, and of a chunked body's trailers: the parser has no limit."""

CHUNK_FRAMING = 16
"""The framing of a chunked body may be so many times its size, plus ``MAX_HEAD``: a chunk of one byte needs five more."""

STEP = 8 * 1024
"""Bytes parsed at once: what the parser does not report, such as spaces, is counted in whole steps."""

MAX_PIPELINED = 2500
"""Maximum number of pipelined requests that wait on a connection: each costs kilobytes here, and 25 bytes to send."""

SILENCE_S = 60.0
"""Seconds a client may be silent in the middle of its request, or before its first."""

SLOWEST = 4096
"""Minimum average rate (bytes a second) of a request that takes longer than ``SILENCE_S``, from then on."""

KEEP_ALIVE_S = 75
"""Seconds an idle connection stays open: longer than clients' polling intervals."""

_OFFER = (b"upgrade", b"http2-settings")
"""Headers of a client's offer to upgrade the protocol (RFC 9110, section 7.8; RFC 7540, section 3.2)."""

_DECISIVE = (b"host", b"origin")
"""Headers that authorize a request when there are no keys."""

_HEAD_OVERHEAD = len(b"GET  HTTP/1.1\r\n" + b"\r\n")
_FIELD_OVERHEAD = len(b": \r\n")


class _RefusedError(Exception):
    """The request is valid HTTP to the parser, but rejected here."""


class _Parser(httptools.HttpRequestParser):
    """Declines protocol upgrades and goes on: httptools alone would treat all bytes after the headers, even a body of announced
    length, as the other protocol's."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._connection = connection
        # As in uvicorn, to answer pipelined requests; httptools has it from 0.6.3 on.
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
    """A client's connection. ``on_lost`` is called when it is closed."""

    def __init__(
        self, config: Config, state: ServerState, limiter: ConnectionLimiter, on_lost: Callable[[], None]
    ) -> None:
        """Serve ``config``'s application, if ``limiter`` has room for it."""
        super().__init__(config=config, server_state=state, app_state={})
        self.parser = _Parser(self)
        self.offered = False
        self._limiter = limiter
        self._on_lost = on_lost
        self._requests = 0
        self._in_head = False
        self._in_body = False
        self._field_bytes = 0
        self._framing_bytes = 0
        self._body_bytes = 0
        self._request_bytes = 0
        self._started_at = 0.0
        self._received_at = 0.0
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
        """Admit the client, or answer 503."""
        super().connection_made(transport)
        self._received_at = self.loop.time()
        if not self._limiter.admit(self, cast("set[Connection]", self.connections)):
            self._refuse(b"503 Service Unavailable", "too many clients are connected", {b"retry-after": b"5"})
            return
        self._silence = self.loop.call_later(SILENCE_S, self._check_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the client."""
        super().connection_lost(exc)
        if self._silence is not None:
            self._silence.cancel()
        self._limiter.left(self)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse some bytes of one or more requests."""
        self._received_at = self.loop.time()
        for at in range(0, len(data), STEP):
            if self.transport.is_closing():
                return
            self._parse(data[at : at + STEP])

    def _parse(self, data: bytes) -> None:
        number, in_body, body = self._requests, self._in_body, self._body_bytes
        super().data_received(data)
        self._request_bytes += len(data)
        if number != self._requests or in_body != self._in_body or not self.reading:
            return  # something ended here, and the parser does not report how far into ``data``
        self._framing_bytes += len(data) - (self._body_bytes - body)
        if self._framing_bytes > MAX_HEAD + CHUNK_FRAMING * self._body_bytes:
            self._refuse_size()

    def on_message_begin(self) -> None:
        """Start counting for a new request."""
        super().on_message_begin()
        self._requests += 1
        self._in_head = True
        self._field_bytes = _HEAD_OVERHEAD
        self._framing_bytes = self._body_bytes = self._request_bytes = 0
        self._started_at = self._received_at

    def on_url(self, url: bytes) -> None:
        """Count some bytes of the request's line."""
        self._field_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Accept a header; drop a trailer, as it comes too late to change what the request means (RFC 9110, section 6.5.1).

        Raises:
            _RefusedError: the headers exceed ``MAX_HEAD``.
        """
        self._field_bytes += len(name) + len(value) + _FIELD_OVERHEAD
        if self._field_bytes > MAX_HEAD:
            self._refuse_size()
            raise _RefusedError
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the headers and start the body."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self.offered = True  # no application may see the request before the offer is declined
            return
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._field_bytes = self._framing_bytes = 0

    def _check_head(self) -> None:
        """Reject what the parser lets pass: duplicates of an authorizing header, which servers read differently.

        Raises:
            _RefusedError: the parser turns it into an error of its own.
        """
        decisive = [name for name, _ in self.headers if name in _DECISIVE]
        if len(decisive) > len(set(decisive)):
            raise _RefusedError
        if b"host" not in decisive and self.parser.get_http_version() != "1.0":  # RFC 9112, section 3.2
            raise _RefusedError
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _RefusedError

    def on_body(self, body: bytes) -> None:
        """Count some bytes of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Finish a request."""
        if self.offered:
            return
        super().on_message_complete()
        self._in_body = False
        if not self.parser.should_keep_alive():
            self.cycle.keep_alive = False  # maybe by a trailer: the parser has obeyed it, and reads no further
            if self.cycle.response_complete:
                self.transport.close()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # It was answered before it was complete, and later data has stopped uvicorn's idle timer.
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

    def decline(self) -> _Parser:
        """Ignore the request's offer of another protocol, as any server may; return a parser for the bytes after its headers.

        Java's client, for one, makes that offer with every request.
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
        """True while a request is incomplete."""
        return self._in_head or self._in_body

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP with the JSON error of all other responses."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse_size(self) -> None:
        if self._in_body:
            self.send_400_response("the body has too much chunk framing (sizes, extensions, trailers)")
        else:
            self._refuse(b"431 Request Header Fields Too Large", f"the headers are larger than {MAX_HEAD} bytes")

    def _refuse(self, status: bytes, message: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        """Close the connection, after an error response unless that could be taken for an earlier request's."""
        if self.transport.is_closing():
            return
        if self._is_next_to_answer:
            body = encode(Error(message))
            fields = {
                **dict(self.server_state.default_headers),
                b"content-type": b"application/json",
                b"content-length": b"%d" % len(body),
                **(headers or {}),
                b"connection": b"close",
            }
            head = b"".join(b"%b: %b\r\n" % field for field in fields.items())
            self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, head, body))
        self.transport.close()

    @property
    def _is_next_to_answer(self) -> bool:
        """True if the request being read is the next to answer, and no part of its response was sent."""
        if self._in_body:
            return not self.pipeline and not self.cycle.response_started
        return self.cycle is None or self.cycle.response_complete

    @property
    def _answering(self) -> bool:
        """True while a complete request waits for its response."""
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def idle_since(self) -> float | None:
        """Return when the client last sent something; None while it waits for a response."""
        return None if self._answering else self._received_at

    def drop(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _is_slow(self) -> bool:
        """Return whether the client sends so slowly that it seems to hold the connection on purpose."""
        over = self.loop.time() - self._started_at - SILENCE_S
        return self.reading and self._request_bytes < over * SLOWEST

    def _check_silence(self) -> None:
        """Close the connection if it has waited for the client for too long; one that waits for a job may stay."""
        idle = self.loop.time() - self._received_at
        unfinished = self.reading or self.timeout_keep_alive_task is None
        if unfinished and not self._answering and (idle >= SILENCE_S or self._is_slow()):
            self.transport.close()
            return
        left = SILENCE_S - idle if unfinished and idle < SILENCE_S else SILENCE_S
        self._silence = self.loop.call_later(left, self._check_silence)
