"""Shutdown of a run: by a signal, a second one, or a fault in the event loop; in the supervisor's process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from supervisor.errors import StoreError, SuperviseError

T = TypeVar("T")


class Fault(Exception):  # noqa: N818 - a fault of this program, and none of its SuperviseErrors
    """The operating system refused something while jobs ran; ``__cause__`` is the error.

    Before jobs run, the user has to fix it: one message, exit code 2. Afterwards it is this program's fault: a traceback, and
    exit code 1, after which a service manager restarts it.
    """


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Turn OSError and RuntimeError (no thread can be started) in this block into a ``Fault``, and StoreError into an error
    with exit code 1."""
    try:
        yield
    except StoreError as error:
        raise SuperviseError(str(error)) from error
    except (OSError, RuntimeError) as error:
        raise Fault(f"supervise failed while it served: {error}") from error


class Shutdown:
    """Watches for reasons to stop: SIGTERM and Ctrl-C set ``stop``, a second Ctrl-C ``at_once``; ``broken`` gets the exception
    that broke the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self.broken: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._report: Callable[[str], None]

    def watch(self, report: Callable[[str], None], reload: Callable[[], None]) -> None:
        """Handle signals and the loop's exceptions; ``report`` gets a text for each exception, ``reload`` handles SIGHUP."""
        self._report = report
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        self._loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, reload)
        self._loop.set_exception_handler(self._loop_failed)

    async def first(self, work: Awaitable[T], until: asyncio.Event | None = None) -> T | None:
        """Return or raise what ``work`` does; if ``until`` or a broken loop comes first, cancel ``work`` and return None."""
        doing: asyncio.Future[T] = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future((until or asyncio.Event()).wait())
        waits: set[asyncio.Future[Any]] = {doing, stopping, self.broken}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            await cancel(future for future in (doing, stopping) if not future.done())

    def check(self) -> None:
        """Raise what broke the loop, if anything did."""
        if self.broken.done():
            with serving():
                self.broken.result()

    def _interrupted(self) -> None:
        if self.stop.is_set():
            self.at_once.set()
        self.stop.set()

    def _loop_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an uncaught exception. One in a callback broke the engine's turn: the store is consistent, so stop rather than
        go on half-way. One in a task or a connection concerns a single client."""
        error = context.get("exception")
        self._report(f"{context.get('message')}: {error!r}")
        if isinstance(error, Exception) and "handle" in context and not self.broken.done():
            self.broken.set_exception(error)


async def cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel ``futures`` and wait for them; raise what one of them raises. A cancellation of the caller still takes effect."""
    cancelled = tuple(futures)
    for future in cancelled:
        future.cancel()
    if cancelled:
        await asyncio.wait(cancelled)
    for future in cancelled:
        if not future.cancelled():
            future.result()
