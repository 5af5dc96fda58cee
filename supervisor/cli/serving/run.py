"""One run of the program: the engine with its event lines, its webhooks and its signals; in the supervisor's process.

What it is for, serving or a batch, is a subclass's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

import uvloop

from supervisor.assembly import Assembly, start_failure
from supervisor.cli.serving.event_log import Lines
from supervisor.cli.serving.events import EventLogger
from supervisor.cli.serving.shutdown import Ending
from supervisor.config.settings import Settings
from supervisor.engine.engine import Happening
from supervisor.host import file_limits
from supervisor.webhooks.delivery import Webhooks

LINES_CLOSE_S = 2.0
"""How long a slow reader of stderr may delay the end."""


class Run:
    """One run; ``open`` makes what it consists of."""

    assembly: Assembly
    webhooks: Webhooks
    lines: Lines
    events: EventLogger

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.ending = Ending(loop)

    async def run(self, undo: contextlib.ExitStack) -> int:
        """From the first check to the exit code; ``undo`` ends what is left then."""
        raise NotImplementedError

    def observe(self, happening: Happening) -> None:
        """Say what the engine tells its observers."""
        self.events.tell(happening)

    def reload(self) -> None:
        """Answer SIGHUP."""
        self.assembly.engine.reload()

    def open(
        self, undo: contextlib.ExitStack, footer: Callable[[], bytes] | None = None, *, temporary: bool = False
    ) -> None:
        """Open the event lines, which stand above ``footer``, then take the GPUs and the store, which ``temporary`` replaces.

        Raises:
            UsageError, StoreError: a GPU or the store cannot be had.
        """
        self.lines = Lines(sys.stderr, self.settings.log_format, footer)
        undo.callback(self.lines.close, LINES_CLOSE_S)  # last: what comes to an end may have something to say
        self.events = EventLogger(self.lines)
        undo.callback(self.events.close)
        self.assembly = Assembly(self.settings, self.loop, self._note, temporary=temporary)
        undo.callback(self.assembly.close)
        self.assembly.engine.observe(self.observe)
        self.webhooks = Webhooks(self.assembly.engine, self.loop)
        self.ending.watch(lambda text: self.events.event("error", text), self.reload)

    async def has_started(self) -> bool:
        """Wait for the first worker: false when a signal came before.

        Raises:
            StartError, HandlerError: none could start.
        """
        first = await self.ending.first(asyncio.shield(self.assembly.engine.first_load), self.ending.stop)
        if first is not None and not first.ok:
            raise start_failure(self.settings, first)
        return first is not None

    async def until_stopped(self) -> None:
        """Until a signal comes.

        Raises:
            StartError, HandlerError: no worker could start; or what broke the engine.
        """
        if await self.has_started():
            await self.ending.first(self.ending.stop.wait())
        self.ending.check()

    async def drain(self, timeout: float) -> None:
        """End the workers in good order, which a broken engine cannot: what broke it is raised."""
        await self.ending.first(self.assembly.engine.drain(timeout, self.ending.at_once))
        self.ending.check()

    def _note(self, text: str) -> None:
        self.events.event("note", text)


def run_to_end(kind: type[Run], settings: Settings) -> int:
    """What a run of that ``kind`` gives, in a loop of its own.

    Raises:
        UsageError, StartError, StoreError: it could not be begun or go on; the message is for the user.
    """
    file_limits.check_start()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        work = _run(kind(settings, loop))
        try:
            return loop.run_until_complete(work)
        finally:
            work.close()  # a loop that the system lets not run has not begun it
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _run(run: Run) -> int:
    with contextlib.ExitStack() as undo:
        return await run.run(undo)
