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

from supervisor.cause import CancelIgnored, EndedBecause, RefreshBy, RefreshCause, StartTimedOut, WorkerEnd
from supervisor.notice import Refreshed, SlotBroken, StartFailed
from supervisor.pool.slots.ending import Ending, Step, changed, lost_jobs
from supervisor.pool.slots.rules import Rules, expect, illegal
from supervisor.pool.slots.service import Service
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
    Measured,
    MemoryHeld,
    Misbehaved,
    Overgrown,
    PauseAsked,
    Ready,
    RefreshAsked,
    Release,
    Released,
    Remarked,
    ResumeAsked,
    Start,
    Stop,
    Swept,
    TemplateGone,
    Tick,
    Unforked,
)

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses after the first, second, … start in a row that failed; after the last the slot is broken."""

BROKEN_RETRY_S = 300.0
"""A broken slot is tried again after this time: what broke it (a full disk, a missing file) may have been mended."""


_ALIVE = (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY)
_WAITING = (SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD, SlotState.PARKED)


class StateMachine:
    """The steps under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        """Follow ``rules``."""
        self._rules = rules
        self._ending = Ending(rules.grace)
        self._service = service = Service(rules, self._ending)
        self._steps: dict[type[Event], Callable[[Slot, Any, float], Step]] = {
            Start: self._start,
            Forked: self._forked,
            ForkFailed: self._fork_failed,
            Unforked: self._unforked,
            Ready: self._ready,
            CapacityChanged: service.capacity,
            Assign: service.assign,
            JobDone: service.job_done,
            CancelJob: service.cancel,
            RefreshAsked: self._refresh_asked,
            HandlerChanged: self._handler_changed,
            PauseAsked: self._pause_asked,
            ResumeAsked: self._resume_asked,
            Misbehaved: self._misbehaved,
            Measured: self._measured,
            Overgrown: service.overgrown,
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
        expect(slot, event, *_WAITING)
        timeout = self._rules.start_timeout
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
            deadline=now + timeout if timeout else None,
        )
        return slot, [ForkWorker(slot.generation)]

    def _forked(self, slot: Slot, event: Forked, now: float) -> Step:
        return changed(slot, pid=event.pid), []

    def _fork_failed(self, slot: Slot, event: ForkFailed, now: float) -> Step:
        expect(slot, event, SlotState.STARTING, SlotState.ENDING)
        if slot.state is SlotState.ENDING:
            return self._unforked(slot, Unforked(), now)
        slot = changed(slot, cause=event.cause, next=Next.RESTART, failures=slot.failures + 1)
        return self._back_off(slot, event.cause, now)

    def _unforked(self, slot: Slot, event: Unforked, now: float) -> Step:
        expect(slot, event, SlotState.ENDING)
        return self._swept(changed(slot, end_step=EndStep.DEAD), Swept(), now)

    def _ready(self, slot: Slot, event: Ready, now: float) -> Step:
        if slot.state is SlotState.ENDING:
            return slot, []
        expect(slot, event, SlotState.STARTING)
        actions: list[Action] = []
        if slot.next is Next.REFRESH and slot.cause is not None:
            actions.append(
                Refreshed(
                    slot=slot.name,
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
            kind=event.kind,
            capacity=max(1, event.capacity),
            deadline=None,
            cause=None,
            next=Next.RESTART,
            idle_slot_since=now if slot.idle_slot_since is None else slot.idle_slot_since,
        )
        slot, more = self._service.rest(slot, now)
        return slot, actions + more

    def _refresh_asked(self, slot: Slot, event: RefreshAsked, now: float) -> Step:
        expect(slot, event, *_ALIVE, SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD)
        if slot.state is SlotState.STARTING:  # it loads what is out of date by now
            slot = changed(slot, refresh_cause=event.cause)
            return self._ending.start(slot, now, EndStep.TERM, Next.REFRESH, event.cause)
        if slot.state is SlotState.HELD:
            return self._released(slot, Released(verified=False), now)
        if slot.state in _WAITING:
            return self._start(slot, Start(), now)
        if slot.refresh_cause is not None:
            return slot, []
        slot = changed(slot, refresh_cause=event.cause, since=now)
        return self._service.leave(slot, now) if slot.state is SlotState.IDLE else (slot, [])

    def _handler_changed(self, slot: Slot, event: HandlerChanged, now: float) -> Step:
        # Also one that ends: it must not back off because of a handler that may be mended.
        slot = changed(slot, failures=0)
        has_read = slot.state in (*_ALIVE, SlotState.BACKOFF, SlotState.BROKEN)
        return self._refresh_asked(slot, RefreshAsked(RefreshCause(RefreshBy.RELOAD)), now) if has_read else (slot, [])

    def _pause_asked(self, slot: Slot, event: PauseAsked, now: float) -> Step:
        if slot.pausing if event.spare else slot.state is SlotState.PARKED and not slot.spare:
            raise illegal(slot, event)
        slot = changed(slot, pause_cause=event.cause)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN, SlotState.PARKED):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=event.cause), []
        if slot.state in (SlotState.STARTING, SlotState.IDLE):
            step = EndStep.MEASURE if slot.state is SlotState.IDLE else EndStep.TERM
            return self._ending.start(slot, now, step, Next.PAUSE, event.cause)
        return slot, []

    def _resume_asked(self, slot: Slot, event: ResumeAsked, now: float) -> Step:
        if not slot.pausing:
            raise illegal(slot, event)
        slot = changed(slot, idle_slot_since=None)
        if slot.state is not SlotState.PARKED:
            return changed(slot, pause_cause=None), []
        return self._start(changed(slot, cause=None), Start(), now)

    def _misbehaved(self, slot: Slot, event: Misbehaved, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.end_step >= EndStep.KILL:
            return slot, []
        expect(slot, event, *_ALIVE, SlotState.ENDING)
        failures = slot.failures + (slot.state is SlotState.STARTING)
        return self._ending.start(slot, now, EndStep.KILL, Next.RESTART, event.cause, failures=failures, blame=True)

    def _measured(self, slot: Slot, event: Measured, now: float) -> Step:
        return self._ending.measured(slot, now)

    def _died(self, slot: Slot, event: Died, now: float) -> Step:
        expect(slot, event, *_ALIVE, SlotState.ENDING)
        return self._ending.died(slot, event.end, now)

    def _swept(self, slot: Slot, event: Swept, now: float) -> Step:
        expect(slot, event, SlotState.ENDING)
        if slot.end_step is not EndStep.DEAD:
            raise illegal(slot, event)
        slot = changed(slot, deadline=None, obstacle=None)
        if slot.next is Next.PARK:  # nobody comes after it who would need the memory
            return changed(slot, state=SlotState.PARKED, cause=None), []
        if slot.next is Next.LOST:
            return changed(slot, state=SlotState.LOST), []
        return changed(slot, state=SlotState.RELEASING, gone_at=now), [Release()]

    def _released(self, slot: Slot, event: Released, now: float) -> Step:
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
        return self._start(changed(slot, state=SlotState.PARKED), Start(), now)

    def _held(self, slot: Slot, event: MemoryHeld, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        state = SlotState.PARKED if slot.next is Next.PARK else SlotState.HELD
        return changed(slot, state=state, obstacle=event.obstacle), []

    def _template_gone(self, slot: Slot, event: TemplateGone, now: float) -> Step:
        if slot.state not in (*_ALIVE, SlotState.ENDING):
            return slot, []
        lost = lost_jobs(slot, EndedBecause.TEMPLATE_DIED, charged=False)
        restarts = slot.restarts + (slot.state is not SlotState.STARTING and slot.end_step is not EndStep.DEAD)
        slot = changed(
            slot,
            state=SlotState.ENDING,
            end_step=EndStep.DEAD,
            next=Next.PARK if slot.next is Next.PARK else Next.RESTART,
            cause=EndedBecause.TEMPLATE_DIED,
            pid=None,
            running=(),
            cancelling=(),
            restarts=restarts,
            since=now,
            idle_slot_since=now if slot.running else slot.idle_slot_since,
        )
        slot, actions = self._swept(slot, Swept(), now)
        return slot, [*lost, *actions]

    def _gpu_lost(self, slot: Slot, event: GpuLost, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        if slot.state in _ALIVE:
            return self._ending.start(slot, now, EndStep.KILL, Next.LOST, event.cause, blame=True)
        if slot.state is SlotState.ENDING:
            return changed(slot, next=slot.next if slot.next is Next.PARK else Next.LOST, cause=event.cause), []
        return changed(slot, state=SlotState.LOST, cause=event.cause, obstacle=None, deadline=None), []

    def _gpu_back(self, slot: Slot, event: GpuBack, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.next is Next.LOST:
            return changed(slot, next=Next.RESTART), []
        if slot.state is not SlotState.LOST:
            return slot, []
        slot = changed(slot, state=SlotState.PARKED, next=Next.RESTART)
        if slot.pausing:
            return changed(slot, cause=slot.pause_cause), []
        return self._start(changed(slot, restarts=slot.restarts + 1), Start(), now)

    def _remarked(self, slot: Slot, event: Remarked, now: float) -> Step:
        return slot, [event.notice]

    def _stop(self, slot: Slot, event: Stop, now: float) -> Step:
        if slot.state in (*_WAITING, SlotState.LOST):
            return changed(slot, state=SlotState.PARKED, deadline=None, cause=None, obstacle=None), []
        if slot.state is SlotState.RELEASING:
            return changed(slot, next=Next.PARK), []
        if slot.state is SlotState.ENDING and (slot.end_step is EndStep.DEAD or not event.at_once):
            return changed(slot, next=Next.PARK), []
        if event.at_once:
            return self._ending.start(slot, now, EndStep.KILL, Next.PARK, EndedBecause.SUPERVISOR_STOPS)
        step = EndStep.TERM if slot.running or slot.state is SlotState.STARTING else EndStep.MEASURE
        return self._ending.start(slot, now, step, Next.PARK, EndedBecause.SUPERVISOR_STOPS)

    def _tick(self, slot: Slot, event: Tick, now: float) -> Step:
        if slot.deadline is None or now < slot.deadline:
            return slot, []
        if slot.state is SlotState.STARTING:
            late = StartTimedOut(self._rules.start_timeout)
            return self._ending.start(slot, now, EndStep.STACK, Next.RESTART, late, failures=slot.failures + 1)
        if slot.state is SlotState.BUSY:
            after = Next.PAUSE if slot.pausing else Next.RESTART
            return self._ending.start(slot, now, EndStep.STACK, after, CancelIgnored(self._rules.grace))
        if slot.state is SlotState.ENDING:
            return self._ending.escalate(slot, now)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return self._start(slot, Start(), now)
        return changed(slot, deadline=None), []

    def _back_off(self, slot: Slot, cause: WorkerEnd, now: float) -> Step:
        broken = slot.failures > len(BACKOFF_S)
        pause = BROKEN_RETRY_S if broken else BACKOFF_S[slot.failures - 1]
        state = SlotState.BROKEN if broken else SlotState.BACKOFF
        slot = changed(slot, state=state, deadline=now + pause, pid=None)
        return slot, [(SlotBroken if broken else StartFailed)(slot.name, cause, pause)]
