"""How one run of the program comes to its end: by a signal, a second one, or a fault of its loop; in the supervisor's process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from supervisor.errors import StoreError, SuperviseError

T = TypeVar("T")


class Fault(Exception):  # noqa: N818 - a fault of this program, and none of its SuperviseErrors
    """The operating system refused something while jobs ran; what and where, its cause shows.

    Before that it is the user's to mend: one message and exit code 2. From then on it is this program's fault, to be shown with
    its traceback, and the exit code 1 tells a service manager that another try is worth it.
    """


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Turn what the operating system refuses in this block (a thread: RuntimeError) into a ``Fault``. A store that fails is said
    as ever, but with the exit code 1, too."""
    try:
        yield
    except StoreError as error:
        raise SuperviseError(str(error)) from error
    except (OSError, RuntimeError) as error:
        raise Fault(f"supervise failed while it served: {error}") from error


class Ending:
    """``stop`` is set by SIGTERM and Ctrl-C, ``at_once`` by a second Ctrl-C. ``broken`` fails with what broke the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self.broken: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._say: Callable[[str], None]

    def watch(self, say: Callable[[str], None], reload: Callable[[], None]) -> None:
        """Watch signals and the loop; ``say`` takes what went wrong there, ``reload`` is for SIGHUP."""
        self._say = say
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        self._loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, reload)
        self._loop.set_exception_handler(self._loop_failed)

    async def first(self, work: Awaitable[T], until: asyncio.Event | None = None) -> T | None:
        """What ``work`` gives or raises; ``None`` when ``until`` or a broken loop comes first, and ``work`` is cancelled then."""
        doing: asyncio.Future[T] = asyncio.ensure_future(work)
        ending = asyncio.ensure_future((until or asyncio.Event()).wait())
        waits: set[asyncio.Future[Any]] = {doing, ending, self.broken}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            await end(future for future in (doing, ending) if not future.done())

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
        """What nobody caught. In a callback of the loop it is a fault of the engine's turn: what is on disk is right, so stop and
        say so rather than go on half-way. In a task or a connection it hurts one client."""
        error = context.get("exception")
        self._say(f"{context.get('message')}: {error!r}")
        if isinstance(error, Exception) and "handle" in context and not self.broken.done():
            self.broken.set_exception(error)


async def end(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel ``futures`` and wait for that; raises what one of them raises then. A cancel of who waits here is heeded."""
    ending = tuple(futures)
    for future in ending:
        future.cancel()
    if ending:
        await asyncio.wait(ending)
    for future in ending:
        if not future.cancelled():
            future.result()
