"""The slots' state machine, pure; run by the supervisor: ``step(slot, event, now) -> (slot, actions)``.

It reads no clock, pipe or process: the pool turns those into events and performs the actions.

::

    parked ──Start──▶ starting ──WorkerLoaded──▶ idle ◀──JobDone── busy
                       ▲  │                       │  └──Assign─────▶ │
                       │  └─WorkerExited──────────┼──────────────────┤ refresh, cancel, crash, GPU lost
                       │                          ▼                  ▼
       backoff, broken ◀── releasing ◀── ending (measure → asked → term → kill → dead) ──▶ lost (comes back with its GPU)
                              └─▶ held (memory still in use; comes back when it clears)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor.cause import CancelIgnored, EndedBecause, RefreshBy, RefreshCause, StartTimedOut, WorkerEnd
from supervisor.notice import HoldsWithoutJob, Refreshed, SlotBroken, StartFailed
from supervisor.pool.slots import steps
from supervisor.pool.slots.ending import Ending, Step, changed, dead, died, lost_jobs
from supervisor.pool.slots.rules import Rules, expect, illegal
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.wire import messages as wire

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait after the first, second, … consecutive failed start; after the last the slot is broken."""

BROKEN_RETRY_S = 300.0
"""Seconds until a broken slot is retried: its cause (a full disk, a missing file) may have been fixed."""

_ALIVE = (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY)
_WAITING = (SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD, SlotState.PARKED)


