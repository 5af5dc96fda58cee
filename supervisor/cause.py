"""Why a job, a worker or the template ended, and why a slot is out of service: values with fields; imported by every process.

Code decides by these and never reads a sentence; ``protocol/wording.py`` alone puts them into words, where a person reads them.
The store keeps a ``JobCause`` as JSON: a tag or a field that was released is not renamed, and one that is added has a default.
"""

from __future__ import annotations

import enum
from typing import Union

import msgspec

# --- how a process ended -------------------------------------------------------------------------------------------------


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """The process left with exit code ``code``."""

    code: int


class Signalled(msgspec.Struct, frozen=True, tag="signalled"):
    """The process was ended by signal number ``signum``."""

    signum: int


ProcessEnd = Union[Exited, Signalled]


def process_end(status: int) -> ProcessEnd:
    """How the process with this exit ``status`` ended: ``-N`` is death by signal N, anything else an exit code."""
    return Exited(status) if status >= 0 else Signalled(-status)


# --- why there is no template --------------------------------------------------------------------------------------------


class TemplateNotStarted(msgspec.Struct, frozen=True, tag="template_not_started"):
    """The operating system refused to start it; ``error`` is its word."""

    error: str


class TemplateVanished(msgspec.Struct, frozen=True, tag="template_vanished"):
    """It is gone, and its exit status could not be learnt."""


TemplateEnd = Union[Exited, Signalled, TemplateNotStarted, TemplateVanished]


# --- why a worker is replaced --------------------------------------------------------------------------------------------


class RefreshBy(str, enum.Enum):
    """Who asks for a refresh."""

    HANDLER = "handler"  # the result, or the handler's config, says `refresh_worker`
    CUDA_ERROR = "cuda_error"  # a job met one after which no call of that process succeeds
    FULL_GPU = "full_gpu"  # a job found the GPU's memory full, under --refresh-on-oom
    EACH_JOB = "each_job"  # --refresh-worker
    SOME_JOBS = "some_jobs"  # --refresh-after-jobs
    HELD_MEMORY = "held_memory"  # the idle worker held more of the GPU's than --refresh-above
    HAND = "hand"
    RELOAD = "reload"  # the handler's files changed (--reload), or SIGHUP


class RefreshCause(msgspec.Struct, frozen=True, tag="refresh"):
    """A fresh worker is to come; ``error`` is the CUDA error's short name."""

    by: RefreshBy
    error: str = ""


# --- why a slot is paused ------------------------------------------------------------------------------------------------


class PausedByHand(msgspec.Struct, frozen=True, tag="paused_by_hand"):
    """Somebody paused the slot: nothing but a resume brings it back."""


class SpareCause(msgspec.Struct, frozen=True, tag="spare"):
    """Scaling does without the slot until jobs wait: its worker had none for ``idle_s`` seconds (``--idle-timeout``), ``most``
    are in service without it (``--max-workers``), or with neither it never started."""

    idle_s: float | None = None
    most: int | None = None


PauseCause = Union[PausedByHand, SpareCause]


# --- why a worker ended, or never came -----------------------------------------------------------------------------------


class TooManyProcesses(msgspec.Struct, frozen=True, tag="too_many_processes"):
    """It and what it started were more than ``limit`` processes (``--max-processes``); ``dead``: most of them dead ones that
    nobody had waited for."""

    limit: int
    dead: bool = False


class HandlerNotLoaded(msgspec.Struct, frozen=True, tag="handler_not_loaded"):
    """The handler cannot be served; ``message`` is the worker's, about the user's code."""

    message: str


class ForkRefused(msgspec.Struct, frozen=True, tag="fork_refused"):
    """The operating system refused a new process; ``error`` is its word."""

    error: str


class NoTemplate(msgspec.Struct, frozen=True, tag="no_template"):
    """No template lived long enough to fork it; ``end`` is how the last one ended."""

    end: TemplateEnd


class StartTimedOut(msgspec.Struct, frozen=True, tag="start_timed_out"):
    """It was not ready within ``--start-timeout``, ``limit_s`` seconds."""

    limit_s: float


class CancelIgnored(msgspec.Struct, frozen=True, tag="cancel_ignored"):
    """It did not stop a cancelled job within ``--grace``, ``limit_s`` seconds."""

    limit_s: float


class ProtocolBroken(msgspec.Struct, frozen=True, tag="protocol_broken"):
    """It said what no worker of ours says; ``what`` describes that."""

    what: str


class LostGpu(msgspec.Struct, frozen=True):
    """GPU ``index`` showed the hardware error ``xid``, or NVML says that it is lost; ``error`` is NVML's word, if it has one."""

    index: int
    xid: int | None = None
    error: str | None = None


class GpusLost(msgspec.Struct, frozen=True, tag="gpus_lost"):
    """GPUs of its slot are of no use."""

    gpus: tuple[LostGpu, ...]


