"""One request as a handler sees it, and the reply it gives; in the supervisor.

The body is read here, once and never beyond the limit, and here is how long one may wait for a job.
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
_DIGITS = 15  # more than any limit has; Python refuses to read thousands of them

T = TypeVar("T")


class Reply(msgspec.Struct, frozen=True):
    """What to answer. ``headers`` are those of this answer alone, names in lower case; ``App`` adds what all have.

    ``sent``, if any, is called once with whether the client was still there to take the whole of it.

    ``parts`` takes the place of ``body`` where that comes bit by bit: each goes out as it comes, and the next is asked for when
    the client keeps up. They are closed, wherever they wait, when the client has left or the server stops. An answer of events
    ends properly then, behind a whole part; any other is cut, and so is one whose parts raise.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[bytes, bytes] = {}
    sent: Callable[[bool], None] | None = None
    content_type: bytes = JSON
    parts: AsyncGenerator[bytes, None] | None = None


class ClientGone(Exception):  # noqa: N818 - nobody did anything wrong
    """The client left before its request was whole: there is nobody to answer."""


class Call:
    """One request. ``param`` is what stood in the braces of the route's path; ``headers`` have names in lower case."""

    __slots__ = ("_body_read", "_gone", "_receive", "_waits", "app", "engine", "headers", "method", "param", "query")

    def __init__(self, app: App, scope: Scope, receive: Receive) -> None:
        self.app = app
        self.engine = app.engine
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.query: bytes = scope["query_string"]
        self.param = ""
        self._receive = receive
        self._waits = app.waits
        self._gone: asyncio.Task[None] | None = None
        self._body_read = False

    async def job_request(self) -> JobRequest:
        """The job that the body asks for.

        Raises:
            RequestError: 400 or 413.
            ClientGone: the client left before its body was whole.
        """
        return job_request(await self.body(), self.headers.get(b"idempotency-key"))

    async def body(self) -> bytes:
        """The body, whole.

        Raises:
            RequestError: 413, it is longer than ``--max-body``.
            ClientGone: the client left before it was whole.
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
                raise ClientGone
            part: bytes = message["body"]
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if not message["more_body"]:
                self._body_read = True
                return part if not parts else b"".join((*parts, part))
            parts.append(part)

    def field(self, name: str) -> str | None:
        """The query's (last) field ``name``; ``None`` if there is none."""
        if not self.query:
            return None
        return dict(parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)).get(name)

    def wait_s(self, default_ms: int, low_ms: int, high_ms: int) -> float:
        """The query's ``wait`` (milliseconds) in seconds, clamped.

        Raises:
            RequestError: 400, it is no integer.
        """
        text = self.field("wait")
        if text is None:
            return default_ms / 1000
        return clamped("wait", text, low_ms, high_ms, "milliseconds as an integer") / 1000

    async def wait(self, awaitable: Coroutine[Any, Any, T]) -> T | None:
        """What ``awaitable`` gives, or ``None`` if the server stops first."""
        return await self._waits.wait(awaitable)

    async def wait_while_connected(self, awaitable: Coroutine[Any, Any, T], too_late: Callable[[T], None]) -> T | None:
        """What ``awaitable`` gives, or ``None`` if the client leaves or the server stops first: then ``too_late`` gets it.

        It is not cancelled, because what it hands over may be on its way already.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            await self._waits.wait(_first(task, self.gone()))
        finally:
            if not task.done():
                self._waits.abandon(task, too_late)
        return task.result() if task.done() else None

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work``, and cancel it if the client leaves or the server stops first: whether it was done. Raises what it does."""
        task = asyncio.ensure_future(work)
        try:
            await self._waits.wait(_first(task, self.gone()))
        finally:
            task.cancel()
            await asyncio.wait((task,))
        if task.cancelled():
            return False
        task.result()
        return True

    def gone(self) -> asyncio.Task[None]:
        """Done when the client has left; call it when the body was read, or when there is none of interest."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._watch())
        return self._gone

    def has_left(self) -> bool:
        """Whether the client is known to have left; ``gone`` must have been called before."""
        return self._gone is not None and self._gone.done()

    def close(self) -> None:
        """Stop watching."""
        if self._gone is not None:
            self._gone.cancel()

    def announced(self) -> int | None:
        """How many bytes the body has by its header; ``None`` where only its end will say."""
        if b"transfer-encoding" in self.headers:
            return None
        return int(self.headers.get(b"content-length", b"0"))

    def excess(self, limit: int) -> bool:
        """Whether a body that was not read may be longer than ``limit`` bytes."""
        if self._body_read:
            return False
        announced = self.announced()
        return announced is None or announced > limit

    async def discard(self, seconds: float, limit: int) -> None:
        """Read on what the client still sends, for ``seconds`` and ``limit`` bytes at most."""
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
    """The requests that wait for a job: when the server stops, each is told to answer what is so far."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._over = False

    async def wait(self, awaitable: Coroutine[Any, Any, T]) -> T | None:
        """What ``awaitable`` gives, or ``None`` if ``end`` was called before it did."""
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
        """Nobody waits for ``task`` any more: when it is done, ``too_late`` gets what it gives."""

        def done(task: asyncio.Task[T]) -> None:
            self._abandoned.discard(task)
            if not task.cancelled() and task.exception() is None:
                too_late(task.result())

        self._abandoned.add(task)
        task.add_done_callback(done)

    def over(self) -> bool:
        """Whether ``end`` was called."""
        return self._over

    def end(self) -> None:
        """End every wait, those to come too."""
        self._over = True
        for task in self._tasks:
            task.cancel()


def clamped(name: str, text: str, low: int, high: int, expected: str = "an integer") -> int:
    """The integer in ``text``, at least ``low`` and at most ``high``.

    Raises:
        RequestError: 400, it is none; ``name`` says where it stood, ``expected`` what should.
    """
    if not _INTEGER.fullmatch(text):
        raise RequestError(400, f"{name}: expected {expected}, got {text[:40]!r}")
    value = (low if text[0] == "-" else high) if len(text) > _DIGITS else int(text)
    return min(max(value, low), high)


def index(name: str, text: str) -> int:
    """The number in ``text``, from 0 on; more than can be is cut off.

    Raises:
        RequestError: 400, it is none; ``name`` says where it stood.
    """
    if not (text.isascii() and text.isdecimal()):
        raise RequestError(400, f"{name}: expected an integer from 0 on, got {text[:40]!r}")
    return int(text) if len(text) <= _DIGITS else 10**_DIGITS


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes (--max-body)")
