"""What happens to a worker in service: it gets jobs, ends them, loses them to a cancel, and is replaced once it is idle. Pure."""

from __future__ import annotations

from supervisor.cause import RefreshBy, RefreshCause
from supervisor.notice import HoldsWithoutJob
from supervisor.pool.slots.ending import Ending, Step, changed
from supervisor.pool.slots.rules import Rules, illegal
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.pool.slots.steps import (
    Action,
    Assign,
    CancelJob,
    CapacityChanged,
    JobDone,
    Measure,
    Overgrown,
    TellCancel,
)


class Service:
    """Those steps under one set of rules."""

    def __init__(self, rules: Rules, ending: Ending) -> None:
        """Follow ``rules``; ``ending`` ends workers."""
        self._rules = rules
        self._ending = ending

    def capacity(self, slot: Slot, event: CapacityChanged, now: float) -> Step:
        """The worker takes another number of jobs at once."""
        return changed(slot, capacity=max(1, event.capacity)), []

    def assign(self, slot: Slot, event: Assign, now: float) -> Step:
        """The worker gets a job."""
        if slot.room < 1 or event.job in slot.running:
            raise illegal(slot, event)
        return changed(slot, state=SlotState.BUSY, running=(*slot.running, event.job), failures=0), []

    def job_done(self, slot: Slot, event: JobDone, now: float) -> Step:
        """The worker has ended a job; the last one before a refresh or a pause lets that begin."""
        if event.job not in slot.running:
            raise illegal(slot, event)
        running = tuple(job for job in slot.running if job != event.job)
        cancelling = tuple(job for job in slot.cancelling if job != event.job) if slot.cancelling else ()
        slot = changed(
            slot,
            running=running,
            cancelling=cancelling,
            jobs=slot.jobs + 1,
            jobs_in_worker=slot.jobs_in_worker + 1,
            idle_slot_since=now,
        )
        if slot.state is SlotState.ENDING:
            return slot, []
        slot = changed(slot, deadline=slot.deadline if cancelling else None)
        wanted = event.refresh or self._own_cause(slot, event)
        if wanted is not None and slot.refresh_cause is None:
            slot = changed(slot, refresh_cause=wanted, since=now)
        if running:
            return slot, []
        slot = changed(slot, state=SlotState.IDLE)
        return self.leave(slot, now) if slot.pausing or slot.refresh_cause is not None else self.rest(slot, now)

    def cancel(self, slot: Slot, event: CancelJob, now: float) -> Step:
        """A running job is to stop, gently or with its worker."""
        if event.job not in slot.running:
            raise illegal(slot, event)
        if event.job in slot.cancelling:
            return slot, []
        slot = changed(slot, cancelling=(*slot.cancelling, event.job))
        if slot.state is SlotState.ENDING:
            return slot, []
        if event.gently:
            first = slot.deadline if slot.deadline is not None else now + self._rules.grace
            return changed(slot, deadline=first), [TellCancel(event.job)]
        step = EndStep.STACK if event.stuck else EndStep.TERM
        return self._ending.start(slot, now, step, Next.PAUSE if slot.pausing else Next.RESTART, event.cause)

    def overgrown(self, slot: Slot, event: Overgrown, now: float) -> Step:
        """The idle worker holds too much GPU memory: it is refreshed, once it has had a job."""
        if slot.state is not SlotState.IDLE or event.at < slot.idle_since:
            return slot, []
        if slot.jobs_in_worker:
            return self.leave(changed(slot, refresh_cause=RefreshCause(RefreshBy.HELD_MEMORY), since=now), now)
        # A fresh worker would hold as much, and so would the next: each may be refreshed after a job only.
        if slot.refresh_above_warned:
            return slot, []
        notice = HoldsWithoutJob(slot.name, event.mib, self._rules.refresh_above)
        return changed(slot, refresh_above_warned=True), [notice]

    def rest(self, slot: Slot, now: float) -> Step:
        """The worker is idle: have what it holds read now, where that can be a reason to refresh it."""
        actions: list[Action] = [Measure()] if self._rules.refresh_above and slot.has_gpu else []
        return changed(slot, idle_since=now), actions

    def leave(self, slot: Slot, now: float) -> Step:
        """The idle worker ends, for the refresh or the pause that waited for that."""
        after = Next.PAUSE if slot.pausing else Next.REFRESH
        cause = slot.pause_cause or slot.refresh_cause
        return self._ending.start(slot, now, EndStep.MEASURE, after, cause, since=slot.since)

    def _own_cause(self, slot: Slot, event: JobDone) -> RefreshCause | None:
        if self._rules.refresh_worker:
            return RefreshCause(RefreshBy.EACH_JOB)
        if self._rules.refresh_on_oom and event.out_of_memory:
            return RefreshCause(RefreshBy.FULL_GPU)
        after = self._rules.refresh_after_jobs
        if after and slot.jobs_in_worker >= after:
            return RefreshCause(RefreshBy.SOME_JOBS)
        return None
