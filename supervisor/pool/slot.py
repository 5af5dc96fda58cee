"""One slot as a pure state machine, run by the supervisor: ``step(slot, event, now) -> (slot, actions)``.

A slot is the place on the GPUs that one worker after another occupies. Nothing here reads a clock, a pipe or a process: the
pool turns those into events and carries out the actions. Times are seconds on the monotonic clock.

::

    parked ──Start──▶ starting ──Ready──▶ idle ◀──JobDone── busy
                       ▲  │                │  └──Assign─────▶ │
                       │  └─Died───────────┼──────────────────┤ refresh, cancel, crash
                       │                   ▼                  ▼
       backoff, broken ◀── releasing ◀── ending (measure → asked → term → kill → dead)
                              └─▶ held (memory still in use; comes back when it clears)
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from supervisor.errors import SuperviseError
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
    JobDone,
    JobLost,
    Measure,
    Measured,
    MemoryHeld,
    Misbehaved,
    Ready,
    RefreshAsked,
    RefreshReport,
    Release,
    Released,
    SendSignal,
    Start,
    StartFailed,
    Stop,
    Swept,
    TellCancel,
    TellExit,
    TemplateGone,
    Tick,
)

ASK_S = 1.0
"""How long a worker that was asked to exit may take before SIGTERM: it only has to flush."""

MEASURE_S = 0.05
"""How long the end of a worker waits for a reading of the memory it holds: NVML answers in 1 to 5 ms, or is stuck."""

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses after the first, second, … start in a row that failed; after the last the slot is broken."""

BROKEN_RETRY_S = 300.0
"""A broken slot is tried again after this time: what broke it (a full disk, a missing file) may have been mended."""


class SlotState(str, enum.Enum):
    """The slot states of the contract."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"
    RELEASING = "releasing"
    BACKOFF = "backoff"
    BROKEN = "broken"
    HELD = "held"
    LOST = "lost"
    PARKED = "parked"


class EndStep(enum.IntEnum):
    """How far the end of a worker has come."""

    MEASURE = 0
    ASKED = 1
    TERM = 2
    KILL = 3
    DEAD = 4


class Next(str, enum.Enum):
    """What becomes of the slot once its worker is gone and the memory is free."""

    REFRESH = "refresh"
    RESTART = "restart"
    PARK = "park"


class IllegalStepError(SuperviseError):
    """The event cannot happen in the slot's state: a fault of this program, or of a worker that breaks the protocol."""


class Slot(msgspec.Struct, frozen=True):
    """One slot at one moment. ``running`` maps nothing but names: job ids in the worker, ``cancelling`` those told to stop.

    ``failures`` counts workers in a row that died before they were given a job. ``cause`` says why the worker ends or the slot
    is out of service; ``blame`` that a job which still runs when the worker is ended may be the reason.
    ``since``, ``gone_at`` and ``released_at`` are the moments of a refresh: asked for, tree gone, memory free.
    """

    name: str
    index: int
    has_gpu: bool = False
    state: SlotState = SlotState.PARKED
    generation: int = 0
    pid: int | None = None
    capacity: int = 1
    running: tuple[str, ...] = ()
    cancelling: tuple[str, ...] = ()
    deadline: float | None = None
    end_step: EndStep = EndStep.MEASURE
    next: Next = Next.RESTART
    cause: str | None = None
    refresh_cause: str | None = None
    blame: bool = False
    since: float = 0.0
    gone_at: float = 0.0
    released_at: float = 0.0
    freed_mib: int | None = None
    verified: bool = True
    failures: int = 0
    jobs: int = 0
    jobs_in_worker: int = 0
    refreshes: int = 0
    restarts: int = 0

    @property
    def room(self) -> int:
        """How many more jobs the worker can take now."""
        if self.state not in (SlotState.IDLE, SlotState.BUSY) or self.refresh_cause is not None or self.cancelling:
            return 0
        return self.capacity - len(self.running)


class Rules(msgspec.Struct, frozen=True):
    """The settings that steps depend on, in seconds; 0 turns ``start_timeout`` and ``refresh_after_jobs`` off."""

    grace: float = 5.0
    start_timeout: float = 0.0
    refresh_worker: bool = False
    refresh_after_jobs: int = 0


Step = tuple[Slot, list[Action]]

