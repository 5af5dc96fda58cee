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

import signal
from collections.abc import Callable
from typing import Any

import msgspec

from supervisor.errors import SuperviseError
from supervisor.pool.slot import EndStep, Next, Slot, SlotState
from supervisor.pool.steps import (
    Action,
    Assign,
    CancelJob,
    CapacityChanged,
    Died,
    EndTree,
    Event,
    Forked,
    ForkFailed,
    ForkWorker,
    GpuBack,
    GpuLost,
    JobDone,
    JobLost,
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
    SendSignal,
    ShowStack,
    Start,
    StartFailed,
    Stop,
    Swept,
    TellCancel,
    TellExit,
    TemplateGone,
    Tick,
    Warn,
    Withdraw,
)

ASK_S = 1.0
"""How long a worker that was asked to exit may take before SIGTERM: it only has to flush."""

MEASURE_S = 0.05
"""How long the end of a worker waits for a reading of the memory it holds: NVML answers in 1 to 5 ms, or is stuck."""

STACK_S = 0.1
"""How long a worker that is stuck gets to write its stacks, before the signal that ends it."""

KILL_S = 10.0
"""How long after SIGKILL a worker that is still there is spoken of: a call into a driver can hold a process in the kernel."""

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


Step = tuple[Slot, list[Action]]

_ALIVE = (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY)
_WAITING = (SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD, SlotState.PARKED)


