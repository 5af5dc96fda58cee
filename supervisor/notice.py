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


class Notice(msgspec.Struct, frozen=True):
    """What all of them have."""

    kind: ClassVar[str] = "warning"
    level: ClassVar[Level] = Level.WARNING


class SlotNotice(Notice, frozen=True):
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


class SlotBroken(StartFailed, frozen=True):
    """The same, too often in a row to go on as before."""

    level = Level.ERROR


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


class SlotOut(SlotNotice, frozen=True):
    """The slot is out of service until its GPUs are of use again, and free of what a dead worker held."""

    kind = "gpu"
    level = Level.ERROR

    cause: Union[MemoryStaysInUse, GpusLost]


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


class NotPreloaded(Notice, frozen=True):
    """``module`` is left to the workers to import; ``why`` is the template's word."""

    module: str
    why: str


class TemplateRestarts(Notice, frozen=True):
    """The template ended, and another is started. ``left_behind``: how many processes it left, which were ended."""

    end: TemplateEnd
    left_behind: int


# --- the program ---------------------------------------------------------------------------------------------------------


class FilesWatched(Notice, frozen=True):
    """``count`` Python files in ``folder`` are watched for changes; ``most``: it is the limit, and there are more."""

    kind = "note"
    level = Level.INFO

    count: int
    folder: str
    most: int | None = None


class Reloading(Notice, frozen=True):
    """The handler is loaded anew since the files ``changed`` did, or without any by SIGHUP."""

    kind = "reload"
    level = Level.INFO

    changed: tuple[str, ...] = ()


class Task(str, enum.Enum):
    """What the program has to do at some time, and may fail to."""

    WRITE_STORE = "write_store"
    REMOVE_OLD_JOBS = "remove_old_jobs"
    REMOVE_SECRET = "remove_secret"  # the file of an s3Config, as the program starts
    REMOVE_ENDED_SECRET = "remove_ended_secret"  # as its job has ended
    DELIVER_WEBHOOKS = "deliver_webhooks"


class TaskFailed(Notice, frozen=True):
    """The operating system refuses, by the words of ``error``; the program goes on, and tries again where that helps."""

    task: Task
    error: str


class StoreWritable(Notice, frozen=True):
    """The store's disk does not refuse any more."""


# --- webhooks ------------------------------------------------------------------------------------------------------------


class WebhookGivenUp(Notice, frozen=True):
    """The webhook of ``job`` was not acknowledged by ``receiver`` in ``tries`` tries; ``why`` is of the last one."""

    job: str
    receiver: str
    tries: int
    why: str


class WebhooksLost(Notice, frozen=True):
    """The program ends with ``count`` webhooks undelivered, and their outbox with it."""

    count: int