_ALIVE = (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY)
_SERVING = (SlotState.IDLE, SlotState.BUSY)
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
            JobDone: self._job_done,
            CancelJob: self._cancel,
            RefreshAsked: self._refresh_asked,
            Misbehaved: self._misbehaved,
            Measured: self._measured,
            Died: self._died,
            Swept: self._swept,
            Released: self._released,
            MemoryHeld: self._held,
            TemplateGone: self._template_gone,
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
        return slot, actions

    def _capacity(self, slot: Slot, event: CapacityChanged, now: float) -> Step:
        return _with(slot, capacity=max(1, event.capacity)), []

    def _assign(self, slot: Slot, event: Assign, now: float) -> Step:
        if slot.room < 1 or event.job in slot.running:
            raise _illegal(slot, event)
        return _with(slot, state=SlotState.BUSY, running=(*slot.running, event.job)), []

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
            failures=0,
        )
        if slot.state is SlotState.ENDING:
            return slot, []
        slot = _with(slot, deadline=slot.deadline if cancelling else None)
        cause = slot.refresh_cause or event.refresh or self._own_cause(slot)
        if cause is not None and slot.refresh_cause is None:
            slot = _with(slot, refresh_cause=cause, since=now)
        if running:
            return slot, []
        slot = _with(slot, state=SlotState.IDLE)
        return self._begin_refresh(slot, now) if cause is not None else (slot, [])

    def _own_cause(self, slot: Slot) -> str | None:
        if self._rules.refresh_worker:
            return "--refresh-worker"
        after = self._rules.refresh_after_jobs
        if after and slot.jobs_in_worker >= after:
            return "--refresh-after-jobs"
        return None

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
        return self._end(slot, now, EndStep.TERM, Next.RESTART, event.cause)

    def _refresh_asked(self, slot: Slot, event: RefreshAsked, now: float) -> Step:
        _expect(slot, event, SlotState.IDLE, SlotState.BUSY, SlotState.BACKOFF, SlotState.BROKEN, SlotState.HELD)
        if slot.state is SlotState.HELD:
            return self._released(slot, Released(verified=False), now)
        if slot.state in _WAITING:
            return self._start(slot, Start(), now)
        if slot.refresh_cause is not None:
            return slot, []
        slot = _with(slot, refresh_cause=event.cause, since=now)
        return self._begin_refresh(slot, now) if slot.state is SlotState.IDLE else (slot, [])

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
        elif slot.state is SlotState.BUSY:
            failures = 0
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
            next=slot.next if expected else Next.RESTART,
            cause=slot.cause if expected else event.how,
            since=slot.since if expected else now,
        )
        return slot, lost

    def _swept(self, slot: Slot, event: Swept, now: float) -> Step:
        _expect(slot, event, SlotState.ENDING)
        if slot.end_step is not EndStep.DEAD:
            raise _illegal(slot, event)
        slot = _with(slot, state=SlotState.RELEASING, gone_at=now, deadline=None)
        return slot, [Release()]

    def _released(self, slot: Slot, event: Released, now: float) -> Step:
        if slot.state is SlotState.PARKED:
            return slot, []
        _expect(slot, event, SlotState.RELEASING, SlotState.HELD)
        slot = _with(slot, released_at=now, freed_mib=event.freed_mib, verified=event.verified)
        if slot.next is Next.PARK:
            return _with(slot, state=SlotState.PARKED, cause=None), []
        if slot.next is Next.REFRESH:
            slot = _with(slot, refreshes=slot.refreshes + 1)
        elif slot.failures:
            return self._back_off(slot, now)
        return self._start(_with(slot, state=SlotState.PARKED), Start(), now)

    def _held(self, slot: Slot, event: MemoryHeld, now: float) -> Step:
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

    def _stop(self, slot: Slot, event: Stop, now: float) -> Step:
        if slot.state in (*_WAITING, SlotState.LOST):
            return _with(slot, state=SlotState.PARKED, deadline=None, cause=None), []
        if slot.state is SlotState.RELEASING:
            return _with(slot, next=Next.PARK), []
        if slot.state is SlotState.ENDING and not event.at_once:
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
            return self._end(slot, now, EndStep.KILL, Next.RESTART, cause, failures=slot.failures + 1)
        if slot.state is SlotState.BUSY:
            cause = f"did not stop a cancelled job within {self._rules.grace:g} s (--grace)"
            return self._end(slot, now, EndStep.TERM, Next.RESTART, cause)
        if slot.state is SlotState.ENDING:
            if slot.end_step is EndStep.MEASURE:
                return self._measured(slot, Measured(), now)
            later = EndStep.TERM if slot.end_step is EndStep.ASKED else EndStep.KILL
            return self._end(slot, now, later, slot.next, slot.cause or "")
        if slot.state in (SlotState.BACKOFF, SlotState.BROKEN):
            return self._start(slot, Start(), now)
        return _with(slot, deadline=None), []

    def _begin_refresh(self, slot: Slot, now: float) -> Step:
        return self._end(slot, now, EndStep.MEASURE, Next.REFRESH, slot.refresh_cause or "", since=slot.since)

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
        grace = self._rules.grace
        waits = {EndStep.MEASURE: MEASURE_S, EndStep.ASKED: min(ASK_S, grace), EndStep.TERM: grace}
        actions: dict[EndStep, Action] = {
            EndStep.MEASURE: Measure(),
            EndStep.ASKED: TellExit(),
            EndStep.TERM: SendSignal(signal.SIGTERM),
            EndStep.KILL: EndTree(),
        }
        wait = waits.get(step)
        slot = _with(
            slot,
            state=SlotState.ENDING,
            end_step=step,
            next=Next.PARK if slot.state is SlotState.ENDING and slot.next is Next.PARK else after,
            cause=cause,
            since=slot.since if slot.state is SlotState.ENDING else (now if since is None else since),
            deadline=None if wait is None else now + wait,
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
