"""Scales the number of workers: starts slots when jobs wait, and stops idle ones. In the supervisor.

``decide`` is pure: it maps slots, waiting times and the time to actions. A slot that is stopped here is *spare*, or scaled down:
its worker stops as any other does, its GPU memory is verified free, and it starts again when jobs wait. Manually paused slots are
left alone.
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
"""States of a slot in service that lead to a ready worker; backoff is not one, since it may fail again."""

SHORT_S = 1.0
"""A shorter ``--idle-timeout`` sets no deadline for workers that run jobs, which would be a busy loop with 0: slots are looked at
in each turn."""

Waits = Callable[[int], Sequence[float]]
"""Returns the waiting times in seconds of that many jobs, the longest first; fewer if fewer wait."""


class ScalingAction(msgspec.Struct, frozen=True):
    """Starts a slot, or stops it for the reason ``stop``."""

    slot: str
    stop: SpareCause | None = None


def check_bounds(settings: Settings, slots: int) -> None:
    """Reject bounds that so many slots cannot keep.

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
    """The scaling rules. The last ``act`` sets ``deadline``: when it must be called again at the latest."""

    def __init__(self, settings: Settings) -> None:
        self.deadline: float | None = None
        self._settings = settings
        self._idle_timeout = settings.idle_timeout
        self._scale_after = settings.scale_after
        self._least = self._most = 0
        self._changes: int | None = None
        self._startable = self._each_turn = False

    def begin(self, pool: Pool, now: float) -> None:
        """Scale down the slots that do not start with the program. One always starts, to check the handler."""
        least, _ = bounds(self._settings, len(pool.slots))
        for name in list(pool.slots)[max(least, 1) :]:
            pool.spare(name, SpareCause(), now)

    def act(self, pool: Pool, waiting: bool, waits: Waits, now: float) -> None:
        """Start and stop slots as needed; between turns, before the pool performs their decisions.

        The slots are checked when one has changed other than by its jobs, when some job is ``waiting`` and a slot can start, and
        at ``deadline``, so that the cost does not grow with their number; in each turn only while one is to stop as soon as it
        has no job.
        """
        due = self.deadline is not None and now >= self.deadline
        if pool.changes == self._changes and not due and not self._each_turn and not (waiting and self._startable):
            return
        self._changes = pool.changes
        for action in self.decide(pool.slots.values(), waits, now):
            if action.stop is None:
                pool.resume(action.slot, now)
            else:
                pool.spare(action.slot, action.stop, now)

    def decide(self, slots: Collection[Slot], waits: Waits, now: float) -> list[ScalingAction]:
        """Return the actions for ``slots`` at ``now`` (monotonic seconds)."""
        self.deadline = None
        self._startable = self._each_turn = False
        self._least, self._most = bounds(self._settings, len(slots))
        if self._least == len(slots) and not any(slot.spare for slot in slots):
            return []
        in_service = [slot for slot in slots if slot.state not in OUT_OF_SERVICE]
        staying = [slot for slot in in_service if not slot.pausing]
        if len(staying) > self._most:
            self._each_turn = True  # those that run jobs can stop only after them
            return self._stop_excess(staying)
        spare = [slot for slot in slots if slot.spare and slot.state is SlotState.PARKED]
        startable = spare[: max(0, self._most - len(in_service))]
        startable += [slot for slot in in_service if slot.spare]  # stopping; they start again after that
        startable = startable[: self._most - len(staying)]
        self._startable = bool(startable)
        wanted = self._wanted(staying, len(startable), waits, now)
        return [ScalingAction(slot.name) for slot in startable[:wanted]] + self._idle(staying, now)

    def _wanted(self, staying: Sequence[Slot], startable: int, waits: Waits, now: float) -> int:
        """Return how many of the ``startable`` slots are needed for jobs or ``--min-workers``."""
        if not startable:
            return 0
        coming = sum(slot.state in COMING for slot in staying)
        waiting = waits(startable + coming)
        due = sum(wait >= self._scale_after for wait in waiting)
        self._check_at(now + self._scale_after - wait for wait in waiting[due:])
        at_once = bool(waiting) and not staying
        return max(self._least - len(staying), due - coming, at_once, 0)

    def _idle(self, staying: Sequence[Slot], now: float) -> list[ScalingAction]:
        """Stop slots that were idle for too long, down to ``--min-workers``."""
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
            self._check_at(end for end in ends.values() if end > now)
            if self._idle_timeout < SHORT_S:
                self._each_turn = True
            else:  # a slot that runs a job now cannot be due before a whole idle time from now
                self._check_at([now + self._idle_timeout])
        return [ScalingAction(name, SpareCause(idle_s=self._idle_timeout)) for name in over]

    def _stop_excess(self, staying: Sequence[Slot]) -> list[ScalingAction]:
        """Stop slots above the maximum, after one returned to service: the last that run no job, those not ready first."""
        free = [slot for slot in reversed(staying) if slot.state is not SlotState.BUSY]
        free.sort(key=lambda slot: slot.state is SlotState.IDLE)
        return [ScalingAction(slot.name, SpareCause(most=self._most)) for slot in free[: len(staying) - self._most]]

    def _check_at(self, times: Iterable[float]) -> None:
        self.deadline = min([*times, *([] if self.deadline is None else [self.deadline])], default=None)
