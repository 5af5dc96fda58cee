"""The buffer of the pool's events for the engine, filled during a turn; in the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supervisor import notice
from supervisor.cause import GpusLost, MemoryStaysInUse, WorkerEnd, WorkerLost
from supervisor.host import ports
from supervisor.pool import events
from supervisor.pool.pipes.log_pipe import OutputLines
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.wire import messages as wire

WARNINGS = 50
"""Number of warnings of one worker that are passed on."""


class EventBuffer:
    """Events in order, until they are drained. ``shown`` is the last traceback of a failed load."""

    def __init__(self, slots: Iterable[str]) -> None:
        """Report the first load of each of ``slots``, until a worker is ready in one."""
        self._events: list[events.PoolEvent] = []
        self._first_load = set(slots)
        self.shown: str | None = None

    def drain(self) -> list[events.PoolEvent]:
        """Return the events and clear them."""
        drained, self._events = self._events, []
        return drained

    def emit(self, event: events.PoolEvent) -> None:
        """Add ``event``."""
        self._events.append(event)

    # --- slots ----------------------------------------------------------------------------------------------------------

    def state_changed(self, slot: Slot) -> None:
        """Emit a notice if ``slot`` went out of service."""
        if slot.state is SlotState.HELD and isinstance(slot.obstacle, MemoryStaysInUse):
            self.emit(notice.SlotOut(slot.name, slot.obstacle))
        elif slot.state is SlotState.LOST and isinstance(slot.cause, GpusLost):
            self.emit(notice.SlotOut(slot.name, slot.cause))
        elif slot.state is SlotState.PARKED and slot.pause_cause is not None:
            self.emit(notice.SlotPaused(slot.name, slot.pause_cause))

    def loaded(self, name: str) -> None:
        """Record that a worker is ready in slot ``name``; the first of all is reported."""
        self.shown = None
        if self._first_load:
            self._first_load.clear()
            self.emit(events.FirstLoad(name))

    def not_loaded(self, name: str, end: WorkerEnd, failed: wire.LoadFailed | None = None) -> None:
        """Record that a worker failed to start. The first failure of a slot is reported as ``FirstLoad``, unless a worker was
        ready anywhere; for later ones the traceback is shown, once for all slots and retries."""
        if name in self._first_load:
            self._first_load.discard(name)
            self.emit(events.FirstLoad(name, end, failed))
        elif failed is not None and failed.traceback and failed.traceback != self.shown:
            self.shown = failed.traceback
            self.emit(events.Printed(name, None, failed.traceback.rstrip().splitlines()))

    # --- workers --------------------------------------------------------------------------------------------------------

    def lost(self, link: Link, action: steps.ReportJobLost, *, machinery: bool) -> None:
        """Report that a job lost its worker; ``machinery``: because the template died."""
        cause = WorkerLost(link.slot, link.pid, action.end, tuple(link.log.tail_of(action.job)))
        self.emit(events.JobLost(action.job, link.starts[action.job], link.slot, cause, action.charged, machinery))

    def printed(self, link: Link, output: Iterable[OutputLines], running: Sequence[str]) -> None:
        """Report a worker's output. Lines without a job belong to the job that runs alone."""
        alone = running[0] if len(running) == 1 else None
        for job, lines in output:
            of = alone if job is None else job or None
            self.emit(events.Printed(link.slot, of, lines, link.starts.get(of or "", 0)))

    def warned(self, link: Link, text: str) -> None:
        """Pass on a worker's warning, up to ``WARNINGS`` for each worker."""
        link.warnings += 1
        if link.warnings <= WARNINGS:
            self.emit(notice.WorkerWarned(link.slot, text))
        elif link.warnings == WARNINGS + 1:
            self.emit(notice.WarningsLeftOut(link.slot, WARNINGS))

    def port_taken(self, link: Link, error: str, links: Iterable[Link]) -> None:
        """Report, once for each worker, if ``error`` is about a port that a sibling in ``links`` occupies."""
        if not error or link.port_named:
            return
        pids = {other.slot: other.pid for other in links if other.pid is not None}
        if taken := ports.taken(error, link.slot, pids):
            link.port_named = True
            owners = tuple(notice.PortOwner(slot, tuple(sorted(numbers))) for slot, numbers in taken.items())
            self.emit(notice.PortTaken(link.slot, owners))
