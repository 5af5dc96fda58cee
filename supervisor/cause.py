"""Causes: why a job, a worker or the template ended, and why a slot is out of service; imported by every process.

Code decides by these values and never parses messages; only ``protocol/wording.py`` words them for users. The store keeps a
``JobCause`` as JSON: never rename a released tag or field; a new field needs a default.
"""

from __future__ import annotations

import enum
from typing import Union

import msgspec

# --- how a process ended -------------------------------------------------------------------------------------------------


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """The process exited with code ``code``."""

    code: int


class Signalled(msgspec.Struct, frozen=True, tag="signalled"):
    """The process was killed by signal number ``signum``."""

    signum: int


ProcessEnd = Union[Exited, Signalled]


def process_end(status: int) -> ProcessEnd:
    """Convert an exit ``status``: ``-N`` is death by signal N, anything else an exit code."""
    return Exited(status) if status >= 0 else Signalled(-status)


# --- why there is no template --------------------------------------------------------------------------------------------


class TemplateNotStarted(msgspec.Struct, frozen=True, tag="template_not_started"):
    """The operating system could not start it; ``error`` is the system's message."""

    error: str


class TemplateVanished(msgspec.Struct, frozen=True, tag="template_vanished"):
    """It exited, with an unknown exit status."""


TemplateEnd = Union[Exited, Signalled, TemplateNotStarted, TemplateVanished]


# --- why a worker is replaced --------------------------------------------------------------------------------------------


class RefreshBy(str, enum.Enum):
    """The trigger of a refresh."""

    HANDLER = "handler"  # `refresh_worker` in the result or the handler's config
    CUDA_ERROR = "cuda_error"  # a sticky CUDA error in a job
    FULL_GPU = "full_gpu"  # a job ran out of GPU memory, with --refresh-on-oom
    EACH_JOB = "each_job"  # --refresh-worker
    SOME_JOBS = "some_jobs"  # --refresh-after-jobs
    HELD_MEMORY = "held_memory"  # the idle worker held more GPU memory than --refresh-above
    HAND = "hand"  # manual
    RELOAD = "reload"  # the handler's files changed (--reload), or SIGHUP


class RefreshCause(msgspec.Struct, frozen=True, tag="refresh"):
    """The worker is refreshed; ``error`` is the CUDA error's short name."""

    by: RefreshBy
    error: str = ""


# --- why a slot is paused ------------------------------------------------------------------------------------------------


class PausedByHand(msgspec.Struct, frozen=True, tag="paused_by_hand"):
    """The slot was paused manually; only a manual resume returns it to service."""


class SpareCause(msgspec.Struct, frozen=True, tag="spare"):
    """The slot is scaled down until jobs wait: its worker was idle for ``idle_s`` seconds (``--idle-timeout``), ``most`` others
    are in service (``--max-workers``), or, with neither, it has not been needed yet."""

    idle_s: float | None = None
    most: int | None = None


PauseCause = Union[PausedByHand, SpareCause]


# --- why a worker ended, or never came -----------------------------------------------------------------------------------


class TooManyProcesses(msgspec.Struct, frozen=True, tag="too_many_processes"):
    """Its process tree had more than ``limit`` processes (``--max-processes``); ``dead``: most of them were zombies."""

    limit: int
    dead: bool = False


class HandlerNotLoaded(msgspec.Struct, frozen=True, tag="handler_not_loaded"):
    """The handler cannot be loaded; ``message`` is the worker's, about the user's code."""

    message: str


class ForkRefused(msgspec.Struct, frozen=True, tag="fork_refused"):
    """The operating system could not fork; ``error`` is the system's message."""

    error: str


class NoTemplate(msgspec.Struct, frozen=True, tag="no_template"):
    """No template lived long enough to fork it; ``end`` is the last one's exit."""

    end: TemplateEnd


class StartTimedOut(msgspec.Struct, frozen=True, tag="start_timed_out"):
    """It was not ready within ``--start-timeout``, ``limit_s`` seconds."""

    limit_s: float


class CancelIgnored(msgspec.Struct, frozen=True, tag="cancel_ignored"):
    """It did not stop a cancelled job within ``--grace``, ``limit_s`` seconds."""

    limit_s: float


class ProtocolBroken(msgspec.Struct, frozen=True, tag="protocol_broken"):
    """It violated the protocol; ``what`` describes how."""

    what: str


class LostGpu(msgspec.Struct, frozen=True):
    """GPU ``index`` reported the hardware error ``xid``, or NVML reports it lost; ``error`` is NVML's message, if any."""

    index: int
    xid: int | None = None
    error: str | None = None


class GpusLost(msgspec.Struct, frozen=True, tag="gpus_lost"):
    """GPUs of its slot are out of service."""

    gpus: tuple[LostGpu, ...]


class EndedBecause(str, enum.Enum):
    """Why a worker ended that did not end by itself."""

    TEMPLATE_DIED = "template_died"  # all its workers are stopped with it
    CANCELLED_JOB_RAN = "cancelled_job_ran"  # a cancelled job did not stop
    OVERDUE_JOB_RAN = "overdue_job_ran"  # a timed-out job did not stop
    SUPERVISOR_STOPS = "supervisor_stops"


WorkerEnd = Union[
    ProcessEnd,
    RefreshCause,
    PauseCause,
    EndedBecause,
    TooManyProcesses,
    HandlerNotLoaded,
    ForkRefused,
    NoTemplate,
    StartTimedOut,
    CancelIgnored,
    ProtocolBroken,
    GpusLost,
]


