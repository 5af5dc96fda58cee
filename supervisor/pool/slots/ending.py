"""How a worker ends, pure steps of the slot machine: asked to exit, then SIGTERM, then SIGKILL, each with its deadline.

::

    measure (what it holds on the GPU) → asked → term → kill → dead
    stack (it is stuck: where?) ───────────────▲
"""

from __future__ import annotations

import signal

import msgspec

from supervisor.cause import StuckInKernel, WorkerEnd
from supervisor.notice import WorkerStuck
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.pool.slots.steps import Action, EndTree, JobLost, Measure, SendSignal, ShowStack, TellExit

ASK_S = 1.0
"""How long a worker that was asked to exit may take before SIGTERM: it only has to flush."""

MEASURE_S = 0.25
"""How long the end of a worker waits for a reading of the memory it holds: NVML answers in 1 to 5 ms, on a busy machine in some
time more, or is stuck."""

STACK_S = 0.1
"""How long a worker that is stuck gets to write its stacks, before the signal that ends it."""

KILL_S = 10.0
"""How long after SIGKILL a worker that is still there is spoken of: a call into a driver can hold a process in the kernel."""

Step = tuple[Slot, list[Action]]


class Ending:
    """The steps under one ``--grace``, in seconds."""

    def __init__(self, grace: float) -> None:
        """Wait ``grace`` between signals."""
        self._grace = grace

    def start(
        self,
        slot: Slot,
        now: float,
        step: EndStep,
        after: Next,
        cause: WorkerEnd | None,
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
        grace = self._grace
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
        slot = changed(
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

    def escalate(self, slot: Slot, now: float) -> Step:
        """The worker's end takes too long: the next step."""
        if slot.end_step is EndStep.MEASURE:
            return self.measured(slot, now)
        if slot.end_step is EndStep.KILL:
            stuck = StuckInKernel(slot.pid, KILL_S)
            return changed(slot, deadline=None, obstacle=stuck), [WorkerStuck(slot.name, stuck)]
        if slot.end_step is EndStep.TERM and not slot.stack_shown:
            return changed(slot, stack_shown=True, deadline=now + STACK_S), [ShowStack()]
        later = EndStep.KILL if slot.end_step is EndStep.TERM else EndStep.TERM
        return self.start(slot, now, later, slot.next, slot.cause)

    def measured(self, slot: Slot, now: float) -> Step:
        """What the worker holds was read, or that took too long: ask it to exit."""
        if slot.state is not SlotState.ENDING or slot.end_step is not EndStep.MEASURE:
            return slot, []
        return changed(slot, end_step=EndStep.ASKED, deadline=now + min(ASK_S, self._grace)), [TellExit()]

    def died(self, slot: Slot, end: WorkerEnd, now: float) -> Step:
        """The worker's process is dead, by ``end`` unless it was being ended."""
        expected = slot.state is SlotState.ENDING
        failures, restarts = slot.failures, slot.restarts
        if slot.state is SlotState.STARTING or (slot.state is SlotState.IDLE and not slot.jobs_in_worker):
            failures += 1
        if slot.state is not SlotState.STARTING and not (expected and slot.next is not Next.RESTART):
            restarts += 1
        blamed = slot.cause if expected and slot.blame and slot.cause else end
        lost = lost_jobs(slot, blamed, charged=slot.blame or not expected)
        slot = changed(
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
            cause=slot.cause if expected else end,
            since=slot.since if expected else now,
            idle_slot_since=now if slot.running else slot.idle_slot_since,
        )
        return slot, lost


def changed(slot: Slot, **changes: object) -> Slot:
    """``slot`` with ``changes``."""
    return msgspec.structs.replace(slot, **changes)


def lost_jobs(slot: Slot, end: WorkerEnd, *, charged: bool) -> list[Action]:
    """The jobs that lose their worker, but for those that were told to stop; ``charged``: they may be the reason."""
    return [JobLost(job, end, charged) for job in slot.running if job not in slot.cancelling]
