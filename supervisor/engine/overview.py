"""Makes the ``Snapshot`` from the pool's slots, the engine's jobs and the GPUs' readings; in the supervisor."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from supervisor import __version__
from supervisor.config.settings import Settings
from supervisor.engine.jobs import Active, Jobs
from supervisor.engine.statistics import Statistics
from supervisor.engine.turns import Clock
from supervisor.gpu.records import Gpu, GpuProcess, GpuSample
from supervisor.job import Job, delay_ms, execution_ms
from supervisor.notice import Notice, Refreshed
from supervisor.pool import events
from supervisor.pool.interfaces import Place, Pool
from supervisor.pool.slots.slot import Slot
from supervisor.protocol.event_lines import line
from supervisor.protocol.views import (
    EndedJobView,
    GpuProcessView,
    GpuView,
    LogLine,
    RefreshView,
    RunningJobView,
    Snapshot,
    WorkerView,
)
from supervisor.protocol.wording import error_line, words

LOG_LINES = 200
"""Log lines in a snapshot."""

ENDED_JOBS = 50
"""Most recently ended jobs in a snapshot."""

RUNNING_JOBS = 100
"""Running jobs in a snapshot."""


class Overview:
    """Data for screens and probes: statistics, the latest log lines and ended jobs."""

    def __init__(self, settings: Settings) -> None:
        """Describe the supervisor that runs under ``settings``."""
        self.statistics = Statistics()
        self.url: str | None = None
        self.notice: str | None = None
        self._settings = settings
        self._ended: deque[Job] = deque(maxlen=ENDED_JOBS)
        self._log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self._refreshed: dict[str, RefreshView] = {}

    def job_ended(self, job: Job, now: float) -> None:
        """Record an ended job; ``now`` in monotonic seconds."""
        self.statistics.ended(job, now)
        # Without fields that may be large. The view is made for a snapshot, not for each of thousands of jobs a second.
        self._ended.append(job.replace(input=b"", extras=None, output=None, error=error_line(job), cause=None))

    def happened(self, event: events.PoolEvent, at_ms: int) -> None:
        """Record the lines of an event."""
        if isinstance(event, events.Printed):
            self._log.extend(LogLine(at_ms, text, event.slot, event.job) for text in event.lines[-LOG_LINES:])
        elif isinstance(event, Notice):
            self._log.append(LogLine(at_ms, line(event), level=event.level))
            if isinstance(event, Refreshed):
                self._refreshed[event.slot] = refresh_view(event, at_ms)
                self.statistics.refreshed(event.end_s, event.release_s, event.start_s, verified=event.verified)

    def snapshot(self, pool: Pool, jobs: Jobs, clock: Clock, draining: bool) -> Snapshot:
        """Return the current state."""
        settings, active = self._settings, jobs.active
        return Snapshot(
            at=clock.wall_ms(),
            version=__version__,
            endpoint_id=settings.endpoint_id,
            handler=settings.handler,
            pid=os.getpid(),
            url=self.url,
            draining=draining,
            jobs=self.statistics.job_counts(len(active), len(jobs.backlog)),
            workers=tuple(self._worker(slot, pool.places[slot.name], pool.samples) for slot in pool.slots.values()),
            gpus=_gpus(pool),
            running=tuple(map(_running, itertools.islice(active.values(), RUNNING_JOBS))),
            ended=tuple(map(_ended, self._ended)),
            log=tuple(self._log),
            stats=self.statistics.stats(clock.monotonic()),
            notice=self.notice,
        )

    def _worker(self, slot: Slot, place: Place, samples: Mapping[str, GpuSample]) -> WorkerView:
        return WorkerView(
            id=slot.worker_id,
            slot=slot.name,
            gpus=tuple(gpu.index if gpu.mig is None else gpu.uuid for gpu in place.gpus),
            state=slot.state.value,
            pid=slot.pid,
            generation=slot.generation,
            jobs=slot.jobs,
            refreshes=slot.refreshes,
            restarts=slot.restarts,
            running=slot.running,
            gpu_memory_mib=_memory_of(slot.name, place.gpus, samples),
            last_refresh=self._refreshed.get(slot.name),
            reason=None if slot.reason is None else words(slot.reason),
            spare=slot.spare,
        )


def refresh_view(report: Refreshed, at_ms: int) -> RefreshView:
    """Make the view of a refresh; times in milliseconds, to the microsecond."""
    end, release, start = (round(s * 1000, 3) for s in (report.end_s, report.release_s, report.start_s))
    return RefreshView(
        at=at_ms,
        cause=words(report.cause),
        end_ms=end,
        release_ms=release,
        start_ms=start,
        total_ms=round(end + release + start, 3),
        freed_mib=report.freed_mib,
        verified=report.verified,
    )


def _ended(job: Job) -> EndedJobView:
    return EndedJobView(
        id=job.id,
        status=job.status.value,
        ended_at=job.ended_ms or 0,
        delay_time=delay_ms(job),
        execution_time=execution_ms(job),
        worker_id=job.worker_id,
        error=job.error,
    )


def _running(active: Active) -> RunningJobView:
    job = active.job
    progress = msgspec.Raw(active.progress or b"null")
    return RunningJobView(
        id=job.id, slot=active.slot, started_at=job.started_ms or 0, attempt=job.attempts, progress=progress
    )


def _memory_of(name: str, gpus: Iterable[Gpu], samples: Mapping[str, GpuSample]) -> int | None:
    """Return the MiB that the slot's worker tree holds on its GPUs, if NVML reports them for each of its listed processes."""
    held = [
        process.memory_mib
        for gpu in gpus
        if (sample := samples.get(gpu.uuid)) is not None
        for process in sample.processes or ()
        if process.slot == name
    ]
    known = [mib for mib in held if mib is not None]
    return sum(known) if known and len(known) == len(held) else None


def _gpus(pool: Pool) -> tuple[GpuView, ...]:
    slots: dict[str, list[str]] = {}
    for place in pool.places.values():
        for gpu in place.gpus:
            slots.setdefault(gpu.uuid, []).append(place.name)
    gpus = {gpu.uuid: gpu for place in pool.places.values() for gpu in place.gpus}
    samples = pool.samples
    return tuple(_gpu(gpu, samples.get(uuid) or GpuSample(uuid), slots[uuid]) for uuid, gpu in gpus.items())


def _process(process: GpuProcess) -> GpuProcessView:
    return GpuProcessView(process.pid, process.memory_mib, process.name, process.visible, process.slot)


def _gpu(gpu: Gpu, sample: GpuSample, slots: Iterable[str]) -> GpuView:
    processes = sample.processes
    return GpuView(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        slots=tuple(slots),
        simulated=gpu.simulated,
        memory_used_mib=sample.memory_used_mib,
        memory_total_mib=sample.memory_total_mib or gpu.memory_total_mib,
        utilization=sample.utilization,
        temperature_c=sample.temperature_c,
        power_w=sample.power_w,
        processes=None if processes is None else tuple(map(_process, processes)),
        error=sample.error,
        lost=sample.lost,
    )
