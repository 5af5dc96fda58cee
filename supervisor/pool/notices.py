"""What the pool has to tell the engine, gathered during a turn and put into words for people; in the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supervisor.host import ports
from supervisor.pool import events
from supervisor.pool.pipes.log_pipe import Said
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.wire import messages as wire

WARNINGS = 50
"""How many warnings of one worker are passed on."""


class Telling:
    """Events in their order, until they are taken."""

    def __init__(self, slots: Iterable[str]) -> None:
        """Each of ``slots`` has a first load to tell of, until a worker is ready in one."""
        self._events: list[events.PoolEvent] = []
        self._first_load = set(slots)
        self._shown: str | None = None

    def take(self) -> list[events.PoolEvent]:
        """What there is, once."""
        taken, self._events = self._events, []
        return taken

    def tell(self, event: events.PoolEvent) -> None:
        """Add ``event``."""
        self._events.append(event)

    def say(self, kind: str, text: str, slot: str | None = None, **fields: object) -> None:
        """Tell a person."""
        self._events.append(events.Notice(kind, text, slot, fields))

    # --- slots ----------------------------------------------------------------------------------------------------------

    def came_to(self, slot: Slot) -> None:
        """``slot`` is in another state, of which a person should know if it left service."""
        if slot.state is SlotState.HELD:
            self.say("gpu", f"held: {slot.cause}", slot.name)
        elif slot.state is SlotState.LOST:
            self.say("gpu", slot.cause or "lost", slot.name)
        elif slot.state is SlotState.PARKED and slot.pausing:
            self.say("worker", slot.cause or "paused", slot.name)

    def refreshed(self, name: str, report: steps.RefreshReport) -> None:
        """The worker in slot ``name`` was replaced."""
        total = report.end_s + report.release_s + report.start_s
        freed = "" if report.freed_mib is None else f", {report.freed_mib} MiB freed"
        text = (
            f"refreshed in {total * 1000:.1f} ms (end {report.end_s * 1000:.1f}, release {report.release_s * 1000:.1f},"
            f" start {report.start_s * 1000:.1f}){freed}{'' if report.verified else ', unverified'}; asked by {report.cause}"
        )
        self.say("refresh", text, name, report=report)

    def loaded(self, name: str) -> None:
        """A worker is ready in slot ``name``: if it is the first of all, the doors open."""
        self._shown = None
        if self._first_load:
            self._first_load.clear()
            self._events.append(events.FirstLoad(name, ok=True))

    def not_loaded(self, name: str, how: str, failed: wire.LoadFailed | None = None) -> None:
        """A worker will not come into service. The first of a slot is told of as such, unless one was ready anywhere; of a later
        one the traceback is shown, once for all slots and tries."""
        if name in self._first_load:
            self._first_load.discard(name)
            self._events.append(events.FirstLoad(name, ok=False, failed=failed, how=how))
        elif failed is not None and failed.traceback and failed.traceback != self._shown:
            self._shown = failed.traceback
            self._events.append(events.Printed(name, None, failed.traceback.rstrip().splitlines()))

    def reloading(self) -> None:
        """What could not be loaded is tried anew: the same traceback is news again."""
        self._shown = None

    # --- workers --------------------------------------------------------------------------------------------------------

    def lost(self, link: Link, action: steps.JobLost, *, machinery: bool) -> None:
        """A job has lost its worker; ``machinery``: by the death of the template."""
        error = f"worker {link.slot} (pid {link.pid}) {action.how}"
        if words := link.log.tail_of(action.job):
            error += "; its last output:\n" + "\n".join(words)
        self._events.append(events.JobLost(action.job, link.slot, error, action.charged, machinery))

    def printed(self, link: Link, said: Iterable[Said], running: Sequence[str]) -> None:
        """What a worker wrote. Lines that name no job are those of the one that runs alone."""
        alone = running[0] if len(running) == 1 else None
        for job, lines in said:
            self._events.append(events.Printed(link.slot, alone if job is None else job or None, lines))

    def warned(self, link: Link, text: str) -> None:
        """A worker says each of its warnings once; one that does not stop is not heard any more."""
        link.warnings += 1
        if link.warnings <= WARNINGS:
            self.say("warning", text, link.slot)
        elif link.warnings == WARNINGS + 1:
            self.say("warning", f"more than {WARNINGS} warnings of its worker: the others are left out", link.slot)

    def port_taken(self, link: Link, error: str, links: Iterable[Link]) -> None:
        """Say it, once for a worker, if ``error`` is about a port that a sibling in ``links`` has."""
        if not error or link.port_named:
            return
        pids = {other.slot: other.pid for other in links if other.pid is not None}
        if words := ports.hint(error, link.slot, pids):
            link.port_named = True
            self.say("warning", words, link.slot)
