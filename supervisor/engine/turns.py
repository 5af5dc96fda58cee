"""Schedules the engine's turns: soon after an event, or at a deadline. In the supervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from supervisor.engine.turn import Turn
from supervisor.engine.waiters import settle
from supervisor.errors import RequestError
from supervisor.waiting import Condition

GATHER_S = 0.001
"""How long a job that must wait for a worker anyway waits for others to share its commit. At high load the next turn comes sooner
by itself, so no client waits longer, and a job costs one commit instead of two."""

T = TypeVar("T")


class Clock:
    """The two clocks; a fake one makes turns replayable."""

    def monotonic(self) -> float:
        """Return the time in seconds, for deadlines."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Return milliseconds since 1970, for timestamps."""
        return time.time_ns() // 1_000_000


class Command(msgspec.Struct):
    """A client's command: decided in a turn, and answered by ``future`` once that is on disk.

    One that is not ``patient`` is rejected when the commit fails; ``arrives``: it is a new job.
    """

    decide: Callable[[Turn], Any]
    future: asyncio.Future[Any]
    patient: bool
    arrives: bool

    def run(self, turn: Turn) -> None:
        """Decide; the answer waits for the commit."""
        try:
            answer = self.decide(turn)
        except RequestError as error:  # its reason may not be on disk yet
            turn.wakes.append(partial(settle, self.future, None, error))
        else:
            turn.wakes.append(partial(settle, self.future, answer))


class Turns:
    """Calls ``turn`` when there is something to do, and keeps clients' commands until they are on disk."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, turn: Callable[[], None]) -> None:
        self.commands: list[Command] = []
        self.arriving = 0
        """Number of new jobs among ``commands``."""
        self._loop = loop
        self._clock = clock
        self._turn = turn
        self._scheduled = False
        self._gathering: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.over = Condition(loop, clock.monotonic)
        """Notified after each turn, committed or not."""

    def wake(self) -> None:
        """Schedule a turn; several calls share one."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def request(
        self, decide: Callable[[Turn], T], *, gather: bool = False, patient: bool = True, arrives: bool = False
    ) -> asyncio.Future[T]:
        """Run ``decide`` in the next turn, which ``gather`` delays a little; the future gives its result once that is on disk.

        If the commit fails, ``patient`` commands are decided again and the others rejected.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self.commands.append(Command(decide, future, patient, arrives))
        self.arriving += arrives
        if not gather:
            self.wake()
        elif self._gathering is None and not self._scheduled:
            self._gathering = self._loop.call_later(GATHER_S, self.wake)
        return future

    def begin(self) -> None:
        """Note that a turn begins: later calls of ``wake`` schedule another."""
        self._scheduled = False
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def take(self, count: int) -> list[Command]:
        """Remove and return the first ``count`` commands, which are decided."""
        taken = self.commands[:count]
        del self.commands[:count]
        self.arriving -= sum(command.arrives for command in taken)
        return taken

    def reject(self, count: int, error: RequestError) -> None:
        """Reject the first ``count`` commands, whose commit failed, except for patient ones: those are kept."""
        kept: list[Command] = []
        for command in self.take(count):
            if command.patient:
                kept.append(command)
                self.arriving += command.arrives
            else:
                settle(command.future, None, error)
        self.commands[:0] = kept

    def end(self, now: float, at: float) -> None:
        """Finish a turn and set the timer for the next one; both times are monotonic."""
        self.over.notify()
        if self._timer is not None:
            if now < self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), self._timer_fired)

    def close(self) -> None:
        """Cancel the timers."""
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()

    def _timer_fired(self) -> None:
        self._timer = None  # the loop's clock is coarse: the timer may fire early and must be set again then
        self.wake()