class StateMachine:
    """The steps for one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._ending = Ending(rules.grace)
        self._steps: dict[type[steps.Event], Callable[[Slot, Any, float], Step]] = {
            steps.Start: self._start,
            steps.WorkerForked: self._forked,
            steps.WorkerForkFailed: self._fork_failed,
            steps.Unforked: self._unforked,
            steps.WorkerLoaded: self._ready,
            steps.CapacityChanged: self._capacity,
            steps.Assign: self._assign,
            steps.JobDone: self._job_done,
            steps.CancelJob: self._cancel,
            steps.RefreshRequested: self._refresh_requested,
            steps.HandlerChanged: self._handler_changed,
            steps.PauseRequested: self._pause_requested,
            steps.ResumeRequested: self._resume_requested,
            steps.ProtocolViolated: self._protocol_violated,
            steps.Measured: self._measured,
            steps.MemoryExceeded: self._memory_exceeded,
            steps.WorkerExited: self._died,
            steps.TreeSwept: self._swept,
            steps.Released: self._released,
            steps.MemoryHeld: self._held,
            steps.TemplateDied: self._template_died,
            steps.GpuLost: self._gpu_lost,
            steps.GpuBack: self._gpu_back,
            steps.Remarked: self._remarked,
            steps.Stop: self._stop,
            steps.Tick: self._tick,
        }

    def step(self, slot: Slot, event: steps.Event, now: float) -> Step:
        """Return the slot after ``event``, and the actions to perform.

        Raises:
            IllegalStepError: the event cannot happen in this state.
        """
        return self._steps[type(event)](slot, event, now)

    # --- start --------------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot, event: steps.Start, now: float) -> Step:
        expect(slot, event, *_WAITING)
        return self._begin(slot, now)

    def _begin(self, slot: Slot, now: float) -> Step:
        """Fork a new worker."""
        slot = changed(
            slot,
            state=SlotState.STARTING,
            generation=slot.generation + 1,
            pid=None,
            kind="unknown",
            capacity=1,
            jobs_in_worker=0,
            obstacle=None,
            refresh_cause=None,
            pause_cause=None,
            blame=False,
            stack_shown=False,
            deadline=now + self._rules.start_timeout if self._rules.start_timeout else None,
        )
        return slot, [steps.ForkWorker(slot.generation)]

    def _forked(self, slot: Slot, event: steps.WorkerForked, now: float) -> Step:
        return changed(slot, pid=event.pid), []

    def _fork_failed(self, slot: Slot, event: steps.WorkerForkFailed, now: float) -> Step:
        expect(slot, event, SlotState.STARTING, SlotState.ENDING)
        if slot.state is SlotState.ENDING:
            return self._unforked(slot, steps.Unforked(), now)
        slot = changed(slot, cause=event.cause, next=Next.RESTART, failures=slot.failures + 1)
        return self._back_off(slot, event.cause, now)

    def _unforked(self, slot: Slot, event: steps.Unforked, now: float) -> Step:
        expect(slot, event, SlotState.ENDING)
        return self._swept(changed(slot, end_step=EndStep.DEAD), steps.TreeSwept(), now)

    def _back_off(self, slot: Slot, cause: WorkerEnd, now: float) -> Step:
        broken = slot.failures > len(BACKOFF_S)
        pause = BROKEN_RETRY_S if broken else BACKOFF_S[slot.failures - 1]
        state = SlotState.BROKEN if broken else SlotState.BACKOFF
        slot = changed(slot, state=state, deadline=now + pause, pid=None)
        return slot, [(SlotBroken if broken else StartFailed)(slot.name, cause, pause)]

    def _ready(self, slot: Slot, event: steps.WorkerLoaded, now: float) -> Step:
        if slot.state is SlotState.ENDING:
            return slot, []
        expect(slot, event, SlotState.STARTING)
        news: list[steps.SlotNews] = []
        if slot.next is Next.REFRESH and slot.cause is not None:
            refreshed = Refreshed(
                slot.name,
                slot.cause,
                end_s=slot.exited_at - slot.since,
                release_s=slot.released_at - slot.exited_at,
                start_s=now - slot.released_at,
                freed_mib=slot.freed_mib,
                verified=slot.verified,
            )
            news.append(refreshed)
        slot = changed(
            slot,
            state=SlotState.IDLE,
            kind=event.kind,
            capacity=max(1, event.capacity),
            deadline=None,
            cause=None,
            next=Next.RESTART,
            idle_slot_since=now if slot.idle_slot_since is None else slot.idle_slot_since,
        )
        slot, actions = self._rest(slot, now)
        return slot, [*news, *actions]

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _capacity(self, slot: Slot, event: steps.CapacityChanged, now: float) -> Step:
        return changed(slot, capacity=max(1, event.capacity)), []

    def _assign(self, slot: Slot, event: steps.Assign, now: float) -> Step:
        if slot.room < 1 or event.job in slot.running:
            raise illegal(slot, event)
        return changed(slot, state=SlotState.BUSY, running=(*slot.running, event.job), failures=0), []

    def _job_done(self, slot: Slot, event: steps.JobDone, now: float) -> Step:
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
        return self._leave(slot, now) if slot.pausing or slot.refresh_cause is not None else self._rest(slot, now)

    def _own_cause(self, slot: Slot, event: steps.JobDone) -> RefreshCause | None:
        if self._rules.refresh_worker:
            return RefreshCause(RefreshBy.EACH_JOB)
        if self._rules.refresh_on_oom and event.out_of_memory:
            return RefreshCause(RefreshBy.FULL_GPU)
        enough = self._rules.refresh_after_jobs and slot.jobs_in_worker >= self._rules.refresh_after_jobs
        return RefreshCause(RefreshBy.SOME_JOBS) if enough else None

    def _rest(self, slot: Slot, now: float) -> Step:
        """Measure the memory of the worker, which is idle now, if it can be a reason to refresh it."""
        actions = [steps.Measure()] if self._rules.refresh_above and slot.has_gpu else []
        return changed(slot, idle_since=now), actions

    def _cancel(self, slot: Slot, event: steps.CancelJob, now: float) -> Step:
        if event.job not in slot.running:
            raise illegal(slot, event)
        if event.job in slot.cancelling:
            return slot, []
        slot = changed(slot, cancelling=(*slot.cancelling, event.job))
        if slot.state is SlotState.ENDING:
            return slot, []
        if event.gently:
            first = slot.deadline if slot.deadline is not None else now + self._rules.grace
            return changed(slot, deadline=first), [steps.Send(wire.Cancel(event.job))]
        step = EndStep.STACK if event.stuck else EndStep.TERM
        return self._ending.start(slot, now, step, Next.PAUSE if slot.pausing else Next.RESTART, event.cause)

    def _memory_exceeded(self, slot: Slot, event: steps.MemoryExceeded, now: float) -> Step:
        if slot.state is not SlotState.IDLE or event.at < slot.idle_since:
            return slot, []
        if slot.jobs_in_worker:
            return self._leave(changed(slot, refresh_cause=RefreshCause(RefreshBy.HELD_MEMORY), since=now), now)
        # A new worker would hold as much: without a job in between, refreshing would never stop.
        news = [] if slot.refresh_above_warned else [HoldsWithoutJob(slot.name, event.mib, self._rules.refresh_above)]
        return changed(slot, refresh_above_warned=True), news

    # --- refresh, pause, stop -----------------------------------------------------------------------------------------

    def _refresh_requested(self, slot: Slot, event: steps.RefreshRequested, now: float) -> Step:
        expect(slot, event, *_ALIVE, SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD)
        if slot.state is SlotState.STARTING:  # it may be loading an outdated handler
            slot = changed(slot, refresh_cause=event.cause)
            return self._ending.start(slot, now, EndStep.TERM, Next.REFRESH, event.cause)
        if slot.state is SlotState.HELD:
            return self._released(slot, steps.Released(verified=False), now)
        if slot.state in _WAITING:
            return self._begin(slot, now)
        if slot.refresh_cause is not None:
            return slot, []
        slot = changed(slot, refresh_cause=event.cause, since=now)
        return self._leave(slot, now) if slot.state is SlotState.IDLE else (slot, [])

    def _leave(self, slot: Slot, now: float) -> Step:
        """Terminate the idle worker for the pending refresh or pause."""
        after = Next.PAUSE if slot.pausing else Next.REFRESH
        cause = slot.pause_cause or slot.refresh_cause
        ending, actions = self._ending.start(slot, now, EndStep.MEASURE, after, cause)
        return changed(ending, since=slot.since), actions  # a refresh counts from its request

    def _handler_changed(self, slot: Slot, event: steps.HandlerChanged, now: float) -> Step:
        # In ENDING too: the slot must not back off because of a handler that may be fixed.
        slot = changed(slot, failures=0)
        has_read = slot.state in (*_ALIVE, SlotState.BACKOFF, SlotState.BROKEN)
        return (
            self._refresh_requested(slot, steps.RefreshRequested(RefreshCause(RefreshBy.RELOAD)), now)
            if has_read
            else (slot, [])
        )

    def _pause_requested(self, slot: Slot, event: steps.PauseRequested, now: float) -> Step:
        if slot.pausing if event.spare else slot.state is SlotState.PARKED and not slot.spare:
            raise illegal(slot, event)
        slot = changed(slot, pause_cause=event.cause)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN, SlotState.PARKED):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=event.cause), []
        if slot.state in (SlotState.STARTING, SlotState.IDLE):
            step = EndStep.MEASURE if slot.state is SlotState.IDLE else EndStep.TERM
            return self._ending.start(slot, now, step, Next.PAUSE, event.cause)
        return slot, []

    def _resume_requested(self, slot: Slot, event: steps.ResumeRequested, now: float) -> Step:
        if not slot.pausing:
            raise illegal(slot, event)
        slot = changed(slot, idle_slot_since=None)
        if slot.state is not SlotState.PARKED:
            return changed(slot, pause_cause=None), []
        return self._begin(changed(slot, cause=None), now)

    def _stop(self, slot: Slot, event: steps.Stop, now: float) -> Step:
        if slot.state in (*_WAITING, SlotState.LOST):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=None, obstacle=None), []
        ends = slot.state is SlotState.ENDING and (slot.end_step is EndStep.DEAD or not event.at_once)
        if ends or slot.state is SlotState.RELEASING:
            return changed(slot, next=Next.PARK), []
        gently = EndStep.TERM if slot.running or slot.state is SlotState.STARTING else EndStep.MEASURE
        step = EndStep.KILL if event.at_once else gently
        return self._ending.start(slot, now, step, Next.PARK, EndedBecause.SUPERVISOR_STOPS)

    def _protocol_violated(self, slot: Slot, event: steps.ProtocolViolated, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.end_step >= EndStep.KILL:
            return slot, []
        expect(slot, event, *_ALIVE, SlotState.ENDING)
        slot = changed(slot, failures=slot.failures + (slot.state is SlotState.STARTING), blame=True)
        return self._ending.start(slot, now, EndStep.KILL, Next.RESTART, event.cause)

    def _template_died(self, slot: Slot, event: steps.TemplateDied, now: float) -> Step:
        if slot.state not in (*_ALIVE, SlotState.ENDING):
            return slot, []
        lost = lost_jobs(slot, EndedBecause.TEMPLATE_DIED, charged=False)
        counted = slot.state is SlotState.STARTING or (slot.state is SlotState.ENDING and slot.end_step is EndStep.DEAD)
        slot = changed(
            dead(slot, now),
            next=Next.PARK if slot.next is Next.PARK else Next.RESTART,
            cause=EndedBecause.TEMPLATE_DIED,
            restarts=slot.restarts + (not counted),
            since=now,
        )
        slot, actions = self._swept(slot, steps.TreeSwept(), now)
        return slot, [*lost, *actions]

    def _gpu_lost(self, slot: Slot, event: steps.GpuLost, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        if slot.state in _ALIVE:
            return self._ending.start(changed(slot, blame=True), now, EndStep.KILL, Next.LOST, event.cause)
        if slot.state is SlotState.ENDING:
            return changed(slot, next=slot.next if slot.next is Next.PARK else Next.LOST, cause=event.cause), []
        return changed(slot, state=SlotState.LOST, cause=event.cause, obstacle=None, deadline=None), []

    def _gpu_back(self, slot: Slot, event: steps.GpuBack, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.next is Next.LOST:
            return changed(slot, next=Next.RESTART), []
        if slot.state is not SlotState.LOST:
            return slot, []
        slot = changed(slot, state=SlotState.PARKED, next=Next.RESTART)
        if slot.pausing:
            return changed(slot, cause=slot.pause_cause), []
        return self._begin(changed(slot, restarts=slot.restarts + 1), now)

    def _remarked(self, slot: Slot, event: steps.Remarked, now: float) -> Step:
        return slot, [event.notice]

    def _tick(self, slot: Slot, event: steps.Tick, now: float) -> Step:
        if slot.deadline is None or now < slot.deadline:
            return slot, []
        if slot.state is SlotState.STARTING:
            late = StartTimedOut(self._rules.start_timeout)
            slot = changed(slot, failures=slot.failures + 1)
            return self._ending.start(slot, now, EndStep.STACK, Next.RESTART, late)
        if slot.state is SlotState.BUSY:
            after = Next.PAUSE if slot.pausing else Next.RESTART
            return self._ending.start(slot, now, EndStep.STACK, after, CancelIgnored(self._rules.grace))
        if slot.state is SlotState.ENDING:
            return self._ending.escalate(slot, now)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return self._begin(slot, now)
        return changed(slot, deadline=None), []

    # --- exit and release ---------------------------------------------------------------------------------------------

    def _measured(self, slot: Slot, event: steps.Measured, now: float) -> Step:
        waits = slot.state is SlotState.ENDING and slot.end_step is EndStep.MEASURE
        return self._ending.escalate(slot, now) if waits else (slot, [])

    def _died(self, slot: Slot, event: steps.WorkerExited, now: float) -> Step:
        expect(slot, event, *_ALIVE, SlotState.ENDING)
        return died(slot, event.end, now)

    def _swept(self, slot: Slot, event: steps.TreeSwept, now: float) -> Step:
        expect(slot, event, SlotState.ENDING)
        if slot.end_step is not EndStep.DEAD:
            raise illegal(slot, event)
        slot = changed(slot, deadline=None, obstacle=None)
        if slot.next is Next.PARK:  # no next worker needs the memory
            return changed(slot, state=SlotState.PARKED, cause=None), []
        if slot.next is Next.LOST:
            return changed(slot, state=SlotState.LOST), []
        return changed(slot, state=SlotState.RELEASING, exited_at=now), [steps.WatchRelease()]

    def _released(self, slot: Slot, event: steps.Released, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        slot = changed(slot, released_at=now, freed_mib=event.freed_mib, verified=event.verified, obstacle=None)
        if slot.next is Next.PARK:
            return changed(slot, state=SlotState.PARKED, cause=None), []
        if slot.pausing:
            return changed(slot, state=SlotState.PARKED, cause=slot.pause_cause), []
        if slot.next is Next.REFRESH:
            slot = changed(slot, refreshes=slot.refreshes + 1)
        elif slot.next is Next.PAUSE:  # resumed meanwhile
            slot = changed(slot, cause=None)
        elif slot.failures and slot.cause is not None:
            return self._back_off(slot, slot.cause, now)
        return self._begin(slot, now)

    def _held(self, slot: Slot, event: steps.MemoryHeld, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        state = SlotState.PARKED if slot.next is Next.PARK else SlotState.HELD
        return changed(slot, state=state, obstacle=event.obstacle), []
