"""The slots' state machine, pure; run by the supervisor: ``step(slot, event, now) -> (slot, actions)``.

Nothing here reads a clock, a pipe or a process: the pool turns those into events and carries out the actions.

::

    parked ──Start──▶ starting ──Ready──▶ idle ◀──JobDone── busy
                       ▲  │                │  └──Assign─────▶ │
                       │  └─Died───────────┼──────────────────┤ refresh, cancel, crash, GPU lost
                       │                   ▼                  ▼
       backoff, broken ◀── releasing ◀── ending (measure → asked → term → kill → dead) ──▶ lost (comes back with its GPU)
                              └─▶ held (memory still in use; comes back when it clears)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from supervisor.errors import SuperviseError
from supervisor.pool.slots.ending import Ending, Step, changed, lost_jobs
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.pool.slots.steps import (
    Action,
    Assign,
    CancelJob,
    CapacityChanged,
    Died,
    Event,
    Forked,
    ForkFailed,
    ForkWorker,
    GpuBack,
    GpuLost,
    HandlerChanged,
    JobDone,
    Measure,
    Measured,
    MemoryHeld,
    Misbehaved,
    Overgrown,
    PauseAsked,
    Ready,
    RefreshAsked,
    RefreshReport,
    Release,
    Released,
    Remarked,
    ResumeAsked,
    Start,
    StartFailed,
    Stop,
    Swept,
    TellCancel,
    TemplateGone,
    Tick,
    Warn,
)

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses after the first, second, … start in a row that failed; after the last the slot is broken."""

BROKEN_RETRY_S = 300.0
"""A broken slot is tried again after this time: what broke it (a full disk, a missing file) may have been mended."""


class IllegalStepError(SuperviseError):
    """The event cannot happen in the slot's state: a fault of this program, or of a worker that breaks the protocol."""


class Rules(msgspec.Struct, frozen=True):
    """The settings that steps depend on, in seconds and MiB; 0 turns ``start_timeout`` and the two numbers for refreshes off."""

    grace: float = 5.0
    start_timeout: float = 0.0
    refresh_worker: bool = False
    refresh_after_jobs: int = 0
    refresh_above: int = 0
    refresh_on_oom: bool = False


_ALIVE = (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY)
_WAITING = (SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD, SlotState.PARKED)


