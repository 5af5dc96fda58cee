"""The events and actions of the slot machine. Used by the supervisor's pool."""

from __future__ import annotations

from typing import Union

import msgspec

from supervisor.cause import (
    EndedBecause,
    ForkRefused,
    GpusLost,
    MemoryStaysInUse,
    PauseCause,
    PausedByHand,
    ProtocolBroken,
    RefreshCause,
    UnknownGpu,
    WorkerEnd,
)
from supervisor.notice import GpuRemark, HoldsWithoutJob, Refreshed, SlotBroken, StartFailed, WorkerStuck
from supervisor.wire import messages as wire


class Event(msgspec.Struct, frozen=True):
    """An input of the slot machine."""


class Action(msgspec.Struct, frozen=True):
    """An output of the slot machine, performed by the pool."""


# --- events --------------------------------------------------------------------------------------------------------------


class Start(Event, frozen=True):
    """Start a worker (from ``parked``), or retry now (from ``backoff``, ``broken``, ``held``)."""


class WorkerForked(Event, frozen=True):
    """The worker runs as ``pid``."""

    pid: int


class WorkerForkFailed(Event, frozen=True):
    """The operating system could not create the process."""

    cause: ForkRefused


class Unforked(Event, frozen=True):
    """The worker to terminate was never forked, and will not be."""


class WorkerLoaded(Event, frozen=True):
    """The worker has loaded the handler, of this ``kind``, and runs up to ``capacity`` jobs at once."""

    capacity: int
    kind: str = "unknown"


class CapacityChanged(Event, frozen=True):
    """The handler's ``concurrency_modifier`` returned another capacity."""

    capacity: int


class Assign(Event, frozen=True):
    """The job was assigned to the worker."""

    job: str


class JobDone(Event, frozen=True):
    """The job ended in the worker. ``refresh`` is why it requests a new worker, if it does; ``out_of_memory``: on a GPU."""

    job: str
    refresh: RefreshCause | None = None
    out_of_memory: bool = False


class CancelJob(Event, frozen=True):
    """Cancel a running job: ``gently`` by ``CancelledError`` first, otherwise by terminating the worker at once (``stuck``: after
    it has dumped its stacks). ``cause`` is why the worker is terminated, if it is."""

    job: str
    gently: bool
    stuck: bool = False
    cause: EndedBecause = EndedBecause.CANCELLED_JOB_RAN


class RefreshRequested(Event, frozen=True):
    """Replace the worker, now or after its running jobs."""

    cause: RefreshCause


class HandlerChanged(Event, frozen=True):
    """The handler's source changed: loaded workers are outdated, and so may be the reason of a failed load."""


class PauseRequested(Event, frozen=True):
    """Take the slot out of service, now or after its running jobs, until it is resumed. Scaling does not change a slot that was
    paused manually."""

    cause: PauseCause

    @property
    def spare(self) -> bool:
        """True if scaling requests it."""
        return not isinstance(self.cause, PausedByHand)


class ResumeRequested(Event, frozen=True):
    """Put a paused slot back into service."""


class ProtocolViolated(Event, frozen=True):
    """The worker broke the protocol and must be killed."""

    cause: ProtocolBroken


class Measured(Event, frozen=True):
    """The worker's memory has been read, so it may be terminated."""


class MemoryExceeded(Event, frozen=True):
    """The worker's tree holds ``mib`` of GPU memory, over ``--refresh-above``, in a reading started at ``at``."""

    mib: int
    at: float


class WorkerExited(Event, frozen=True):
    """The worker's process has exited; ``end`` is the cause, as far as it is known outside the slot."""

    end: WorkerEnd


class TreeSwept(Event, frozen=True):
    """No process that the worker started is left."""


class Released(Event, frozen=True):
    """The GPU memory is free (``verified``), or that cannot be determined on the GPUs in ``unknown``, even by waiting."""

    freed_mib: int | None = None
    verified: bool = True
    unknown: tuple[UnknownGpu, ...] = ()


class MemoryHeld(Event, frozen=True):
    """GPU memory of the exited tree is still in use, as NVML has shown."""

    obstacle: MemoryStaysInUse


class TemplateDied(Event, frozen=True):
    """The template died, and every worker with it; their processes have been swept."""


class GpuLost(Event, frozen=True):
    """A GPU of the slot has fallen off the bus, or needs a reset."""

    cause: GpusLost


class GpuBack(Event, frozen=True):
    """NVML can read all GPUs of the slot again."""


class Remarked(Event, frozen=True):
    """A notice about the slot's GPUs for the user; the slot does not change."""

    notice: GpuRemark


class Stop(Event, frozen=True):
    """Terminate the worker (``at_once``: by SIGKILL) and park the slot."""

    at_once: bool = False


class Tick(Event, frozen=True):
    """Time has passed; the machine acts if the deadline is over."""


# --- actions -------------------------------------------------------------------------------------------------------------


class ForkWorker(Action, frozen=True):
    """Request the worker of this generation from the template."""

    generation: int


class Send(Action, frozen=True):
    """Send the worker a message."""

    message: Union[wire.Cancel, wire.Exit]


class Measure(Action, frozen=True):
    """Read the slot's GPU memory, then report ``Measured``."""


class SendSignal(Action, frozen=True):
    """Send the worker a signal; ``STACK_SIGNAL`` makes it write the stacks of all threads."""

    signum: int


class KillTree(Action, frozen=True):
    """SIGKILL the worker and every process that it started."""


class WatchRelease(Action, frozen=True):
    """Watch the GPU memory until it is free; ``Released`` or ``MemoryHeld`` follows."""


class ReportJobLost(Action, frozen=True):
    """Report that a running job lost its worker by ``end``. ``charged``: it may be the reason, so it uses up an attempt."""

    job: str
    end: WorkerEnd
    charged: bool


SlotNews = Union[Refreshed, StartFailed, SlotBroken, WorkerStuck, HoldsWithoutJob, GpuRemark]
"""The notices of a step."""
