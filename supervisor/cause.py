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


class AskedByHandler(msgspec.Struct, frozen=True, tag="asked_by_handler"):
    """The result, or the handler's config, says ``refresh_worker``."""


class CudaContextBroken(msgspec.Struct, frozen=True, tag="cuda_context_broken"):
    """A job met a CUDA error after which no call of that process succeeds; ``error`` is its short name."""

    error: str


class GpuMemoryFull(msgspec.Struct, frozen=True, tag="gpu_memory_full"):
    """A job found the GPU's memory full, under ``--refresh-on-oom``."""


class AfterEachJob(msgspec.Struct, frozen=True, tag="after_each_job"):
    """``--refresh-worker``."""


class AfterSomeJobs(msgspec.Struct, frozen=True, tag="after_some_jobs"):
    """``--refresh-after-jobs``."""


class HoldsTooMuch(msgspec.Struct, frozen=True, tag="holds_too_much"):
    """The idle worker held more GPU memory than ``--refresh-above``."""


class RefreshedByHand(msgspec.Struct, frozen=True, tag="refreshed_by_hand"):
    """Somebody asked for a refresh of the slot."""


class HandlerReloaded(msgspec.Struct, frozen=True, tag="handler_reloaded"):
    """The handler is loaded anew: its files changed (``--reload``), or SIGHUP."""


RefreshCause = Union[
    AskedByHandler,
    CudaContextBroken,
    GpuMemoryFull,
    AfterEachJob,
    AfterSomeJobs,
    HoldsTooMuch,
    RefreshedByHand,
    HandlerReloaded,
]


# --- why a slot is paused ------------------------------------------------------------------------------------------------


class PausedByHand(msgspec.Struct, frozen=True, tag="paused_by_hand"):
    """Somebody paused the slot: nothing but a resume brings it back."""


class StartsOnDemand(msgspec.Struct, frozen=True, tag="starts_on_demand"):
    """``--min-workers`` are enough until jobs wait."""


class IdleTooLong(msgspec.Struct, frozen=True, tag="idle_too_long"):
    """The worker had no job for ``--idle-timeout``, ``limit_s`` seconds."""

    limit_s: float


class EnoughOthers(msgspec.Struct, frozen=True, tag="enough_others"):
    """``--max-workers``, ``most``, are in service without it."""

    most: int


SpareCause = Union[StartsOnDemand, IdleTooLong, EnoughOthers]
"""Those of scaling, which starts the slot again when jobs wait."""

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


class TemplateDied(msgspec.Struct, frozen=True, tag="template_died"):
    """The template died, and every worker with it."""


class StartTimedOut(msgspec.Struct, frozen=True, tag="start_timed_out"):
    """It was not ready within ``--start-timeout``, ``limit_s`` seconds."""

    limit_s: float


class CancelledJobRan(msgspec.Struct, frozen=True, tag="cancelled_job_ran"):
    """It was ended because a job that was cancelled still ran."""


class OverdueJobRan(msgspec.Struct, frozen=True, tag="overdue_job_ran"):
    """It was ended because a job that was out of time still ran."""


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


class SupervisorStops(msgspec.Struct, frozen=True, tag="supervisor_stops"):
    """The supervisor ends its workers."""


WorkerEnd = Union[
    ProcessEnd,
    RefreshCause,
    PauseCause,
    TooManyProcesses,
    HandlerNotLoaded,
    ForkRefused,
    NoTemplate,
    TemplateDied,
    StartTimedOut,
    CancelledJobRan,
    OverdueJobRan,
    CancelIgnored,
    ProtocolBroken,
    GpusLost,
    SupervisorStops,
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


class ResultTooLarge(msgspec.Struct, frozen=True, tag="result_too_large"):
    """Output and error have ``size`` bytes; ``--max-result`` is ``limit``."""

    size: int
    limit: int


class ChunkTooLarge(msgspec.Struct, frozen=True, tag="chunk_too_large"):
    """Stream chunk ``index`` has ``size`` bytes; ``--max-result`` is ``limit``."""

    index: int
    size: int
    limit: int


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
    """The supervisor was killed while it ran, under ``--on-restart fail``."""


class KilledTooOften(msgspec.Struct, frozen=True, tag="killed_too_often"):
    """The supervisor was killed while it ran, in the last of ``starts`` starts."""

    starts: int


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


class LineRefused(msgspec.Struct, frozen=True, tag="line_refused"):
    """The line of a batch cannot be a job; ``why`` is what `/run` would answer. Never stored."""

    why: str


ResultFault = Union[ResultTooLarge, ChunkTooLarge, NotEncodable]
"""What a worker may say of a handler's value."""

JobCause = Union[
    WorkerLost,
    ResultFault,
    StreamTooLarge,
    ExecutionTimedOut,
    TtlPassed,
    SupervisorKilled,
    KilledTooOften,
    ChunksHandedOut,
    SupervisorStopped,
    SecretUnreadable,
    SupervisorClosed,
    SupervisorFailed,
    LineRefused,
]