class Machine:
    """The steps under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        """Follow ``rules``."""
        self._rules = rules
        self._ending = Ending(rules.grace)
        self._steps: dict[type[Event], Callable[[Slot, Any, float], Step]] = {
            Start: self._start,
            Forked: self._forked,
            ForkFailed: self._fork_failed,
            Ready: self._ready,
            CapacityChanged: self._capacity,
            Assign: self._assign,
            JobDone: self._job_done,
            CancelJob: self._cancel,
            RefreshAsked: self._refresh_asked,
            HandlerChanged: self._handler_changed,
            PauseAsked: self._pause_asked,
            ResumeAsked: self._resume_asked,
            Misbehaved: self._misbehaved,
            Measured: self._measured,
            Overgrown: self._overgrown,
            Died: self._died,
            Swept: self._swept,
            Released: self._released,
            MemoryHeld: self._held,
            TemplateGone: self._template_gone,
            GpuLost: self._gpu_lost,
            GpuBack: self._gpu_back,
            Remarked: self._remarked,
            Stop: self._stop,
            Tick: self._tick,
        }

    def step(self, slot: Slot, event: Event, now: float) -> Step:
        """The slot after ``event``, and what is to be done.

        Raises:
            IllegalStepError: the event cannot happen in this state.
        """
        return self._steps[type(event)](slot, event, now)

    def _start(self, slot: Slot, event: Start, now: float) -> Step:
        _expect(slot, event, *_WAITING)
        timeout = self._rules.start_timeout
        slot = changed(
            slot,
            state=SlotState.STARTING,
            generation=slot.generation + 1,
            pid=None,
            capacity=1,
            jobs_in_worker=0,
            refresh_cause=None,
            blame=False,
            stack_shown=False,
            pausing=False,
            spare=False,
            put_off=None,
            deadline=now + timeout if timeout else None,
        )
        return slot, [ForkWorker(slot.generation)]

    def _forked(self, slot: Slot, event: Forked, now: float) -> Step:
        return changed(slot, pid=event.pid), []

    def _fork_failed(self, slot: Slot, event: ForkFailed, now: float) -> Step:
        _expect(slot, event, SlotState.STARTING, SlotState.ENDING)
        if slot.state is SlotState.ENDING:
            return self._swept(changed(slot, end_step=EndStep.DEAD), Swept(), now)
        slot = changed(slot, cause=f"could not be forked: {event.error}", next=Next.RESTART)
        return self._back_off(changed(slot, failures=slot.failures + 1), now)

    def _ready(self, slot: Slot, event: Ready, now: float) -> Step:
        if slot.state is SlotState.ENDING:
            return slot, []
        _expect(slot, event, SlotState.STARTING)
        actions: list[Action] = []
        if slot.next is Next.REFRESH and slot.cause is not None:
            actions.append(
                RefreshReport(
                    cause=slot.cause,
                    end_s=slot.gone_at - slot.since,
                    release_s=slot.released_at - slot.gone_at,
                    start_s=now - slot.released_at,
                    freed_mib=slot.freed_mib,
                    verified=slot.verified,
                )
            )
        slot = changed(
            slot,
            state=SlotState.IDLE,
            capacity=max(1, event.capacity),
            deadline=None,
            cause=None,
            next=Next.RESTART,
            free_since=now if slot.free_since is None else slot.free_since,
        )
        slot, more = self._rest(slot, now)
        return slot, actions + more

    def _capacity(self, slot: Slot, event: CapacityChanged, now: float) -> Step:
        return changed(slot, capacity=max(1, event.capacity)), []

    def _assign(self, slot: Slot, event: Assign, now: float) -> Step:
        if slot.room < 1 or event.job in slot.running:
            raise _illegal(slot, event)
        return changed(slot, state=SlotState.BUSY, running=(*slot.running, event.job), failures=0), []

    def _job_done(self, slot: Slot, event: JobDone, now: float) -> Step:
        if event.job not in slot.running:
            raise _illegal(slot, event)
        running = tuple(job for job in slot.running if job != event.job)
        cancelling = tuple(job for job in slot.cancelling if job != event.job) if slot.cancelling else ()
        slot = changed(
            slot,
            running=running,
            cancelling=cancelling,
            jobs=slot.jobs + 1,
            jobs_in_worker=slot.jobs_in_worker + 1,
            free_since=now,
        )
        if slot.state is SlotState.ENDING:
            return slot, []
        slot = changed(slot, deadline=slot.deadline if cancelling else None)
        wanted = event.refresh or self._own_cause(slot, event)
        if slot.pausing and slot.put_off is None and wanted is not None:
            slot = changed(slot, put_off=wanted, since=now)
        cause = slot.refresh_cause or wanted
        if cause is not None and slot.refresh_cause is None:
            slot = changed(slot, refresh_cause=cause, since=now)
        if running:
            return slot, []
        slot = changed(slot, state=SlotState.IDLE)
        return self._begin_refresh(slot, now) if cause is not None else self._rest(slot, now)

    def _own_cause(self, slot: Slot, event: JobDone) -> str | None:
        if self._rules.refresh_worker:
            return "--refresh-worker"
        if self._rules.refresh_on_oom and event.out_of_memory:
            return "a full GPU (--refresh-on-oom)"
        after = self._rules.refresh_after_jobs
        if after and slot.jobs_in_worker >= after:
            return "--refresh-after-jobs"
        return None

    def _rest(self, slot: Slot, now: float) -> Step:
        """The worker is idle: have what it holds read now, where that can be a reason to refresh it."""
        actions: list[Action] = [Measure()] if self._rules.refresh_above and slot.has_gpu else []
        return changed(slot, idle_since=now), actions

    def _overgrown(self, slot: Slot, event: Overgrown, now: float) -> Step:
        if slot.state is not SlotState.IDLE or event.at < slot.idle_since:
            return slot, []
        if slot.jobs_in_worker:
            return self._begin_refresh(changed(slot, refresh_cause="--refresh-above", since=now), now)
        # A fresh worker would hold as much, and so would the next: each may be refreshed after a job only.
        if slot.told_above:
            return slot, []
        limit = f"more than --refresh-above {self._rules.refresh_above}"
        return changed(slot, told_above=True), [Warn(f"holds {event.mib} MiB without having run a job, {limit}")]

    def _cancel(self, slot: Slot, event: CancelJob, now: float) -> Step:
        if event.job not in slot.running:
            raise _illegal(slot, event)
        if event.job in slot.cancelling:
            return slot, []
        slot = changed(slot, cancelling=(*slot.cancelling, event.job))
        if slot.state is SlotState.ENDING:
            return slot, []
        if event.gently:
            first = slot.deadline if slot.deadline is not None else now + self._rules.grace
            return changed(slot, deadline=first), [TellCancel(event.job)]
        step = EndStep.STACK if event.stuck else EndStep.TERM
        return self._ending.begin(slot, now, step, Next.PAUSE if slot.pausing else Next.RESTART, event.cause)

    def _refresh_asked(self, slot: Slot, event: RefreshAsked, now: float) -> Step:
        _expect(slot, event, *_ALIVE, SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD)
        if slot.state is SlotState.STARTING:  # it loads what is out of date by now
            return self._ending.begin(
                changed(slot, refresh_cause=event.cause), now, EndStep.TERM, Next.REFRESH, event.cause
            )
        if slot.state is SlotState.HELD:
            return self._released(slot, Released(verified=False), now)
        if slot.state in _WAITING:
            return self._start(slot, Start(), now)
        if slot.pausing and slot.put_off is None:
            return changed(slot, put_off=event.cause, since=now), []
        if slot.refresh_cause is not None:
            return slot, []
        slot = changed(slot, refresh_cause=event.cause, since=now)
        return self._begin_refresh(slot, now) if slot.state is SlotState.IDLE else (slot, [])

    def _handler_changed(self, slot: Slot, event: HandlerChanged, now: float) -> Step:
        # Also one that ends: it must not back off because of a handler that may be mended.
        slot = changed(slot, failures=0)
        has_read = slot.state in (*_ALIVE, SlotState.BACKOFF, SlotState.BROKEN)
        return self._refresh_asked(slot, RefreshAsked("a reload"), now) if has_read else (slot, [])

    def _pause_asked(self, slot: Slot, event: PauseAsked, now: float) -> Step:
        if slot.pausing if event.spare else slot.state is SlotState.PARKED and not slot.spare:
            raise _illegal(slot, event)
        put_off = slot.put_off if slot.pausing else slot.refresh_cause
        slot = changed(slot, pausing=True, spare=event.spare, put_off=put_off, refresh_cause=event.cause)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN, SlotState.PARKED):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=event.cause), []
        if slot.state in (SlotState.STARTING, SlotState.IDLE):
            step = EndStep.MEASURE if slot.state is SlotState.IDLE else EndStep.TERM
            return self._ending.begin(slot, now, step, Next.PAUSE, event.cause)
        return slot, []

    def _resume_asked(self, slot: Slot, event: ResumeAsked, now: float) -> Step:
        if not slot.pausing:
            raise _illegal(slot, event)
        slot = changed(slot, free_since=None)
        if slot.state is not SlotState.PARKED:
            return changed(slot, pausing=False, spare=False, put_off=None, refresh_cause=slot.put_off), []
        return self._start(changed(slot, cause=None), Start(), now)

    def _misbehaved(self, slot: Slot, event: Misbehaved, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.end_step >= EndStep.KILL:
            return slot, []
        _expect(slot, event, *_ALIVE, SlotState.ENDING)
        failures = slot.failures + (slot.state is SlotState.STARTING)
        return self._ending.begin(slot, now, EndStep.KILL, Next.RESTART, event.cause, failures=failures, blame=True)

    def _measured(self, slot: Slot, event: Measured, now: float) -> Step:
        return self._ending.measured(slot, now)

    def _died(self, slot: Slot, event: Died, now: float) -> Step:
        _expect(slot, event, *_ALIVE, SlotState.ENDING)
        return self._ending.died(slot, event.how, now)

    def _swept(self, slot: Slot, event: Swept, now: float) -> Step:
        _expect(slot, event, SlotState.ENDING)
        if slot.end_step is not EndStep.DEAD:
            raise _illegal(slot, event)
        if slot.next is Next.PARK:  # nobody comes after it who would need the memory
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=None), []
        if slot.next is Next.LOST:
            return changed(slot, state=SlotState.LOST, deadline=None), []
        return changed(slot, state=SlotState.RELEASING, gone_at=now, deadline=None), [Release()]

    def _released(self, slot: Slot, event: Released, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        _expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        slot = changed(slot, released_at=now, freed_mib=event.freed_mib, verified=event.verified)
        if slot.next is Next.PARK:
            return changed(slot, state=SlotState.PARKED, cause=None), []
        if slot.pausing:
            return changed(slot, state=SlotState.PARKED, cause=slot.refresh_cause), []
        if slot.next is Next.REFRESH:
            # Memory that stayed in use for a while became the slot's cause; the report is to name what asked for the refresh.
            slot = changed(slot, refreshes=slot.refreshes + 1, cause=slot.refresh_cause or slot.cause)
        elif slot.next is Next.PAUSE:  # resumed meanwhile
            slot = changed(slot, cause=None)
        elif slot.failures:
            return self._back_off(slot, now)
        return self._start(changed(slot, state=SlotState.PARKED), Start(), now)

    def _held(self, slot: Slot, event: MemoryHeld, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        _expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        if slot.next is Next.PARK:
            return changed(slot, state=SlotState.PARKED, cause=event.cause), []
        return changed(slot, state=SlotState.HELD, cause=event.cause), []

    def _template_gone(self, slot: Slot, event: TemplateGone, now: float) -> Step:
        if slot.state not in (*_ALIVE, SlotState.ENDING):
            return slot, []
        lost = lost_jobs(slot, "was ended because the template process died", charged=False)
        restarts = slot.restarts + (slot.state is not SlotState.STARTING and slot.end_step is not EndStep.DEAD)
        slot = changed(
            slot,
            state=SlotState.ENDING,
            end_step=EndStep.DEAD,
            next=Next.PARK if slot.next is Next.PARK else Next.RESTART,
            cause="the template process died",
            pid=None,
            running=(),
            cancelling=(),
            restarts=restarts,
            since=now,
            free_since=now if slot.running else slot.free_since,
        )
        slot, actions = self._swept(slot, Swept(), now)
        return slot, [*lost, *actions]

    def _gpu_lost(self, slot: Slot, event: GpuLost, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        if slot.state in _ALIVE:
            return self._ending.begin(slot, now, EndStep.KILL, Next.LOST, event.cause, blame=True)
        if slot.state is SlotState.ENDING:
            return changed(slot, next=slot.next if slot.next is Next.PARK else Next.LOST, cause=event.cause), []
        return changed(slot, state=SlotState.LOST, cause=event.cause, deadline=None), []

    def _gpu_back(self, slot: Slot, event: GpuBack, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.next is Next.LOST:
            return changed(slot, next=Next.RESTART), []
        if slot.state is not SlotState.LOST:
            return slot, []
        slot = changed(slot, state=SlotState.PARKED, next=Next.RESTART)
        if slot.pausing:
            return changed(slot, cause=slot.refresh_cause), []
        return self._start(changed(slot, restarts=slot.restarts + 1), Start(), now)

    def _remarked(self, slot: Slot, event: Remarked, now: float) -> Step:
        return slot, [Warn(event.text)]

    def _stop(self, slot: Slot, event: Stop, now: float) -> Step:
        if slot.state in (*_WAITING, SlotState.LOST):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=None), []
        if slot.state is SlotState.RELEASING:
            return changed(slot, next=Next.PARK), []
        if slot.state is SlotState.ENDING and (slot.end_step is EndStep.DEAD or not event.at_once):
            return changed(slot, next=Next.PARK), []
        if event.at_once:
            return self._ending.begin(slot, now, EndStep.KILL, Next.PARK, "the supervisor stops")
        step = EndStep.TERM if slot.running or slot.state is SlotState.STARTING else EndStep.MEASURE
        return self._ending.begin(slot, now, step, Next.PARK, "the supervisor stops")

    def _tick(self, slot: Slot, event: Tick, now: float) -> Step:
        if slot.deadline is None or now < slot.deadline:
            return slot, []
        if slot.state is SlotState.STARTING:
            cause = f"did not become ready within {self._rules.start_timeout:g} s (--start-timeout)"
            return self._ending.begin(slot, now, EndStep.STACK, Next.RESTART, cause, failures=slot.failures + 1)
        if slot.state is SlotState.BUSY:
            cause = f"did not stop a cancelled job within {self._rules.grace:g} s (--grace)"
            return self._ending.begin(slot, now, EndStep.STACK, Next.PAUSE if slot.pausing else Next.RESTART, cause)
        if slot.state is SlotState.ENDING:
            return self._ending.go_on(slot, now)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return self._start(slot, Start(), now)
        return changed(slot, deadline=None), []

    def _begin_refresh(self, slot: Slot, now: float) -> Step:
        after = Next.PAUSE if slot.pausing else Next.REFRESH
        return self._ending.begin(slot, now, EndStep.MEASURE, after, slot.refresh_cause or "", since=slot.since)

    def _back_off(self, slot: Slot, now: float) -> Step:
        broken = slot.failures > len(BACKOFF_S)
        pause = BROKEN_RETRY_S if broken else BACKOFF_S[slot.failures - 1]
        state = SlotState.BROKEN if broken else SlotState.BACKOFF
        slot = changed(slot, state=state, deadline=now + pause, pid=None)
        return slot, [StartFailed(slot.cause or "died", pause, broken)]


def _expect(slot: Slot, event: Event, *states: SlotState) -> None:
    if slot.state not in states:
        raise _illegal(slot, event)


def _illegal(slot: Slot, event: Event) -> IllegalStepError:
    return IllegalStepError(f"slot {slot.name} is {slot.state.value}: {type(event).__name__} cannot happen ({event})")
