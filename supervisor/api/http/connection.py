"""One HTTP connection: uvicorn's protocol with limits on what a client may leave unfinished; in the supervisor's loop."""

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
"""Most bytes of a request's line and headers, and of a chunked body's trailers: the parser has no limit."""

CHUNK_FRAMING = 16
"""A chunked body may have that many times its own size beside itself, and ``MAX_HEAD``: a chunk of one byte needs five more."""

STEP = 8 * 1024
"""How many bytes are parsed at once: what the parser does not tell of, such as spaces, is counted in whole steps."""

MAX_PIPELINED = 2500
"""Most requests that may wait on one connection for the answer to the one before: each costs kilobytes, and 25 bytes to send."""

SILENCE_S = 60.0
"""How long a client may be silent in the middle of its request, or before its first."""

SLOWEST = 4096
"""Bytes a second that a request which takes longer than that must have come with, on average, from then on."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients poll."""

_OFFER = (b"upgrade", b"http2-settings")
"""What a client's offer to speak another protocol consists of (RFC 9110, section 7.8; RFC 7540, section 3.2)."""

_DECISIVE = (b"host", b"origin")
"""By these is decided, without keys, who may ask."""

_AROUND_FIELDS = len(b"GET  HTTP/1.1\r\n" + b"\r\n")
_AROUND_FIELD = len(b": \r\n")


class _RefusedError(Exception):
    """The request is HTTP as far as the parser can tell, and is not answered all the same."""


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
        self._beside_bytes = 0
        self._body_bytes = 0
        self._request_bytes = 0
        self._begun_at = 0.0
        self._heard_at = 0.0
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
        """The client is here."""
        super().connection_made(transport)
        self._heard_at = self.loop.time()
        if not self._limiter.admit(self, cast("set[Connection]", self.connections)):
            self._refuse(b"503 Service Unavailable", "too many clients are connected", {b"retry-after": b"5"})
            return
        self._silence = self.loop.call_later(SILENCE_S, self._check_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        super().connection_lost(exc)
        if self._silence is not None:
            self._silence.cancel()
        self._limiter.left(self)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        self._heard_at = self.loop.time()
        for at in range(0, len(data), STEP):
            if self.transport.is_closing():
                return
            self._parse(data[at : at + STEP])

    def _parse(self, data: bytes) -> None:
        number, in_body, body = self._requests, self._in_body, self._body_bytes
        super().data_received(data)
        self._request_bytes += len(data)
        if number != self._requests or in_body != self._in_body or not self.reading:
            return  # something ended here, and the parser does not say how far into ``data``
        self._beside_bytes += len(data) - (self._body_bytes - body)
        if self._beside_bytes > MAX_HEAD + CHUNK_FRAMING * self._body_bytes:
            self._refuse_size()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._requests += 1
        self._in_head = True
        self._field_bytes = _AROUND_FIELDS
        self._beside_bytes = self._body_bytes = self._request_bytes = 0
        self._begun_at = self._heard_at

    def on_url(self, url: bytes) -> None:
        """Some bytes of the request's line."""
        self._field_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer. Those are dropped: what a request means is decided before its body (RFC 9110, section 6.5.1).

        Raises:
            _RefusedError: with this one there are too many, or it is too long.
        """
        self._field_bytes += len(name) + len(value) + _AROUND_FIELD
        if self._field_bytes > MAX_HEAD:
            self._refuse_size()
            raise _RefusedError
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The empty line behind the headers."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self.offered = True  # nobody is to act on it before it was declined
            return
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._field_bytes = self._beside_bytes = 0

    def _check_head(self) -> None:
        """Refuse what the parser lets pass: two headers of one name that decides are read differently by different servers.

        Raises:
            _RefusedError: which the parser makes an error of its own.
        """
        decisive = [name for name, _ in self.headers if name in _DECISIVE]
        if len(decisive) > len(set(decisive)):
            raise _RefusedError
        if b"host" not in decisive and self.parser.get_http_version() != "1.0":  # RFC 9112, section 3.2
            raise _RefusedError
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _RefusedError

    def on_body(self, body: bytes) -> None:
        """Some bytes of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self.offered:
            return
        super().on_message_complete()
        self._in_body = False
        if not self.parser.should_keep_alive():
            self.cycle.keep_alive = False  # by a trailer, maybe: the parser has obeyed it, and reads no further
            if self.cycle.response_complete:
                self.transport.close()
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
        return self._in_head or self._in_body

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all other errors."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse_size(self) -> None:
        if self._in_body:
            self.send_400_response("the body has too much beside itself: sizes of chunks, extensions, trailers")
        else:
            self._refuse(b"431 Request Header Fields Too Large", f"the headers are larger than {MAX_HEAD} bytes")

    def _refuse(self, status: bytes, message: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        """Close the connection, and say why unless that could be taken for something else."""
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
        """Whether the request that is being read has no answer yet, not even a part of one, and no other waits before it."""
        if self._in_body:
            return not self.pipeline and not self.cycle.response_started
        return self.cycle is None or self.cycle.response_complete

    @property
    def _answering(self) -> bool:
        """Whether a whole request waits for its answer."""
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def waits_since(self) -> float | None:
        """Since when the client is waited for; ``None`` while it waits for an answer."""
        return None if self._answering else self._heard_at

    def drop(self) -> None:
        """Close it, whatever the client is about."""
        self.transport.abort()

    def _is_slow(self) -> bool:
        """Whether the client sends so little at a time that it seems to be about the connection."""
        over = self.loop.time() - self._begun_at - SILENCE_S
        return self.reading and self._request_bytes < over * SLOWEST

    def _check_silence(self) -> None:
        """Close a connection that waits for the client, and has for too long; one that waits for a job may wait."""
        idle = self.loop.time() - self._heard_at
        unfinished = self.reading or self.timeout_keep_alive_task is None
        if unfinished and not self._answering and (idle >= SILENCE_S or self._is_slow()):
            self.transport.close()
            return
        left = SILENCE_S - idle if unfinished and idle < SILENCE_S else SILENCE_S
        self._silence = self.loop.call_later(left, self._check_silence)
