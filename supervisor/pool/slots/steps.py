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
from supervisor.wire import messages as wire


class Event(msgspec.Struct, frozen=True):
    """Something that can happen to a slot."""


class Action(msgspec.Struct, frozen=True):
    """Something that a slot asks for."""


# --- events --------------------------------------------------------------------------------------------------------------


class Start(Event, frozen=True):
    """Begin to serve (from ``parked``), or try again now (from ``backoff``, ``broken``, ``held``)."""


class Forked(Event, frozen=True):
    """The worker runs as ``pid``."""

    pid: int


class ForkFailed(Event, frozen=True):
    """The operating system refused a new process."""

    cause: ForkRefused


class Unforked(Event, frozen=True):
    """The worker that was to end was never forked, and now is not."""


class Ready(Event, frozen=True):
    """The worker has loaded the handler, of this ``kind``, and takes ``capacity`` jobs at once."""

    capacity: int
    kind: str = "unknown"


class CapacityChanged(Event, frozen=True):
    """The handler's ``concurrency_modifier`` chose another number."""

    capacity: int


class Assign(Event, frozen=True):
    """Give the worker this job."""

    job: str


class JobDone(Event, frozen=True):
    """The worker has ended this job. ``refresh`` says why it wants a fresh worker, if it does; ``out_of_memory``: of a GPU."""

    job: str
    refresh: RefreshCause | None = None
    out_of_memory: bool = False


class CancelJob(Event, frozen=True):
    """Stop this running job: ``gently`` by ``CancelledError`` first, or by ending the worker at once; ``stuck``: that is asked
    to show where it is before. ``cause`` is why the worker ends, if it does."""

    job: str
    gently: bool
    stuck: bool = False
    cause: EndedBecause = EndedBecause.CANCELLED_JOB_RAN


class RefreshAsked(Event, frozen=True):
    """Replace the worker, now or after the jobs it runs."""

    cause: RefreshCause


class HandlerChanged(Event, frozen=True):
    """What a worker has read of the handler is out of date, and why one could not load it may be."""


class PauseAsked(Event, frozen=True):
    """Take the slot out of service, now or after the jobs its worker runs, until it is resumed. Scaling leaves alone what a
    person has paused."""

    cause: PauseCause

    @property
    def spare(self) -> bool:
        """Whether scaling asks."""
        return not isinstance(self.cause, PausedByHand)


class ResumeAsked(Event, frozen=True):
    """Put a paused slot back into service."""


class Misbehaved(Event, frozen=True):
    """The worker broke the protocol; it is killed."""

    cause: ProtocolBroken


class Measured(Event, frozen=True):
    """The memory that the worker holds has been read, so it may end now."""


class Overgrown(Event, frozen=True):
    """The living worker's tree holds more GPU memory than ``--refresh-above``, by a reading begun at ``at``."""

    mib: int
    at: float


class Died(Event, frozen=True):
    """The worker's process is dead; ``end`` is why, as far as is known outside of the slot."""

    end: WorkerEnd


class Swept(Event, frozen=True):
    """Nothing that the worker started is left."""


class Released(Event, frozen=True):
    """The GPU memory is free (``verified``), or it cannot be told, nor by waiting longer: on the GPUs in ``unknown``."""

    freed_mib: int | None = None
    verified: bool = True
    unknown: tuple[UnknownGpu, ...] = ()


class MemoryHeld(Event, frozen=True):
    """GPU memory stays in use after the tree died, on evidence."""

    obstacle: MemoryStaysInUse


class TemplateGone(Event, frozen=True):
    """The template died, and every worker with it; what was left has been ended."""


class GpuLost(Event, frozen=True):
    """A GPU of the slot has fallen off the bus, or is of no use until it is reset."""

    cause: GpusLost


class GpuBack(Event, frozen=True):
    """NVML answers for all GPUs of the slot again."""


class Remarked(Event, frozen=True):
    """Something about the slot's GPUs that a person should know; it changes nothing."""

    notice: GpuRemark


class Stop(Event, frozen=True):
    """End the worker and stay parked; ``at_once`` by SIGKILL."""

    at_once: bool = False


class Tick(Event, frozen=True):
    """Time has passed; acts when the deadline is over."""


# --- actions -------------------------------------------------------------------------------------------------------------


class ForkWorker(Action, frozen=True):
    """Ask the template for the worker of this generation."""

    generation: int


class Send(Action, frozen=True):
    """Tell the worker."""

    message: Union[wire.Cancel, wire.Exit]


class Measure(Action, frozen=True):
    """Read the slot's GPU memory, then report ``Measured``."""


class SendSignal(Action, frozen=True):
    """Signal the worker; by ``STACK_SIGNAL`` it writes where all its threads are."""

    signum: int


class EndTree(Action, frozen=True):
    """SIGKILL the worker and all it started."""


class Release(Action, frozen=True):
    """Watch the GPU memory until it is free; report ``Released`` or ``MemoryHeld``."""


class JobLost(Action, frozen=True):
    """A running job lost its worker, which ended by ``end``. ``charged``: it may be the reason, so it costs an attempt."""

    job: str
    end: WorkerEnd
    charged: bool


SlotNews = Union[Refreshed, StartFailed, SlotBroken, WorkerStuck, HoldsWithoutJob, GpuRemark]
"""What a step has to say to people."""
