"""A request as operations see it, and their reply; in the supervisor.

Reads the body, once and never beyond the limit, and bounds how long a request may wait for a job.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from supervisor.errors import RequestError
from supervisor.protocol.requests import job_request

if TYPE_CHECKING:
    from supervisor.api.app import App
    from supervisor.job import JobRequest

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DIGITS = 15  # more than any limit has; Python rejects thousands of them

T = TypeVar("T")


class Reply(msgspec.Struct, frozen=True):
    """A response. ``headers`` are its own, with names in lower case; ``App`` adds the common ones.

    ``sent``, if any, is called once with whether the client was still connected for all of it.

    ``parts`` replaces ``body`` for a streamed response: each part is sent as it comes, and the next is requested when the client
    keeps up. The generator is closed when the client disconnects or the server stops. An event stream then ends properly, after
    a whole part; any other response is cut off, as is one whose parts raise.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[bytes, bytes] = {}
    sent: Callable[[bool], None] | None = None
    content_type: bytes = JSON
    parts: AsyncGenerator[bytes, None] | None = None


class ClientDisconnected(Exception):  # noqa: N818 - it is no error
    """The client disconnected before its request was complete."""


class Call:
    """A request. ``param`` is the value of the route's path parameter; names in ``headers`` are in lower case."""

    __slots__ = (
        "_body_read",
        "_disconnection",
        "_receive",
        "_waits",
        "app",
        "engine",
        "headers",
        "method",
        "param",
        "query",
    )

    def __init__(self, app: App, scope: Scope, receive: Receive) -> None:
        self.app = app
        self.engine = app.engine
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.query: bytes = scope["query_string"]
        self.param = ""
        self._receive = receive
        self._waits = app.waits
        self._disconnection: asyncio.Task[None] | None = None
        self._body_read = False

    async def job_request(self) -> JobRequest:
        """Parse the body as a job request.

        Raises:
            RequestError: 400 or 413.
            ClientDisconnected: the client disconnected before its body was complete.
        """
        return job_request(await self.body(), self.headers.get(b"idempotency-key"))

    async def body(self) -> bytes:
        """Read the whole body.

        Raises:
            RequestError: 413, it is longer than ``--max-body``.
            ClientDisconnected: the client disconnected before it was complete.
        """
        limit = self.engine.settings.max_body
        announced = self.announced()
        if announced is not None and announced > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            part: bytes = message["body"]
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if not message["more_body"]:
                self._body_read = True
                return part if not parts else b"".join((*parts, part))
            parts.append(part)

    def field(self, name: str) -> str | None:
        """Return the (last) query parameter ``name``, or None."""
        if not self.query:
            return None
        return dict(parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)).get(name)

    def wait_s(self, default_ms: int, low_ms: int, high_ms: int) -> float:
        """Return the query parameter ``wait`` (milliseconds) in seconds, clamped.

        Raises:
            RequestError: 400, it is no integer.
        """
        text = self.field("wait")
        if text is None:
            return default_ms / 1000
        return clamped("wait", text, low_ms, high_ms, "milliseconds as an integer") / 1000

    async def wait(self, awaitable: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of ``awaitable``, or None if the server stops first."""
        return await self._waits.wait(awaitable)

    async def wait_while_connected(self, awaitable: Coroutine[Any, Any, T], too_late: Callable[[T], None]) -> T | None:
        """Return the result of ``awaitable``, or None if the client disconnects or the server stops first.

        Then ``too_late`` gets the result: ``awaitable`` is not cancelled, because it may be handing something over already.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            await self._waits.wait(_first(task, self.disconnection()))
        finally:
            if not task.done():
                self._waits.abandon(task, too_late)
        return task.result() if task.done() else None

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run ``work``; cancel it and return False if the client disconnects or the server stops first. Raises what it raises."""
        task = asyncio.ensure_future(work)
        try:
            await self._waits.wait(_first(task, self.disconnection()))
        finally:
            task.cancel()
            await asyncio.wait((task,))
        if task.cancelled():
            return False
        task.result()
        return True

    def disconnection(self) -> asyncio.Task[None]:
        """Return a task that finishes when the client disconnects; call it after the body was read, or if none is expected."""
        if self._disconnection is None:
            self._disconnection = asyncio.ensure_future(self._watch())
        return self._disconnection

    def is_disconnected(self) -> bool:
        """Return whether the client is known to have disconnected; ``disconnection`` must have been called before."""
        return self._disconnection is not None and self._disconnection.done()

    def close(self) -> None:
        """Stop watching for a disconnect."""
        if self._disconnection is not None:
            self._disconnection.cancel()

    def announced(self) -> int | None:
        """Return the announced size of the body in bytes, or None for a chunked one."""
        if b"transfer-encoding" in self.headers:
            return None
        return int(self.headers.get(b"content-length", b"0"))

    def may_exceed(self, limit: int) -> bool:
        """Return whether an unread body may be longer than ``limit`` bytes."""
        if self._body_read:
            return False
        announced = self.announced()
        return announced is None or announced > limit

    async def discard(self, seconds: float, limit: int) -> None:
        """Read and drop what the client still sends, for ``seconds`` and ``limit`` bytes at most."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while limit > 0 and (left := deadline - loop.time()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                return
            if message["type"] == "http.disconnect" or not message["more_body"]:
                return
            limit -= len(message["body"])

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Waits:
    """The requests that wait for a job: when the server stops, each answers with the current state."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._over = False

    async def wait(self, awaitable: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of ``awaitable``, or None if ``end`` is called first."""
        if self.over():
            awaitable.close()
            return None
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if not self.over():
                raise
            return None
        finally:
            self._tasks.discard(task)

    def abandon(self, task: asyncio.Task[T], too_late: Callable[[T], None]) -> None:
        """Pass the result of ``task``, which no request waits for any more, to ``too_late`` when it is done."""

        def done(task: asyncio.Task[T]) -> None:
            self._abandoned.discard(task)
            if not task.cancelled() and task.exception() is None:
                too_late(task.result())

        self._abandoned.add(task)
        task.add_done_callback(done)

    def over(self) -> bool:
        """Return whether ``end`` was called."""
        return self._over

    def end(self) -> None:
        """End every wait, now and later."""
        self._over = True
        for task in self._tasks:
            task.cancel()


def clamped(name: str, text: str, low: int, high: int, expected: str = "an integer") -> int:
    """Parse ``text`` as an integer and clamp it to ``low`` … ``high``.

    Raises:
        RequestError: 400, it is none; the message has ``name`` and ``expected``.
    """
    if not _INTEGER.fullmatch(text):
        raise RequestError(400, f"{name}: expected {expected}, got {text[:40]!r}")
    value = (low if text[0] == "-" else high) if len(text) > _DIGITS else int(text)
    return min(max(value, low), high)


def index(name: str, text: str) -> int:
    """Parse ``text`` as an integer from 0 on, clamped to ``10**15``.

    Raises:
        RequestError: 400, it is none; the message has ``name``.
    """
    if not (text.isascii() and text.isdecimal()):
        raise RequestError(400, f"{name}: expected an integer from 0 on, got {text[:40]!r}")
    return int(text) if len(text) <= _DIGITS else 10**_DIGITS


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes (--max-body)")