class Machine:
    """The steps under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        """Follow ``rules``."""
        self._rules = rules
        self._steps: dict[type[Event], Callable[[Slot, Any, float], Step]] = {
            Start: self._start,
            Forked: self._forked,
            ForkFailed: self._fork_failed,
            Ready: self._ready,
            CapacityChanged: self._capacity,
            Assign: self._assign,
            Withdraw: self._withdraw,
            JobDone: self._job_done,
            CancelJob: self._cancel,
            RefreshAsked: self._refresh_asked,
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
        slot = _with(
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
            put_off=None,
            deadline=now + timeout if timeout else None,
        )
        return slot, [ForkWorker(slot.generation)]

    def _forked(self, slot: Slot, event: Forked, now: float) -> Step:
        return _with(slot, pid=event.pid), []

    def _fork_failed(self, slot: Slot, event: ForkFailed, now: float) -> Step:
        _expect(slot, event, SlotState.STARTING, SlotState.ENDING)
        if slot.state is SlotState.ENDING:
            return self._swept(_with(slot, end_step=EndStep.DEAD), Swept(), now)
        slot = _with(slot, cause=f"could not be forked: {event.error}", next=Next.RESTART)
        return self._back_off(_with(slot, failures=slot.failures + 1), now)

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
        slot = _with(
            slot,
            state=SlotState.IDLE,
            capacity=max(1, event.capacity),
            deadline=None,
            cause=None,
            next=Next.RESTART,
        )
        slot, more = self._rest(slot, now)
        return slot, actions + more

    def _capacity(self, slot: Slot, event: CapacityChanged, now: float) -> Step:
        return _with(slot, capacity=max(1, event.capacity)), []

    def _assign(self, slot: Slot, event: Assign, now: float) -> Step:
        if slot.room < 1 or event.job in slot.running:
            raise _illegal(slot, event)
        return _with(slot, state=SlotState.BUSY, running=(*slot.running, event.job), failures=0), []

    def _withdraw(self, slot: Slot, event: Withdraw, now: float) -> Step:
        if event.job not in slot.running:
            raise _illegal(slot, event)
        running = tuple(job for job in slot.running if job != event.job)
        slot = _with(slot, running=running)
        return (slot if running or slot.state is not SlotState.BUSY else _with(slot, state=SlotState.IDLE)), []

    def _job_done(self, slot: Slot, event: JobDone, now: float) -> Step:
        if event.job not in slot.running:
            raise _illegal(slot, event)
        running = tuple(job for job in slot.running if job != event.job)
        cancelling = tuple(job for job in slot.cancelling if job != event.job) if slot.cancelling else ()
        slot = _with(
            slot,
            running=running,
            cancelling=cancelling,
            jobs=slot.jobs + 1,
            jobs_in_worker=slot.jobs_in_worker + 1,
        )
        if slot.state is SlotState.ENDING:
            return slot, []
        slot = _with(slot, deadline=slot.deadline if cancelling else None)
        wanted = event.refresh or self._own_cause(slot, event)
        if slot.pausing and slot.put_off is None and wanted is not None:
            slot = _with(slot, put_off=wanted, since=now)
        cause = slot.refresh_cause or wanted
        if cause is not None and slot.refresh_cause is None:
            slot = _with(slot, refresh_cause=cause, since=now)
        if running:
            return slot, []
        slot = _with(slot, state=SlotState.IDLE)
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
        return _with(slot, idle_since=now), actions

    def _overgrown(self, slot: Slot, event: Overgrown, now: float) -> Step:
        if slot.state is not SlotState.IDLE or event.at < slot.idle_since:
            return slot, []
        if slot.jobs_in_worker:
            return self._begin_refresh(_with(slot, refresh_cause="--refresh-above", since=now), now)
        # A fresh worker would hold as much, and so would the next: each may be refreshed after a job only.
        if slot.told_above:
            return slot, []
        limit = f"more than --refresh-above {self._rules.refresh_above}"
        return _with(slot, told_above=True), [Warn(f"holds {event.mib} MiB without having run a job, {limit}")]

    def _cancel(self, slot: Slot, event: CancelJob, now: float) -> Step:
        if event.job not in slot.running:
            raise _illegal(slot, event)
        if event.job in slot.cancelling:
            return slot, []
        slot = _with(slot, cancelling=(*slot.cancelling, event.job))
        if slot.state is SlotState.ENDING:
            return slot, []
        if event.gently:
            first = slot.deadline if slot.deadline is not None else now + self._rules.grace
            return _with(slot, deadline=first), [TellCancel(event.job)]
        step = EndStep.STACK if event.stuck else EndStep.TERM
        return self._end(slot, now, step, Next.PAUSE if slot.pausing else Next.RESTART, event.cause)

    def _refresh_asked(self, slot: Slot, event: RefreshAsked, now: float) -> Step:
        _expect(slot, event, *_ALIVE, SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD)
        if slot.state is SlotState.STARTING:  # it loads what is out of date by now
            return self._end(_with(slot, refresh_cause=event.cause), now, EndStep.TERM, Next.REFRESH, event.cause)
        if slot.state is SlotState.HELD:
            return self._released(slot, Released(verified=False), now)
        if slot.state in _WAITING:
            return self._start(slot, Start(), now)
        if slot.refresh_cause is not None:
            return slot, []
        slot = _with(slot, refresh_cause=event.cause, since=now)
        return self._begin_refresh(slot, now) if slot.state is SlotState.IDLE else (slot, [])

    def _pause_asked(self, slot: Slot, event: PauseAsked, now: float) -> Step:
        if slot.state is SlotState.PARKED:
            raise _illegal(slot, event)
        put_off = slot.put_off if slot.pausing else slot.refresh_cause
        slot = _with(slot, pausing=True, put_off=put_off, refresh_cause=event.cause)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return _with(slot, state=SlotState.PARKED, deadline=None, cause=event.cause), []
        if slot.state in (SlotState.STARTING, SlotState.IDLE):
            step = EndStep.MEASURE if slot.state is SlotState.IDLE else EndStep.TERM
            return self._end(slot, now, step, Next.PAUSE, event.cause)
        return slot, []

    def _resume_asked(self, slot: Slot, event: ResumeAsked, now: float) -> Step:
        if not slot.pausing:
            raise _illegal(slot, event)
        if slot.state is not SlotState.PARKED:
            return _with(slot, pausing=False, put_off=None, refresh_cause=slot.put_off), []
        return self._start(slot, Start(), now)

    def _misbehaved(self, slot: Slot, event: Misbehaved, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.end_step >= EndStep.KILL:
            return slot, []
        _expect(slot, event, *_ALIVE, SlotState.ENDING)
        failures = slot.failures + (slot.state is SlotState.STARTING)
        return self._end(slot, now, EndStep.KILL, Next.RESTART, event.cause, failures=failures, blame=True)

    def _measured(self, slot: Slot, event: Measured, now: float) -> Step:
        if slot.state is not SlotState.ENDING or slot.end_step is not EndStep.MEASURE:
            return slot, []
        return _with(slot, end_step=EndStep.ASKED, deadline=now + min(ASK_S, self._rules.grace)), [TellExit()]

    def _died(self, slot: Slot, event: Died, now: float) -> Step:
        _expect(slot, event, *_ALIVE, SlotState.ENDING)
        expected = slot.state is SlotState.ENDING
        failures, restarts = slot.failures, slot.restarts
        if slot.state is SlotState.STARTING or (slot.state is SlotState.IDLE and not slot.jobs_in_worker):
            failures += 1
        if slot.state is not SlotState.STARTING and not (expected and slot.next is not Next.RESTART):
            restarts += 1
        how = slot.cause if expected and slot.blame and slot.cause else event.how
        lost = _lost_jobs(slot, how, charged=slot.blame or not expected)
        slot = _with(
            slot,
            state=SlotState.ENDING,
            end_step=EndStep.DEAD,
            deadline=None,
            pid=None,
            running=(),
            cancelling=(),
            failures=failures,
            restarts=restarts,
            next=slot.next if expected else Next.PAUSE if slot.pausing else Next.RESTART,
            cause=slot.cause if expected else event.how,
            since=slot.since if expected else now,
        )
        return slot, lost

    def _swept(self, slot: Slot, event: Swept, now: float) -> Step:
        _expect(slot, event, SlotState.ENDING)
        if slot.end_step is not EndStep.DEAD:
            raise _illegal(slot, event)
        if slot.next is Next.PARK:  # nobody comes after it who would need the memory
            return _with(slot, state=SlotState.PARKED, deadline=None, cause=None), []
        if slot.next is Next.LOST:
            return _with(slot, state=SlotState.LOST, deadline=None), []
        return _with(slot, state=SlotState.RELEASING, gone_at=now, deadline=None), [Release()]

    def _released(self, slot: Slot, event: Released, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        _expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        slot = _with(slot, released_at=now, freed_mib=event.freed_mib, verified=event.verified)
        if slot.next is Next.PARK:
            return _with(slot, state=SlotState.PARKED, cause=None), []
        if slot.pausing:
            return _with(slot, state=SlotState.PARKED, cause=slot.refresh_cause), []
        if slot.next is Next.REFRESH:
            # Memory that stayed in use for a while became the slot's cause; the report is to name what asked for the refresh.
            slot = _with(slot, refreshes=slot.refreshes + 1, cause=slot.refresh_cause or slot.cause)
        elif slot.failures:
            return self._back_off(slot, now)
        return self._start(_with(slot, state=SlotState.PARKED), Start(), now)

    def _held(self, slot: Slot, event: MemoryHeld, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        _expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        if slot.next is Next.PARK:
            return _with(slot, state=SlotState.PARKED, cause=event.cause), []
        return _with(slot, state=SlotState.HELD, cause=event.cause), []

    def _template_gone(self, slot: Slot, event: TemplateGone, now: float) -> Step:
        if slot.state not in (*_ALIVE, SlotState.ENDING):
            return slot, []
        lost = _lost_jobs(slot, "was ended because the template process died", charged=False)
        restarts = slot.restarts + (slot.state is not SlotState.STARTING and slot.end_step is not EndStep.DEAD)
        slot = _with(
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
        )
        slot, actions = self._swept(slot, Swept(), now)
        return slot, [*lost, *actions]

    def _gpu_lost(self, slot: Slot, event: GpuLost, now: float) -> Step:
        if slot.state in (SlotState.PARKED, SlotState.LOST):
            return slot, []
        if slot.state in _ALIVE:
            return self._end(slot, now, EndStep.KILL, Next.LOST, event.cause, blame=True)
        if slot.state is SlotState.ENDING:
            return _with(slot, next=slot.next if slot.next is Next.PARK else Next.LOST, cause=event.cause), []
        return _with(slot, state=SlotState.LOST, cause=event.cause, deadline=None), []

    def _gpu_back(self, slot: Slot, event: GpuBack, now: float) -> Step:
        if slot.state is SlotState.ENDING and slot.next is Next.LOST:
            return _with(slot, next=Next.RESTART), []
        if slot.state is not SlotState.LOST:
            return slot, []
        slot = _with(slot, state=SlotState.PARKED, next=Next.RESTART)
        if slot.pausing:
            return _with(slot, cause=slot.refresh_cause), []
        return self._start(_with(slot, restarts=slot.restarts + 1), Start(), now)

    def _remarked(self, slot: Slot, event: Remarked, now: float) -> Step:
        return slot, [Warn(event.text)]

    def _stop(self, slot: Slot, event: Stop, now: float) -> Step:
        if slot.state in (*_WAITING, SlotState.LOST):
            return _with(slot, state=SlotState.PARKED, deadline=None, cause=None), []
        if slot.state is SlotState.RELEASING:
            return _with(slot, next=Next.PARK), []
        if slot.state is SlotState.ENDING and (slot.end_step is EndStep.DEAD or not event.at_once):
            return _with(slot, next=Next.PARK), []
        if event.at_once:
            return self._end(slot, now, EndStep.KILL, Next.PARK, "the supervisor stops")
        step = EndStep.TERM if slot.running or slot.state is SlotState.STARTING else EndStep.MEASURE
        return self._end(slot, now, step, Next.PARK, "the supervisor stops")

    def _tick(self, slot: Slot, event: Tick, now: float) -> Step:
        if slot.deadline is None or now < slot.deadline:
            return slot, []
        if slot.state is SlotState.STARTING:
            cause = f"did not become ready within {self._rules.start_timeout:g} s (--start-timeout)"
            return self._end(slot, now, EndStep.STACK, Next.RESTART, cause, failures=slot.failures + 1)
        if slot.state is SlotState.BUSY:
            cause = f"did not stop a cancelled job within {self._rules.grace:g} s (--grace)"
            return self._end(slot, now, EndStep.STACK, Next.PAUSE if slot.pausing else Next.RESTART, cause)
        if slot.state is SlotState.ENDING:
            return self._go_on_ending(slot, now)
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return self._start(slot, Start(), now)
        return _with(slot, deadline=None), []

    def _go_on_ending(self, slot: Slot, now: float) -> Step:
        """The worker's end takes too long: the next step."""
        if slot.end_step is EndStep.MEASURE:
            return self._measured(slot, Measured(), now)
        if slot.end_step is EndStep.KILL:
            text = f"process {slot.pid} is still there {KILL_S:g} s after SIGKILL: it hangs in the kernel, perhaps in a driver"
            return _with(slot, deadline=None, cause=text), [Warn(text)]
        if slot.end_step is EndStep.TERM and not slot.stack_shown:
            return _with(slot, stack_shown=True, deadline=now + STACK_S), [ShowStack()]
        later = EndStep.KILL if slot.end_step is EndStep.TERM else EndStep.TERM
        return self._end(slot, now, later, slot.next, slot.cause or "")

    def _begin_refresh(self, slot: Slot, now: float) -> Step:
        after = Next.PAUSE if slot.pausing else Next.REFRESH
        return self._end(slot, now, EndStep.MEASURE, after, slot.refresh_cause or "", since=slot.since)

    def _end(
        self,
        slot: Slot,
        now: float,
        step: EndStep,
        after: Next,
        cause: str,
        *,
        since: float | None = None,
        failures: int | None = None,
        blame: bool = False,
    ) -> Step:
        """Bring the worker's end to ``step``; its deadline leads to the next one."""
        if step is EndStep.MEASURE and not slot.has_gpu:
            step = EndStep.ASKED
        if step is EndStep.STACK and slot.stack_shown:
            step = EndStep.TERM
        grace = self._rules.grace
        waits = {
            EndStep.MEASURE: MEASURE_S,
            EndStep.STACK: STACK_S,
            EndStep.ASKED: min(ASK_S, grace),
            EndStep.TERM: grace,
            EndStep.KILL: KILL_S,
        }
        actions: dict[EndStep, Action] = {
            EndStep.MEASURE: Measure(),
            EndStep.STACK: ShowStack(),
            EndStep.ASKED: TellExit(),
            EndStep.TERM: SendSignal(signal.SIGTERM),
            EndStep.KILL: EndTree(),
        }
        slot = _with(
            slot,
            state=SlotState.ENDING,
            end_step=step,
            next=Next.PARK if slot.state is SlotState.ENDING and slot.next is Next.PARK else after,
            cause=cause,
            since=slot.since if slot.state is SlotState.ENDING else (now if since is None else since),
            deadline=now + waits[step],
            stack_shown=slot.stack_shown or step is EndStep.STACK,
            failures=slot.failures if failures is None else failures,
            blame=blame or (slot.state is SlotState.ENDING and slot.blame),
        )
        return slot, [actions[step]]

    def _back_off(self, slot: Slot, now: float) -> Step:
        broken = slot.failures > len(BACKOFF_S)
        pause = BROKEN_RETRY_S if broken else BACKOFF_S[slot.failures - 1]
        state = SlotState.BROKEN if broken else SlotState.BACKOFF
        slot = _with(slot, state=state, deadline=now + pause, pid=None)
        return slot, [StartFailed(slot.cause or "died", pause, broken)]


def _with(slot: Slot, **changes: object) -> Slot:
    return msgspec.structs.replace(slot, **changes)


def _lost_jobs(slot: Slot, how: str, *, charged: bool) -> list[Action]:
    return [JobLost(job, how, charged) for job in slot.running if job not in slot.cancelling]


def _expect(slot: Slot, event: Event, *states: SlotState) -> None:
    if slot.state not in states:
        raise _illegal(slot, event)


def _illegal(slot: Slot, event: Event) -> IllegalStepError:
    return IllegalStepError(f"slot {slot.name} is {slot.state.value}: {type(event).__name__} cannot happen ({event})")
