"""Events for the user, as values, from the pool, the engine and the webhooks; imported by every process.

Each has a ``kind``, as in the JSON log, and a ``level``: lines are filtered and coloured by these, never by their text, which
``protocol/event_lines.py`` makes.
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
    """Severity. ``ERROR``: something is out of service until it is repaired."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Notice(msgspec.Struct, frozen=True):
    """Base of all events for the user."""

    kind: ClassVar[str] = "warning"
    level: ClassVar[Level] = Level.WARNING


class SlotNotice(Notice, frozen=True):
    """Base of the events of a slot and its worker."""

    slot: str


# --- workers and slots ---------------------------------------------------------------------------------------------------


class WorkerReady(SlotNotice, frozen=True):
    """A worker is ready, ``load_ms`` after its fork; ``handler`` is its handler's kind."""

    kind = "worker"
    level = Level.INFO

    pid: int
    handler: str
    load_ms: float


class WorkerRestarts(SlotNotice, frozen=True):
    """A worker ended, not for a refresh, and is replaced."""

    kind = "restart"
    level = Level.INFO

    pid: int | None
    end: WorkerEnd


class StartFailed(SlotNotice, frozen=True):
    """A worker failed to start; the next try is in ``retry_s``, ``None`` until a first worker was ready: if none comes, the
    program ends."""

    kind = "worker"
    level = Level.INFO

    end: WorkerEnd
    retry_s: float | None


class SlotBroken(StartFailed, frozen=True):
    """A worker failed to start too often in a row."""

    level = Level.ERROR


class Refreshed(SlotNotice, frozen=True):
    """A refresh for ``cause`` is complete; durations of its steps in seconds, as in ``RefreshView``."""

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
    """The worker survives SIGKILL."""

    obstacle: StuckInKernel


class WorkerWarned(SlotNotice, frozen=True):
    """The worker has a warning for the user, ``text``."""

    text: str


class WarningsLeftOut(SlotNotice, frozen=True):
    """The worker warned ``most`` times; further warnings are dropped."""

    most: int


class LastMessageUnreadable(SlotNotice, frozen=True):
    """The dead worker's last message cannot be read; ``error`` is the reason."""

    error: str


class PortOwner(msgspec.Struct, frozen=True):
    """The worker in ``slot`` listens on ``ports``."""

    slot: str
    ports: tuple[int, ...]


class PortTaken(SlotNotice, frozen=True):
    """A port that the worker tried to bind is in use, perhaps by ``owners``."""

    owners: tuple[PortOwner, ...]


# --- GPUs ----------------------------------------------------------------------------------------------------------------


class SlotOut(SlotNotice, frozen=True):
    """The slot is out of service until its GPUs work again and a dead worker's memory is released."""

    kind = "gpu"
    level = Level.ERROR

    cause: Union[MemoryStaysInUse, GpusLost]


class ReleaseUnverified(SlotNotice, frozen=True):
    """The slot continues, although memory on ``gpus`` cannot be attributed."""

    kind = "gpu"
    level = Level.INFO

    gpus: tuple[UnknownGpu, ...]


class HoldsWithoutJob(SlotNotice, frozen=True):
    """The worker holds ``mib``, more than ``--refresh-above`` (``limit_mib``), before its first job: a refresh would not help."""

    mib: int
    limit_mib: int


class ProgramXid(SlotNotice, frozen=True):
    """GPU ``gpu`` (its index) reported ``xid``, an error that the program caused."""

    gpu: int
    xid: int


class XidsUnwatched(SlotNotice, frozen=True):
    """The driver does not report Xids; ``reason`` is its message."""

    reason: str


class RefreshAboveBlind(SlotNotice, frozen=True):
    """NVML does not report memory by worker, so ``--refresh-above`` (``limit_mib``) has no effect."""

    limit_mib: int


GpuRemark = Union[ProgramXid, XidsUnwatched, RefreshAboveBlind]


# --- the template --------------------------------------------------------------------------------------------------------


class NotPreloaded(Notice, frozen=True):
    """``module`` is not preloaded, so each worker imports it; ``why`` is the template's reason."""

    module: str
    why: str


class TemplateRestarts(Notice, frozen=True):
    """The template ended and is replaced. ``left_behind``: number of orphans, which were killed."""

    end: TemplateEnd
    left_behind: int


# --- the program ---------------------------------------------------------------------------------------------------------


class FilesWatched(Notice, frozen=True):
    """``count`` Python files in ``folder`` are watched for changes; ``most``: the limit, if there are more."""

    kind = "note"
    level = Level.INFO

    count: int
    folder: str
    most: int | None = None


class Reloading(Notice, frozen=True):
    """The handler is reloaded because files ``changed``, or without any because of SIGHUP."""

    kind = "reload"
    level = Level.INFO

    changed: tuple[str, ...] = ()


class Task(str, enum.Enum):
    """Background tasks that may fail."""

    WRITE_STORE = "write_store"
    REMOVE_OLD_JOBS = "remove_old_jobs"
    REMOVE_SECRET = "remove_secret"  # an s3Config's file, at the program's start
    REMOVE_ENDED_SECRET = "remove_ended_secret"  # an s3Config's file, at its job's end
    DELIVER_WEBHOOKS = "deliver_webhooks"


class TaskFailed(Notice, frozen=True):
    """A task failed with the operating system's ``error``; the program continues, and retries if that helps."""

    task: Task
    error: str


class StoreWritable(Notice, frozen=True):
    """The store can be written again."""


# --- webhooks ------------------------------------------------------------------------------------------------------------


class WebhookGivenUp(Notice, frozen=True):
    """``receiver`` did not acknowledge the webhook of ``job`` in ``tries`` tries; ``why`` is the last one's error."""

    job: str
    receiver: str
    tries: int
    why: str


class WebhooksLost(Notice, frozen=True):
    """The program exits and drops ``count`` undelivered webhooks with its temporary outbox."""

    count: int