# --- GPU memory after a worker's death -----------------------------------------------------------------------------------


class MemoryHolder(msgspec.Struct, frozen=True):
    """A process of the dead worker's tree that NVML still lists."""

    pid: int
    name: str | None = None


class HeldGpu(msgspec.Struct, frozen=True):
    """A GPU with ``mib`` still in use (``None``: no reading). ``gpu`` is its label if the slot has several."""

    mib: int | None
    by: tuple[MemoryHolder, ...] = ()
    gpu: str | None = None


class Unknown(str, enum.Enum):
    """Reasons why NVML cannot attribute GPU memory to a process."""

    NO_COUNTER = "no_counter"
    NO_READING = "no_reading"
    NO_BASELINE = "no_baseline"
    NO_PROCESSES = "no_processes"
    NOT_SHOWN = "not_shown"
    UNSEEN = "unseen"
    NEIGHBOUR_ENDED = "neighbour_ended"


class UnknownGpu(msgspec.Struct, frozen=True):
    """A GPU whose ``mib`` in use cannot be attributed. ``unseen`` are processes that NVML lists but that are not visible in this
    PID namespace; ``gpu`` as in ``HeldGpu``."""

    why: Unknown
    mib: int | None = None
    unseen: tuple[int, ...] = ()
    gpu: str | None = None


class MemoryStaysInUse(msgspec.Struct, frozen=True, tag="memory_stays_in_use"):
    """GPU memory of the dead worker's tree was, by evidence, not released."""

    gpus: tuple[HeldGpu, ...]


class StuckInKernel(msgspec.Struct, frozen=True, tag="stuck_in_kernel"):
    """Process ``pid`` was still there ``waited_s`` seconds after SIGKILL."""

    pid: int | None
    waited_s: float


Obstacle = Union[MemoryStaysInUse, StuckInKernel]
"""Reasons why a slot cannot start its next worker."""

SlotReason = Union[WorkerEnd, Obstacle]
"""Reasons why a slot is not in service."""


# --- why a job ended -----------------------------------------------------------------------------------------------------


class WorkerLost(msgspec.Struct, frozen=True, tag="worker_lost"):
    """The worker that ran it, in ``slot``, ended first; ``tail`` is the output tail."""

    slot: str
    pid: int | None
    end: WorkerEnd
    tail: tuple[str, ...] = ()


class TooLarge(msgspec.Struct, frozen=True, tag="too_large"):
    """Output and error, or stream chunk number ``chunk``, have ``size`` bytes, over the ``limit`` of ``--max-result``."""

    size: int
    limit: int
    chunk: int | None = None


class StreamTooLarge(msgspec.Struct, frozen=True, tag="stream_too_large"):
    """``chunks`` chunks, with ``cost`` bytes overhead each, have more than ``limit`` bytes: ``results`` times ``--max-result``,
    or as many MiB."""

    chunks: int
    cost: int
    limit: int
    results: int


class NotEncodable(msgspec.Struct, frozen=True, tag="not_encodable"):
    """The handler's value cannot be encoded as JSON; ``what`` names the path inside it and the type."""

    what: str


class ExecutionTimedOut(msgspec.Struct, frozen=True, tag="execution_timed_out"):
    """It ran longer than ``limit_ms``."""

    limit_ms: int


class TtlPassed(msgspec.Struct, frozen=True, tag="ttl_passed"):
    """Its ``ttl`` passed."""


class SupervisorKilled(msgspec.Struct, frozen=True, tag="supervisor_killed"):
    """The supervisor was killed while it ran: in the last of ``starts`` starts, or under ``--on-restart fail``."""

    starts: int | None = None


class ChunksHandedOut(msgspec.Struct, frozen=True, tag="chunks_handed_out"):
    """The supervisor was killed after chunks were handed out, so the job is not requeued (unless ``--requeue-streams``)."""


class SupervisorStopped(msgspec.Struct, frozen=True, tag="supervisor_stopped"):
    """The supervisor stopped while it ran."""


class SecretUnreadable(msgspec.Struct, frozen=True, tag="secret_unreadable"):
    """The ``file`` of its ``s3Config`` cannot be used; ``error`` is the operating system's message."""

    file: str
    error: str


class SupervisorClosed(msgspec.Struct, frozen=True, tag="supervisor_closed"):
    """The embedding program closed the supervisor first; ``kept``: the job stays in its store. Never stored."""

    kept: bool


class SupervisorFailed(msgspec.Struct, frozen=True, tag="supervisor_failed"):
    """The embedded supervisor failed; ``error`` is the exception. Never stored."""

    error: str


class UnknownCause(msgspec.Struct, frozen=True, tag="unknown_cause"):
    """A cause ``text`` in the store by a later version of this program. Never stored."""

    text: str


ResultFault = Union[TooLarge, NotEncodable]
"""Causes that a worker may report for a handler's value."""

JobCause = Union[
    WorkerLost,
    ResultFault,
    StreamTooLarge,
    ExecutionTimedOut,
    TtlPassed,
    SupervisorKilled,
    ChunksHandedOut,
    SupervisorStopped,
    SecretUnreadable,
    SupervisorClosed,
    SupervisorFailed,
    UnknownCause,
]

_decode_job_cause = msgspec.json.Decoder[JobCause](JobCause).decode


def read_job_cause(text: str) -> JobCause:
    """Parse a stored cause; one by a later version becomes ``UnknownCause``."""
    try:
        return _decode_job_cause(text)
    except msgspec.DecodeError:
        return UnknownCause(text)
