"""What can happen to a slot (events) and what it then asks for (actions); the supervisor's pool speaks both languages."""

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

# --- events --------------------------------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True):
    """Begin to serve (from ``parked``), or try again now (from ``backoff``, ``broken``, ``held``)."""


class Forked(msgspec.Struct, frozen=True):
    """The worker runs as ``pid``."""

    pid: int


class ForkFailed(msgspec.Struct, frozen=True):
    """The operating system refused a new process."""

    cause: ForkRefused


class Unforked(msgspec.Struct, frozen=True):
    """The worker that was to end was never forked, and now is not."""


class Ready(msgspec.Struct, frozen=True):
    """The worker has loaded the handler, of this ``kind``, and takes ``capacity`` jobs at once."""

    capacity: int
    kind: str = "unknown"


class CapacityChanged(msgspec.Struct, frozen=True):
    """The handler's ``concurrency_modifier`` chose another number."""

    capacity: int


class Assign(msgspec.Struct, frozen=True):
    """Give the worker this job."""

    job: str


class JobDone(msgspec.Struct, frozen=True):
    """The worker has ended this job. ``refresh`` says why it wants a fresh worker, if it does; ``out_of_memory``: of a GPU."""

    job: str
    refresh: RefreshCause | None = None
    out_of_memory: bool = False


class CancelJob(msgspec.Struct, frozen=True):
    """Stop this running job: ``gently`` by ``CancelledError`` first, or by ending the worker at once; ``stuck``: that is asked
    to show where it is before. ``cause`` is why the worker ends, if it does."""

    job: str
    gently: bool
    stuck: bool = False
    cause: EndedBecause = EndedBecause.CANCELLED_JOB_RAN


class RefreshAsked(msgspec.Struct, frozen=True):
    """Replace the worker, now or after the jobs it runs."""

    cause: RefreshCause


class HandlerChanged(msgspec.Struct, frozen=True):
    """What a worker has read of the handler is out of date, and why one could not load it may be."""


class PauseAsked(msgspec.Struct, frozen=True):
    """Take the slot out of service, now or after the jobs its worker runs, until it is resumed. Scaling leaves alone what a
    person has paused."""

    cause: PauseCause

    @property
    def spare(self) -> bool:
        """Whether scaling asks."""
        return not isinstance(self.cause, PausedByHand)


class ResumeAsked(msgspec.Struct, frozen=True):
    """Put a paused slot back into service."""


class Misbehaved(msgspec.Struct, frozen=True):
    """The worker broke the protocol; it is killed."""

    cause: ProtocolBroken


class Measured(msgspec.Struct, frozen=True):
    """The memory that the worker holds has been read, so it may end now."""


class Overgrown(msgspec.Struct, frozen=True):
    """The living worker's tree holds more GPU memory than ``--refresh-above``, by a reading begun at ``at``."""

    mib: int
    at: float


class Died(msgspec.Struct, frozen=True):
    """The worker's process is dead; ``end`` is why, as far as is known outside of the slot."""

    end: WorkerEnd


class Swept(msgspec.Struct, frozen=True):
    """Nothing that the worker started is left."""


class Released(msgspec.Struct, frozen=True):
    """The GPU memory is free (``verified``), or it cannot be told, nor by waiting longer: on the GPUs in ``unknown``."""

    freed_mib: int | None = None
    verified: bool = True
    unknown: tuple[UnknownGpu, ...] = ()


class MemoryHeld(msgspec.Struct, frozen=True):
    """GPU memory stays in use after the tree died, on evidence."""

    obstacle: MemoryStaysInUse


class TemplateGone(msgspec.Struct, frozen=True):
    """The template died, and every worker with it; what was left has been ended."""


class GpuLost(msgspec.Struct, frozen=True):
    """A GPU of the slot has fallen off the bus, or is of no use until it is reset."""

    cause: GpusLost


class GpuBack(msgspec.Struct, frozen=True):
    """NVML answers for all GPUs of the slot again."""


class Remarked(msgspec.Struct, frozen=True):
    """Something about the slot's GPUs that a person should know; it changes nothing."""

    notice: GpuRemark


class Stop(msgspec.Struct, frozen=True):
    """End the worker and stay parked; ``at_once`` by SIGKILL."""

    at_once: bool = False


class Tick(msgspec.Struct, frozen=True):
    """Time has passed; acts when the deadline is over."""


Event = Union[
    Start,
    Forked,
    ForkFailed,
    Unforked,
    Ready,
    CapacityChanged,
    Assign,
    JobDone,
    CancelJob,
    RefreshAsked,
    HandlerChanged,
    PauseAsked,
    ResumeAsked,
    Misbehaved,
    Measured,
    Overgrown,
    Died,
    Swept,
    Released,
    MemoryHeld,
    TemplateGone,
    GpuLost,
    GpuBack,
    Remarked,
    Stop,
    Tick,
]


# --- actions -------------------------------------------------------------------------------------------------------------


class ForkWorker(msgspec.Struct, frozen=True):
    """Ask the template for the worker of this generation."""

    generation: int


class TellCancel(msgspec.Struct, frozen=True):
    """Send the worker ``Cancel`` for this job."""

    job: str


class TellExit(msgspec.Struct, frozen=True):
    """Send the worker ``Exit``."""


class Measure(msgspec.Struct, frozen=True):
    """Read the slot's GPU memory, then report ``Measured``."""


class SendSignal(msgspec.Struct, frozen=True):
    """Signal the worker."""

    signum: int


class ShowStack(msgspec.Struct, frozen=True):
    """Have the worker write where all its threads are."""


class EndTree(msgspec.Struct, frozen=True):
    """SIGKILL the worker and all it started."""


class Release(msgspec.Struct, frozen=True):
    """Watch the GPU memory until it is free; report ``Released`` or ``MemoryHeld``."""


class JobLost(msgspec.Struct, frozen=True):
    """A running job lost its worker, which ended by ``end``. ``charged``: it may be the reason, so it costs an attempt."""

    job: str
    end: WorkerEnd
    charged: bool


SlotNews = Union[Refreshed, StartFailed, SlotBroken, WorkerStuck, HoldsWithoutJob, GpuRemark]
"""What a step has to say to people: that is an action, too."""

Action = Union[
    ForkWorker,
    TellCancel,
    TellExit,
    Measure,
    SendSignal,
    ShowStack,
    EndTree,
    Release,
    JobLost,
    SlotNews,
]
