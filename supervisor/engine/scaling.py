"""How many workers are in service: which slots start because jobs wait, and stop because none came. Run by the supervisor.

``decide`` is pure: slots, waiting times and the time come in, orders go out. A slot that is stopped here is *spare*: its worker
ends as any other does, its GPU memory is seen to be free, and it starts again when jobs wait. What a person has paused is left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from supervisor.cause import SpareCause
from supervisor.config.settings import Settings
from supervisor.errors import UsageError
from supervisor.pool.interfaces import Pool
from supervisor.pool.slots.slot import OUT_OF_SERVICE, Slot, SlotState

COMING = frozenset({SlotState.STARTING, SlotState.ENDING, SlotState.RELEASING})
"""The states of a slot in service that lead to a worker which takes a job; one that backs off may not get there."""

SHORT_S = 1.0
"""A shorter ``--idle-timeout`` sets no deadline for workers that run jobs, which would be a busy loop with 0: slots are looked at
in each turn."""

Waits = Callable[[int], Sequence[float]]
"""How many seconds each of that many jobs has waited, the longest first; fewer if fewer wait."""


class Order(msgspec.Struct, frozen=True):
    """Start this slot, or ``stop`` it for that reason."""

    slot: str
    stop: SpareCause | None = None


def check_bounds(settings: Settings, slots: int) -> None:
    """Refuse bounds that so many slots cannot keep.

    Raises:
        UsageError: ``--min-workers`` is more than there are slots, or than ``--max-workers``.
    """
    least, most = settings.min_workers or 0, bounds(settings, slots)[1]
    there_are = f"there {'is 1 slot' if slots == 1 else f'are {slots} slots'}"
    if least > slots:
        raise UsageError(f"--min-workers {least}: {there_are}; give a number from 0 to {slots}")
    if least > most:
        raise UsageError(f"--min-workers {least}: more than --max-workers {most} allows; {there_are}")


def bounds(settings: Settings, slots: int) -> tuple[int, int]:
    """Return the least and the most workers on so many slots."""
    most = slots if settings.max_workers is None else min(settings.max_workers, slots)
    return most if settings.min_workers is None else min(settings.min_workers, most), most


class Scaling:
    """The rules under one set of settings. ``deadline`` is when ``act`` must be called again at the latest, by the last one."""

    def __init__(self, settings: Settings) -> None:
        """Follow ``settings``."""
        self.deadline: float | None = None
        self._settings = settings
        self._idle_timeout = settings.idle_timeout
        self._scale_after = settings.scale_after
        self._least = self._most = 0
        self._changes: int | None = None
        self._startable = self._each_turn = False

    def begin(self, pool: Pool, now: float) -> None:
        """Make those slots spare that do not start with the program: one does in any case, which checks the handler."""
        least, _ = bounds(self._settings, len(pool.slots))
        for name in list(pool.slots)[max(least, 1) :]:
            pool.spare(name, SpareCause(), now)

    def act(self, pool: Pool, waiting: bool, waits: Waits, now: float) -> None:
        """Start and stop what is to be started and stopped now; between turns, before the pool performs what they decided.

        The slots are looked at when one has changed otherwise than by its jobs, when some job is ``waiting`` that may want one
        more, and at ``deadline``: so what this costs does not grow with their number. In each turn only while one is to go as
        soon as it has no job.
        """
        due = self.deadline is not None and now >= self.deadline
        if pool.changes == self._changes and not due and not self._each_turn and not (waiting and self._startable):
            return
        self._changes = pool.changes
        for order in self.decide(pool.slots.values(), waits, now):
            if order.stop is None:
                pool.resume(order.slot, now)
            else:
                pool.spare(order.slot, order.stop, now)

    def decide(self, slots: Collection[Slot], waits: Waits, now: float) -> list[Order]:
        """What is to be done with ``slots`` at ``now`` (monotonic seconds)."""
        self.deadline = None
        self._startable = self._each_turn = False
        self._least, self._most = bounds(self._settings, len(slots))
        if self._least == len(slots) and not any(slot.spare for slot in slots):
            return []
        in_service = [slot for slot in slots if slot.state not in OUT_OF_SERVICE]
        staying = [slot for slot in in_service if not slot.pausing]
        if len(staying) > self._most:
            self._each_turn = True  # those that run jobs can go only after them
            return self._too_many(staying)
        spare = [slot for slot in slots if slot.spare and slot.state is SlotState.PARKED]
        startable = spare[: max(0, self._most - len(in_service))]
        startable += [slot for slot in in_service if slot.spare]  # on their way out; they come back at its end
        startable = startable[: self._most - len(staying)]
        self._startable = bool(startable)
        wanted = self._wanted(staying, len(startable), waits, now)
        return [Order(slot.name) for slot in startable[:wanted]] + self._idle(staying, now)

    def _wanted(self, staying: Sequence[Slot], startable: int, waits: Waits, now: float) -> int:
        """How many of those that are ``startable`` jobs or ``--min-workers`` want."""
        if not startable:
            return 0
        coming = sum(slot.state in COMING for slot in staying)
        waiting = waits(startable + coming)
        due = sum(wait >= self._scale_after for wait in waiting)
        self._look_again(now + self._scale_after - wait for wait in waiting[due:])
        at_once = bool(waiting) and not staying
        return max(self._least - len(staying), due - coming, at_once, 0)

    def _idle(self, staying: Sequence[Slot], now: float) -> list[Order]:
        """Those that had no job for too long, as far as the others are enough."""
        above = len(staying) - self._least
        if above <= 0:
            return []
        ends = {
            slot.name: slot.idle_slot_since + self._idle_timeout
            for slot in reversed(staying)
            if slot.state is SlotState.IDLE and slot.idle_slot_since is not None
        }
        over = [name for name, end in ends.items() if end <= now][:above]
        if len(over) < above:
            self._look_again(end for end in ends.values() if end > now)
            if self._idle_timeout < SHORT_S:
                self._each_turn = True
            else:  # one that runs a job now is idle for too long later than that, whenever it ends
                self._look_again([now + self._idle_timeout])
        return [Order(name, SpareCause(idle_s=self._idle_timeout)) for name in over]

    def _too_many(self, staying: Sequence[Slot]) -> list[Order]:
        """A slot came back by itself or by hand, and another has its place: the last of those that run no job goes, at best one
        that is not ready."""
        free = [slot for slot in reversed(staying) if slot.state is not SlotState.BUSY]
        free.sort(key=lambda slot: slot.state is SlotState.IDLE)
        return [Order(slot.name, SpareCause(most=self._most)) for slot in free[: len(staying) - self._most]]

    def _look_again(self, times: Iterable[float]) -> None:
        self.deadline = min([*times, *([] if self.deadline is None else [self.deadline])], default=None)
