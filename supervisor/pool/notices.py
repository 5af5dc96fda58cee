"""What the pool has to tell the engine, gathered during a turn; in the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supervisor import notice
from supervisor.cause import GpusLost, MemoryStaysInUse, WorkerEnd, WorkerLost
from supervisor.host import ports
from supervisor.pool import events
from supervisor.pool.pipes.log_pipe import Said
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.wire import messages as wire

WARNINGS = 50
"""How many warnings of one worker are passed on."""


class EventBuffer:
    """Events in their order, until they are drained. ``shown`` is the last traceback, of a handler that could not be loaded."""

    def __init__(self, slots: Iterable[str]) -> None:
        """Each of ``slots`` has a first load to report, until a worker is ready in one."""
        self._events: list[events.PoolEvent] = []
        self._first_load = set(slots)
        self.shown: str | None = None

    def drain(self) -> list[events.PoolEvent]:
        """Return what there is, once."""
        drained, self._events = self._events, []
        return drained

    def emit(self, event: events.PoolEvent) -> None:
        """Add ``event``."""
        self._events.append(event)

    # --- slots ----------------------------------------------------------------------------------------------------------

    def state_changed(self, slot: Slot) -> None:
        """Give notice of a ``slot`` that has left service."""
        if slot.state is SlotState.HELD and isinstance(slot.obstacle, MemoryStaysInUse):
            self.emit(notice.SlotOut(slot.name, slot.obstacle))
        elif slot.state is SlotState.LOST and isinstance(slot.cause, GpusLost):
            self.emit(notice.SlotOut(slot.name, slot.cause))
        elif slot.state is SlotState.PARKED and slot.pause_cause is not None:
            self.emit(notice.SlotPaused(slot.name, slot.pause_cause))

    def loaded(self, name: str) -> None:
        """A worker is ready in slot ``name``: if it is the first of all, the doors open."""
        self.shown = None
        if self._first_load:
            self._first_load.clear()
            self.emit(events.FirstLoad(name))

    def not_loaded(self, name: str, end: WorkerEnd, failed: wire.LoadFailed | None = None) -> None:
        """A worker will not come into service. The first of a slot is reported as such, unless one was ready anywhere; of a later
        one the traceback is shown, once for all slots and tries."""
        if name in self._first_load:
            self._first_load.discard(name)
            self.emit(events.FirstLoad(name, end, failed))
        elif failed is not None and failed.traceback and failed.traceback != self.shown:
            self.shown = failed.traceback
            self.emit(events.Printed(name, None, failed.traceback.rstrip().splitlines()))

    # --- workers --------------------------------------------------------------------------------------------------------

    def lost(self, link: Link, action: steps.JobLost, *, machinery: bool) -> None:
        """A job has lost its worker; ``machinery``: by the death of the template."""
        cause = WorkerLost(link.slot, link.pid, action.end, tuple(link.log.tail_of(action.job)))
        self.emit(events.JobLost(action.job, link.starts[action.job], link.slot, cause, action.charged, machinery))

    def printed(self, link: Link, said: Iterable[Said], running: Sequence[str]) -> None:
        """What a worker wrote. Lines that name no job are those of the one that runs alone."""
        alone = running[0] if len(running) == 1 else None
        for job, lines in said:
            of = alone if job is None else job or None
            self.emit(events.Printed(link.slot, of, lines, link.starts.get(of or "", 0)))

    def warned(self, link: Link, text: str) -> None:
        """A worker says each of its warnings once; one that does not stop is not heard any more."""
        link.warnings += 1
        if link.warnings <= WARNINGS:
            self.emit(notice.WorkerWarned(link.slot, text))
        elif link.warnings == WARNINGS + 1:
            self.emit(notice.WarningsLeftOut(link.slot, WARNINGS))

    def port_taken(self, link: Link, error: str, links: Iterable[Link]) -> None:
        """Say it, once for a worker, if ``error`` is about a port that a sibling in ``links`` has."""
        if not error or link.port_named:
            return
        pids = {other.slot: other.pid for other in links if other.pid is not None}
        if taken := ports.taken(error, link.slot, pids):
            link.port_named = True
            owners = tuple(notice.PortOwner(slot, tuple(sorted(numbers))) for slot, numbers in taken.items())
            self.emit(notice.PortTaken(link.slot, owners))