class EndedBecause(str, enum.Enum):
    """We ended it, for no fault of its own."""

    TEMPLATE_DIED = "template_died"  # and every worker with it
    CANCELLED_JOB_RAN = "cancelled_job_ran"  # still
    OVERDUE_JOB_RAN = "overdue_job_ran"  # still, out of time
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
    """A process of the dead worker's tree that NVML lists still."""

    pid: int
    name: str | None = None


class HeldGpu(msgspec.Struct, frozen=True):
    """``mib`` are in use still (``None``: there was no reading). ``gpu`` is its label where the slot has several."""

    mib: int | None
    by: tuple[MemoryHolder, ...] = ()
    gpu: str | None = None


class Unknown(str, enum.Enum):
    """Why NVML cannot tell whose the memory is."""

    NO_COUNTER = "no_counter"
    NO_READING = "no_reading"
    NO_BASELINE = "no_baseline"
    NO_PROCESSES = "no_processes"
    NOT_SHOWN = "not_shown"
    UNSEEN = "unseen"
    NEIGHBOUR_ENDED = "neighbour_ended"


class UnknownGpu(msgspec.Struct, frozen=True):
    """It cannot be said whose the ``mib`` are that are in use. ``unseen`` are processes that NVML lists and this PID namespace
    does not show; ``gpu`` as in ``HeldGpu``."""

    why: Unknown
    mib: int | None = None
    unseen: tuple[int, ...] = ()
    gpu: str | None = None


class MemoryStaysInUse(msgspec.Struct, frozen=True, tag="memory_stays_in_use"):
    """On evidence: what the dead worker's tree held was not given back."""

    gpus: tuple[HeldGpu, ...]


class StuckInKernel(msgspec.Struct, frozen=True, tag="stuck_in_kernel"):
    """Process ``pid`` was still there ``waited_s`` seconds after SIGKILL."""

    pid: int | None
    waited_s: float


Obstacle = Union[MemoryStaysInUse, StuckInKernel]
"""What keeps a slot from its next worker."""

SlotReason = Union[WorkerEnd, Obstacle]
"""Why a slot is not in service."""


# --- why a job ended -----------------------------------------------------------------------------------------------------


class WorkerLost(msgspec.Struct, frozen=True, tag="worker_lost"):
    """The worker that ran it ended first, in ``slot``; ``tail`` are the last lines that it wrote."""

    slot: str
    pid: int | None
    end: WorkerEnd
    tail: tuple[str, ...] = ()


class TooLarge(msgspec.Struct, frozen=True, tag="too_large"):
    """Output and error, or stream chunk number ``chunk``, have ``size`` bytes; ``--max-result`` is ``limit``."""

    size: int
    limit: int
    chunk: int | None = None


class StreamTooLarge(msgspec.Struct, frozen=True, tag="stream_too_large"):
    """``chunks`` chunks, each with ``cost`` bytes for its place, have more than ``limit`` bytes: ``results`` times
    ``--max-result``, or as many MiB."""

    chunks: int
    cost: int
    limit: int
    results: int


class NotEncodable(msgspec.Struct, frozen=True, tag="not_encodable"):
    """What the handler gave cannot be JSON; ``what`` names the path inside it and the type."""

    what: str


class ExecutionTimedOut(msgspec.Struct, frozen=True, tag="execution_timed_out"):
    """It ran longer than ``limit_ms``."""

    limit_ms: int


class TtlPassed(msgspec.Struct, frozen=True, tag="ttl_passed"):
    """It was older than its ``ttl``."""


class SupervisorKilled(msgspec.Struct, frozen=True, tag="supervisor_killed"):
    """The supervisor was killed while it ran: in the last of ``starts`` starts, or under ``--on-restart fail``."""

    starts: int | None = None


class ChunksHandedOut(msgspec.Struct, frozen=True, tag="chunks_handed_out"):
    """The supervisor was killed after chunks of it were handed out, so it cannot begin anew (but for ``--requeue-streams``)."""


class SupervisorStopped(msgspec.Struct, frozen=True, tag="supervisor_stopped"):
    """The supervisor stopped while it ran."""


class SecretUnreadable(msgspec.Struct, frozen=True, tag="secret_unreadable"):
    """The ``file`` of its ``s3Config`` cannot be used; ``error`` is the operating system's word."""

    file: str
    error: str


class SupervisorClosed(msgspec.Struct, frozen=True, tag="supervisor_closed"):
    """The program that embeds the supervisor closed it before; ``kept``: the job waits in its store. Never stored."""

    kept: bool


class SupervisorFailed(msgspec.Struct, frozen=True, tag="supervisor_failed"):
    """The embedded supervisor broke; ``error`` is the exception. Never stored."""

    error: str


class UnknownCause(msgspec.Struct, frozen=True, tag="unknown_cause"):
    """The store has ``text``, by a later version of this program. Never stored."""

    text: str


ResultFault = Union[TooLarge, NotEncodable]
"""What a worker may say of a handler's value."""

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
    """The cause that is stored as ``text``, also where a later version wrote it."""
    try:
        return _decode_job_cause(text)
    except msgspec.DecodeError:
        return UnknownCause(text)
