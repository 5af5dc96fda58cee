"""One run of the program: the engine with its event lines, webhooks and signals; in the supervisor's process.

Subclasses serve a handler or run a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable

import uvloop

from supervisor.assembly import Assembly, start_failure
from supervisor.cli.serving.event_log import EventLog
from supervisor.cli.serving.events import EventLogger
from supervisor.cli.serving.shutdown import Shutdown
from supervisor.config.settings import Settings
from supervisor.engine.engine import Happening
from supervisor.host import file_limits
from supervisor.webhooks.delivery import Webhooks

LINES_CLOSE_S = 2.0
"""Seconds that a slow reader of stderr may delay the exit."""


class ProgramRun(ABC):
    """Base class of the runs; ``open`` creates the parts."""

    assembly: Assembly
    webhooks: Webhooks
    lines: EventLog
    events: EventLogger

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.shutdown = Shutdown(loop)

    @abstractmethod
    async def run(self, undo: contextlib.ExitStack) -> int:
        """Run from the first check to the end; return the exit code. ``undo`` cleans up."""

    def observe(self, happening: Happening) -> None:
        """Log an event of the engine."""
        self.events.observe(happening)

    def reload(self) -> None:
        """Handle SIGHUP."""
        self.assembly.engine.reload()

    def open(
        self, undo: contextlib.ExitStack, footer: Callable[[], bytes] | None = None, *, temporary: bool = False
    ) -> None:
        """Open the event log, with ``footer`` below its lines, then claim the GPUs and the store (a throw-away one if
        ``temporary``).

        Raises:
            UsageError, StoreError: a GPU or the store is not available.
        """
        self.lines = EventLog(sys.stderr, self.settings.log_format, footer)
        undo.callback(self.lines.close, LINES_CLOSE_S)  # closed last: the other parts log while they close
        self.events = EventLogger(self.lines)
        undo.callback(self.events.close)
        self.assembly = Assembly(self.settings, self.loop, self._note, temporary=temporary)
        undo.callback(self.assembly.close)
        self.assembly.engine.observe(self.observe)
        self.webhooks = Webhooks(self.assembly.engine, self.loop)
        self.shutdown.watch(lambda text: self.events.event("error", text), self.reload)

    async def wait_started(self) -> bool:
        """Wait for the first worker; return False if a signal came first.

        Raises:
            StartError, HandlerError: no worker could start.
        """
        first = await self.shutdown.first(asyncio.shield(self.assembly.engine.first_load), self.shutdown.stop)
        if first is not None and not first.ok:
            raise start_failure(self.settings, first)
        return first is not None

    async def wait_stopped(self) -> None:
        """Wait for a signal to stop.

        Raises:
            StartError, HandlerError: no worker could start. Also raises what broke the engine.
        """
        if await self.wait_started():
            await self.shutdown.first(self.shutdown.stop.wait())
        self.shutdown.check()

    async def drain(self, timeout: float) -> None:
        """Stop the workers gracefully within ``timeout`` seconds. Raises what broke the engine, which prevents that."""
        await self.shutdown.first(self.assembly.engine.drain(timeout, self.shutdown.at_once))
        self.shutdown.check()

    def _note(self, text: str) -> None:
        self.events.event("note", text)


def run_to_end(kind: type[ProgramRun], settings: Settings) -> int:
    """Run a run of that ``kind`` in an event loop of its own and return its exit code.

    Raises:
        UsageError, StartError, StoreError: it could not start or continue; the message is for the user.
    """
    file_limits.check_start()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        work = _run(kind(settings, loop))
        try:
            return loop.run_until_complete(work)
        finally:
            work.close()  # not started if the system does not let the loop run
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _run(run: ProgramRun) -> int:
    with contextlib.ExitStack() as undo:
        return await run.run(undo)
