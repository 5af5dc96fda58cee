"""Termination of a worker, pure steps of the slot machine: exit request, SIGTERM, SIGKILL, each with its deadline.

::

    measure (its GPU memory) → asked → term → kill → dead
    stack (where it is stuck) ─────────▲
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import msgspec

from supervisor.cause import StuckInKernel, WorkerEnd
from supervisor.host.processes import STACK_SIGNAL
from supervisor.notice import WorkerStuck
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.wire import messages as wire

ASK_S = 1.0
"""Seconds from the exit request to SIGTERM: the worker only has to flush."""

MEASURE_S = 0.25
"""Seconds that a worker's termination waits for a reading of its GPU memory: NVML answers in 1 to 5 ms, later on a busy machine,
never if it hangs."""

STACK_S = 0.1
"""Seconds that a stuck worker gets to write its stacks before it is terminated."""

KILL_S = 10.0
"""Seconds from SIGKILL to the notice that the worker still exists: a driver call can hold a process in the kernel."""

_LATER = {
    EndStep.MEASURE: EndStep.ASKED,
    EndStep.STACK: EndStep.TERM,
    EndStep.ASKED: EndStep.TERM,
    EndStep.TERM: EndStep.KILL,
}

Step = tuple[Slot, Sequence[steps.Action | steps.SlotNews]]


class Ending:
    """The termination steps for a ``grace`` (``--grace``) in seconds."""

    def __init__(self, grace: float) -> None:
        self._stages: dict[EndStep, tuple[float, steps.Action]] = {
            EndStep.MEASURE: (MEASURE_S, steps.Measure()),
            EndStep.STACK: (STACK_S, steps.SendSignal(STACK_SIGNAL)),
            EndStep.ASKED: (min(ASK_S, grace), steps.Send(wire.Exit())),
            EndStep.TERM: (grace, steps.SendSignal(signal.SIGTERM)),
            EndStep.KILL: (KILL_S, steps.KillTree()),
        }

    def start(self, slot: Slot, now: float, step: EndStep, after: Next, cause: WorkerEnd | None) -> Step:
        """Enter ``step`` of the worker's termination, with its deadline."""
        if step is EndStep.MEASURE and not slot.has_gpu:
            step = EndStep.ASKED
        if step is EndStep.STACK and slot.stack_shown:
            step = EndStep.TERM
        wait, action = self._stages[step]
        ending = slot.state is SlotState.ENDING
        slot = changed(
            slot,
            state=SlotState.ENDING,
            end_step=step,
            next=Next.PARK if ending and slot.next is Next.PARK else after,
            cause=cause,
            since=slot.since if ending else now,
            deadline=now + wait,
            stack_shown=slot.stack_shown or step is EndStep.STACK,
        )
        return slot, [action]

    def escalate(self, slot: Slot, now: float) -> Step:
        """Enter the next step: this one is done or overdue."""
        if slot.end_step is EndStep.KILL:
            stuck = StuckInKernel(slot.pid, KILL_S)
            return changed(slot, deadline=None, obstacle=stuck), [WorkerStuck(slot.name, stuck)]
        if slot.end_step is EndStep.TERM and not slot.stack_shown:
            return changed(slot, stack_shown=True, deadline=now + STACK_S), [steps.SendSignal(STACK_SIGNAL)]
        return self.start(slot, now, _LATER[slot.end_step], slot.next, slot.cause)


def died(slot: Slot, end: WorkerEnd, now: float) -> Step:
    """Record the worker's death, caused by ``end`` unless it was being terminated; its jobs are lost."""
    expected = slot.state is SlotState.ENDING
    failures, restarts = slot.failures, slot.restarts
    if slot.state is SlotState.STARTING or (slot.state is SlotState.IDLE and not slot.jobs_in_worker):
        failures += 1
    if slot.state is not SlotState.STARTING and not (expected and slot.next is not Next.RESTART):
        restarts += 1
    blamed = slot.cause if expected and slot.blame and slot.cause else end
    after = changed(
        slot,
        failures=failures,
        restarts=restarts,
        next=slot.next if expected else Next.PAUSE if slot.pausing else Next.RESTART,
        cause=slot.cause if expected else end,
        since=slot.since if expected else now,
    )
    return dead(after, now), lost_jobs(slot, blamed, charged=slot.blame or not expected)


def dead(slot: Slot, now: float) -> Slot:
    """Return ``slot`` without its worker, whose tree may still have processes."""
    return changed(
        slot,
        state=SlotState.ENDING,
        end_step=EndStep.DEAD,
        deadline=None,
        pid=None,
        running=(),
        cancelling=(),
        idle_slot_since=now if slot.running else slot.idle_slot_since,
    )


def lost_jobs(slot: Slot, end: WorkerEnd, *, charged: bool) -> list[steps.Action]:
    """Return the loss of each running job except those being cancelled; ``charged``: they may be the reason."""
    return [steps.ReportJobLost(job, end, charged) for job in slot.running if job not in slot.cancelling]


def changed(slot: Slot, **changes: object) -> Slot:
    """Return ``slot`` with ``changes``."""
    return msgspec.structs.replace(slot, **changes)
