"""The current state as the API, the metrics and the dashboard show it; made by the engine, read by the layers above.

Field names become camelCase on the wire. Times are milliseconds since 1970, durations milliseconds, sizes MiB.
"""

from __future__ import annotations

import msgspec

from supervisor.notice import Level


class RefreshView(msgspec.Struct, frozen=True, rename="camel"):
    """A finished refresh: the time of each step and the GPU memory freed.

    ``end_ms``: result received → worker and its processes exited; ``release_ms``: → GPU memory verified free;
    ``start_ms``: → fresh worker ready. ``verified`` is false where NVML could not attribute the memory.
    """

    at: int
    cause: str
    end_ms: float
    release_ms: float
    start_ms: float
    total_ms: float
    freed_mib: int | None = msgspec.field(default=None, name="freedMiB")
    verified: bool = True


class WorkerView(msgspec.Struct, frozen=True, rename="camel"):
    """A slot and the worker in it, as ``/workers`` shows it. ``running`` holds job ids, ``gpus`` indices (MIG: UUIDs).

    ``spare``: scaled down, so a ``parked`` slot starts when jobs wait; a paused one does not.
    """

    id: str
    slot: str
    gpus: tuple[int | str, ...]
    state: str
    pid: int | None
    generation: int
    jobs: int
    refreshes: int
    restarts: int
    running: tuple[str, ...] = ()
    gpu_memory_mib: int | None = msgspec.field(default=None, name="gpuMemoryMiB")
    last_refresh: RefreshView | None = None
    reason: str | None = None
    spare: bool = False


class GpuProcessInfo(msgspec.Struct, frozen=True, rename="camel"):
    """A process on a GPU. One that is not ``visible`` in this PID namespace has no name, and its ``pid`` may be another's."""

    pid: int
    memory_mib: int | None = msgspec.field(default=None, name="memoryMiB")
    name: str | None = None
    visible: bool = True


class GpuProcessView(GpuProcessInfo, frozen=True, rename="camel"):
    """A process on a GPU; ``slot`` is set for ours and null for others'. One that is not ``visible`` in this PID namespace may be
    either; ``pid`` may then be another namespace's."""

    slot: str | None = None


class GpuInfo(msgspec.Struct, frozen=True, rename="camel"):
    """One GPU as NVML shows it."""

    index: int
    uuid: str
    name: str
    simulated: bool = False
    memory_used_mib: int | None = msgspec.field(default=None, name="memoryUsedMiB")
    memory_total_mib: int | None = msgspec.field(default=None, name="memoryTotalMiB")
    utilization: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    error: str | None = None
    lost: bool = False


class GpuView(GpuInfo, frozen=True, rename="camel"):
    """One GPU as NVML shows it, with the slots on it."""

    slots: tuple[str, ...] = ()
    processes: tuple[GpuProcessView, ...] | None = None


class JobCounts(msgspec.Struct, frozen=True, rename="camel"):
    """The ``jobs`` of ``/health``."""

    completed: int = 0
    failed: int = 0
    in_progress: int = 0
    in_queue: int = 0
    retried: int = 0


class WorkerCounts(msgspec.Struct, frozen=True, rename="camel"):
    """The ``workers`` of ``/health``."""

    idle: int = 0
    initializing: int = 0
    ready: int = 0
    running: int = 0
    throttled: int = 0
    unhealthy: int = 0


class RunningJobView(msgspec.Struct, frozen=True, rename="camel"):
    """A running job. ``progress`` is its newest progress as JSON, ``null`` while there is none.

    (The type is not ``Raw | None``: msgspec decodes that only as None.)
    """

    id: str
    slot: str
    started_at: int
    attempt: int
    progress: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class EndedJobView(msgspec.Struct, frozen=True, rename="camel"):
    """A recently ended job; ``error`` is its first line."""

    id: str
    status: str
    ended_at: int
    delay_time: int
    execution_time: int | None
    worker_id: str | None = None
    error: str | None = None


class LogLine(msgspec.Struct, frozen=True, rename="camel"):
    """A line of a worker's output, or (without ``slot``) an event of the program itself, which has a ``level``."""

    at: int
    text: str
    slot: str | None = None
    job: str | None = None
    level: Level | None = None


class Stats(msgspec.Struct, frozen=True, rename="camel"):
    """Rates and percentiles over the last minute, totals since the start."""

    uptime_s: float
    submitted: int
    ended: int
    jobs_per_s: float
    delay_p50: float | None = None
    delay_p99: float | None = None
    execution_p50: float | None = None
    execution_p99: float | None = None


class Histogram(msgspec.Struct, frozen=True):
    """Values counted by size: ``counts[i]`` are at most ``bounds[i]`` and above the previous bound; the last has no bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Totals(msgspec.Struct, frozen=True):
    """Counters since the start, which never decrease. Times are in milliseconds.

    ``ended`` is by status, ``refresh`` by step (``end``, ``release``, ``start``); ``unverified`` counts refreshes.
    """

    submitted: int
    ended: dict[str, int]
    retried: int
    delay: Histogram
    execution: Histogram
    refresh: dict[str, Histogram]
    unverified: int


class Snapshot(msgspec.Struct, frozen=True, rename="camel"):
    """All that the dashboard shows, at one moment."""

    at: int
    version: str
    endpoint_id: str
    handler: str
    pid: int
    url: str | None
    draining: bool
    jobs: JobCounts
    workers: tuple[WorkerView, ...]
    gpus: tuple[GpuView, ...]
    running: tuple[RunningJobView, ...]
    ended: tuple[EndedJobView, ...]
    log: tuple[LogLine, ...]
    stats: Stats
    notice: str | None = None
