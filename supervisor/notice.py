"""What a person should know of, as values: the pool, the engine and the webhooks give notice; imported by every process.

Each has a ``kind``, which the JSON log carries, and a ``level``: lines are filtered and coloured by these, and never by their
words, which ``protocol/event_lines.py`` makes.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Union

import msgspec

from supervisor.cause import (
    GpusLost,
    MemoryStaysInUse,
    PauseCause,
    StuckInKernel,
    TemplateEnd,
    UnknownGpu,
    WorkerEnd,
)


class Level(str, enum.Enum):
    """How bad it is. ``ERROR``: something is out of service until it is put right."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class AnyNotice(msgspec.Struct, frozen=True):
    """What all of them have."""

    kind: ClassVar[str] = "warning"
    level: ClassVar[Level] = Level.WARNING


class SlotNotice(AnyNotice, frozen=True):
    """One about a slot, and the worker in it."""

    slot: str


# --- workers and slots ---------------------------------------------------------------------------------------------------


class WorkerReady(SlotNotice, frozen=True):
    """A worker is ready, ``load_ms`` after its fork; ``handler`` is what kind its handler is."""

    kind = "worker"
    level = Level.INFO

    pid: int
    handler: str
    load_ms: float


class WorkerRestarts(SlotNotice, frozen=True):
    """A worker ended, not for a refresh; another one comes."""

    kind = "restart"
    level = Level.INFO

    pid: int | None
    end: WorkerEnd


class StartFailed(SlotNotice, frozen=True):
    """A worker did not come into service; the next try is in ``retry_s``, ``None`` while that depends on the other slots."""

    kind = "worker"
    level = Level.INFO

    end: WorkerEnd
    retry_s: float | None


class SlotBroken(SlotNotice, frozen=True):
    """The same, too often in a row to go on as before."""

    kind = "worker"
    level = Level.ERROR

    end: WorkerEnd
    retry_s: float


class Refreshed(SlotNotice, frozen=True):
    """A refresh is complete, asked for by ``cause``; durations in seconds, as ``RefreshView`` has the steps."""

    kind = "refresh"
    level = Level.INFO

    cause: WorkerEnd
    end_s: float
    release_s: float
    start_s: float
    freed_mib: int | None
    verified: bool


class SlotPaused(SlotNotice, frozen=True):
    """The slot is out of service until it is resumed."""

    kind = "worker"
    level = Level.INFO

    cause: PauseCause


class WorkerStuck(SlotNotice, frozen=True):
    """SIGKILL does not end the worker."""

    obstacle: StuckInKernel


class WorkerWarned(SlotNotice, frozen=True):
    """The worker has a warning for the user, ``text``."""

    text: str


class WarningsLeftOut(SlotNotice, frozen=True):
    """The worker warned ``most`` times; more is not passed on."""

    most: int


class LastMessageUnreadable(SlotNotice, frozen=True):
    """The dead worker left a message that cannot be read; ``error`` says why."""

    error: str


class PortOwner(msgspec.Struct, frozen=True):
    """The worker in ``slot`` listens on ``ports``."""

    slot: str
    ports: tuple[int, ...]


class PortTaken(SlotNotice, frozen=True):
    """A port that the worker wanted is in use, perhaps by those ``owners``."""

    owners: tuple[PortOwner, ...]


# --- GPUs ----------------------------------------------------------------------------------------------------------------


class SlotHeld(SlotNotice, frozen=True):
    """GPU memory of a dead worker keeps the slot out of service."""

    kind = "gpu"
    level = Level.ERROR

    memory: MemoryStaysInUse


class SlotLost(SlotNotice, frozen=True):
    """The slot is out of service until NVML answers for its GPUs again."""

    kind = "gpu"
    level = Level.ERROR

    cause: GpusLost


class ReleaseUnverified(SlotNotice, frozen=True):
    """The slot goes on, and nobody can tell whose the memory on ``gpus`` is."""

    kind = "gpu"
    level = Level.INFO

    gpus: tuple[UnknownGpu, ...]


class HoldsWithoutJob(SlotNotice, frozen=True):
    """The worker holds ``mib``, more than ``--refresh-above`` (``limit_mib``), before it had a job: a fresh one would as well."""

    mib: int
    limit_mib: int


class ProgramXid(SlotNotice, frozen=True):
    """GPU ``gpu`` (its index) showed the error ``xid``, which is the program's fault."""

    gpu: int
    xid: int


class XidsUnwatched(SlotNotice, frozen=True):
    """The driver does not report Xids; ``reason`` is its word."""

    reason: str


class RefreshAboveBlind(SlotNotice, frozen=True):
    """NVML does not show what each worker holds, so ``--refresh-above`` (``limit_mib``) has no effect."""

    limit_mib: int


GpuRemark = Union[ProgramXid, XidsUnwatched, RefreshAboveBlind]


# --- the template --------------------------------------------------------------------------------------------------------


class NotPreloaded(AnyNotice, frozen=True):
    """``module`` is left to the workers to import; ``why`` is the template's word."""

    module: str
    why: str


class TemplateRestarts(AnyNotice, frozen=True):
    """The template ended, and another is started. ``left_behind``: how many processes it left, which were ended."""

    end: TemplateEnd
    left_behind: int


# --- the program ---------------------------------------------------------------------------------------------------------


class FilesWatched(AnyNotice, frozen=True):
    """``count`` Python files in ``folder`` are watched for changes; ``most``: it is the limit, and there are more."""

    kind = "note"
    level = Level.INFO

    count: int
    folder: str
    most: int | None = None


class Reloading(AnyNotice, frozen=True):
    """The handler is loaded anew since the files ``changed`` did, or without any by SIGHUP."""

    kind = "reload"
    level = Level.INFO

    changed: tuple[str, ...] = ()


class StoreStalled(AnyNotice, frozen=True):
    """The store's disk refuses, and is tried again."""

    error: str


class StoreWritable(AnyNotice, frozen=True):
    """It does not refuse any more."""


class OldJobsKept(AnyNotice, frozen=True):
    """Jobs could not be removed whose retention is over."""

    error: str


class SecretKept(AnyNotice, frozen=True):
    """The file of an ``s3Config`` could not be removed; ``ended``: as its job ended, else at the start."""

    error: str
    ended: bool


# --- webhooks ------------------------------------------------------------------------------------------------------------


class WebhooksStalled(AnyNotice, frozen=True):
    """Webhooks cannot be read or begun now; it is tried again."""

    error: str


class WebhookGivenUp(AnyNotice, frozen=True):
    """The webhook of ``job`` was not acknowledged by ``receiver`` in ``tries`` tries; ``why`` is of the last one."""

    job: str
    receiver: str
    tries: int
    why: str


class WebhooksLost(AnyNotice, frozen=True):
    """The program ends with ``count`` webhooks undelivered, and their outbox with it."""

    count: int


Notice = Union[
    WorkerReady,
    WorkerRestarts,
    StartFailed,
    SlotBroken,
    Refreshed,
    SlotPaused,
    WorkerStuck,
    WorkerWarned,
    WarningsLeftOut,
    LastMessageUnreadable,
    PortTaken,
    SlotHeld,
    SlotLost,
    ReleaseUnverified,
    HoldsWithoutJob,
    GpuRemark,
    NotPreloaded,
    TemplateRestarts,
    FilesWatched,
    Reloading,
    StoreStalled,
    StoreWritable,
    OldJobsKept,
    SecretKept,
    WebhooksStalled,
    WebhookGivenUp,
    WebhooksLost,
]
