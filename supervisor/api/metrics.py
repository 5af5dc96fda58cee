"""`/metrics`: the snapshot and the counters as Prometheus reads them; in the supervisor.

The text format 0.0.4 and how to name metrics: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/practices/naming/. Seconds, bytes and ratios; labels name slots, GPUs and states, never jobs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec
import psutil

from supervisor.errors import StoreError
from supervisor.protocol.responses import COUNTED_AS
from supervisor.protocol.views import GpuView, Histogram, Snapshot, Totals, WorkerView

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

MIB = 2**20

Labels = dict[str, str]


class Deliveries(Protocol):
    """The webhooks: those ``delivered`` and given up (``failed``) since the start, and how many wait."""

    delivered: int
    failed: int

    @property
    def pending(self) -> int:
        """How many wait for a try or are under way."""


class Process(msgspec.Struct, frozen=True):
    """What the supervisor's process uses itself, its workers not included."""

    cpu_s: float
    memory: int
    fds: int
    started_s: float

    @classmethod
    def now(cls) -> Process:
        """Of this process."""
        me = psutil.Process()
        with me.oneshot():
            cpu = me.cpu_times()
            return cls(cpu.user + cpu.system, me.memory_info().rss, me.num_fds(), me.create_time())


class Page:
    """A page of metrics, written from the top."""

    def __init__(self) -> None:
        """Nothing so far."""
        self._lines: list[str] = []

    def metric(self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float | None]]) -> None:
        """One metric, or nothing where no sample has a value. ``kind``: ``counter`` or ``gauge``; ``text`` explains it."""
        known = [(labels, value) for labels, value in samples if value is not None]
        if not known:
            return
        self._head(name, kind, text)
        self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in known]

    def value(self, name: str, kind: str, text: str, value: float | None) -> None:
        """A metric that has one sample."""
        self.metric(name, kind, text, [({}, value)])

    def histogram(self, name: str, text: str, values: Iterable[tuple[Labels, Histogram]]) -> None:
        """Times in milliseconds, as seconds."""
        self._head(name, "histogram", text)
        for labels, histogram in values:
            bounds = [*(_number(bound / 1000) for bound in histogram.bounds), "+Inf"]
            for bound, count in zip(bounds, itertools.accumulate(histogram.counts), strict=True):
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {count}")
            self._lines.append(f"{name}_sum{_labels(labels)} {_number(histogram.sum / 1000)}")
            self._lines.append(f"{name}_count{_labels(labels)} {sum(histogram.counts)}")

    def _head(self, name: str, kind: str, text: str) -> None:
        escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines += [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]

    def body(self) -> bytes:
        """The whole."""
        return "".join(f"{line}\n" for line in self._lines).encode()


def page_of(engine: Engine, deliveries: Deliveries | None) -> bytes:
    """All metrics of what ``engine`` runs, now."""
    totals = engine.overview.statistics.totals()
    return body(engine.snapshot(), totals, ready=engine.ready, deliveries=deliveries, process=Process.now())


def body(now: Snapshot, totals: Totals, *, ready: bool, deliveries: Deliveries | None, process: Process) -> bytes:
    """All metrics."""
    page = Page()
    _server(page, now, ready=ready)
    _jobs(page, now, totals)
    _slots(page, now.workers)
    _refreshes(page, now.workers, totals)
    _gpus(page, now.gpus)
    if deliveries is not None:
        _webhooks(page, deliveries)
    _process(page, process)
    return page.body()


def _server(page: Page, now: Snapshot, *, ready: bool) -> None:
    info = {"version": now.version, "endpoint_id": now.endpoint_id, "handler": now.handler}
    page.metric("supervise_info", "gauge", "What runs here; always 1.", [(info, 1)])
    page.value("supervise_uptime_seconds", "gauge", "Time since the start.", now.stats.uptime_s)
    page.value("supervise_ready", "gauge", "1 if /readyz says so.", ready)
    page.value("supervise_draining", "gauge", "1 while no job is taken any more.", now.draining)


def _jobs(page: Page, now: Snapshot, totals: Totals) -> None:
    page.value("supervise_jobs_submitted_total", "counter", "Jobs accepted.", totals.submitted)
    ended = [({"status": status}, count) for status, count in totals.ended.items()]
    page.metric("supervise_jobs_ended_total", "counter", "Jobs ended, by their final status.", ended)
    page.value("supervise_jobs_retried_total", "counter", "Times a job went back to the queue.", totals.retried)
    page.value("supervise_jobs_queued", "gauge", "Jobs in the queue.", now.jobs.in_queue)
    page.value("supervise_jobs_running", "gauge", "Jobs in workers.", now.jobs.in_progress)
    page.histogram(
        "supervise_job_delay_seconds", "Time in the queue of jobs that ended after a start.", [({}, totals.delay)]
    )
    page.histogram(
        "supervise_job_execution_seconds",
        "Time in the worker of jobs that ended after a start.",
        [({}, totals.execution)],
    )


def _slots(page: Page, workers: Iterable[WorkerView]) -> None:
    workers = tuple(workers)
    states = dict.fromkeys(COUNTED_AS, 0)
    for worker in workers:
        states[worker.state] = states.get(worker.state, 0) + 1
    page.metric("supervise_slots", "gauge", "Slots by state.", [({"state": s}, count) for s, count in states.items()])
    each = [({"slot": worker.slot}, worker) for worker in workers]
    page.metric(
        "supervise_slot_state",
        "gauge",
        "The state that a slot is in; 1.",
        [({**s, "state": w.state}, 1) for s, w in each],
    )
    page.metric(
        "supervise_slot_jobs_running", "gauge", "Jobs in the slot's worker.", [(s, len(w.running)) for s, w in each]
    )
    page.metric("supervise_slot_jobs_total", "counter", "Jobs that the slot was given.", [(s, w.jobs) for s, w in each])
    page.metric(
        "supervise_slot_workers_total",
        "counter",
        "Workers that the slot has had.",
        [(s, w.generation) for s, w in each],
    )
    page.metric("supervise_slot_refreshes_total", "counter", "Refreshes done.", [(s, w.refreshes) for s, w in each])
    page.metric(
        "supervise_slot_restarts_total",
        "counter",
        "Workers replaced because they died, hung or were killed.",
        [(s, w.restarts) for s, w in each],
    )
    page.metric(
        "supervise_slot_gpu_memory_bytes",
        "gauge",
        "GPU memory that the slot's worker and its processes hold.",
        [(s, _bytes(w.gpu_memory_mib)) for s, w in each],
    )


def _refreshes(page: Page, workers: Iterable[WorkerView], totals: Totals) -> None:
    page.histogram(
        "supervise_refresh_seconds",
        "Time of a refresh by step: end of the worker, release of its GPU memory, start of a fresh one.",
        [({"step": step}, histogram) for step, histogram in totals.refresh.items()],
    )
    page.value(
        "supervise_refreshes_unverified_total",
        "counter",
        "Refreshes whose GPU memory could not be seen to be free.",
        totals.unverified,
    )
    last = [({"slot": worker.slot}, worker.last_refresh) for worker in workers if worker.last_refresh is not None]
    page.metric(
        "supervise_slot_last_refresh_seconds",
        "gauge",
        "Time of the slot's last refresh by step.",
        [
            ({**slot, "step": step}, ms / 1000)
            for slot, view in last
            for step, ms in (("end", view.end_ms), ("release", view.release_ms), ("start", view.start_ms))
        ],
    )
    page.metric(
        "supervise_slot_last_refresh_freed_bytes",
        "gauge",
        "GPU memory that the slot's last refresh freed.",
        [(slot, _bytes(view.freed_mib)) for slot, view in last],
    )


def _gpus(page: Page, gpus: Iterable[GpuView]) -> None:
    each = [({"gpu": str(gpu.index), "uuid": gpu.uuid}, gpu) for gpu in gpus]
    names = [({**g, "name": gpu.name, "slots": ",".join(gpu.slots)}, 1) for g, gpu in each]
    page.metric("supervise_gpu_info", "gauge", "What the GPU is, and the slots on it; always 1.", names)
    page.metric(
        "supervise_gpu_memory_used_bytes",
        "gauge",
        "GPU memory in use, by whomever.",
        [(g, _bytes(gpu.memory_used_mib)) for g, gpu in each],
    )
    page.metric(
        "supervise_gpu_memory_total_bytes",
        "gauge",
        "GPU memory.",
        [(g, _bytes(gpu.memory_total_mib)) for g, gpu in each],
    )
    page.metric(
        "supervise_gpu_utilization_ratio",
        "gauge",
        "Share of the last moments in which the GPU was busy: 0 to 1.",
        [(g, None if gpu.utilization is None else gpu.utilization / 100) for g, gpu in each],
    )
    page.metric(
        "supervise_gpu_temperature_celsius", "gauge", "GPU temperature.", [(g, gpu.temperature_c) for g, gpu in each]
    )
    page.metric("supervise_gpu_power_watts", "gauge", "GPU power draw.", [(g, gpu.power_w) for g, gpu in each])
    page.metric("supervise_gpu_lost", "gauge", "1 while the GPU is out of service.", [(g, gpu.lost) for g, gpu in each])


def _webhooks(page: Page, deliveries: Deliveries) -> None:
    page.value(
        "supervise_webhooks_delivered_total", "counter", "Webhooks that were acknowledged.", deliveries.delivered
    )
    page.value("supervise_webhooks_failed_total", "counter", "Webhooks given up after the last try.", deliveries.failed)
    try:
        pending = deliveries.pending
    except StoreError:  # a disk that refuses is when the other metrics are wanted most
        pending = None
    page.value("supervise_webhooks_pending", "gauge", "Webhooks that wait for a try.", pending)


def _process(page: Page, process: Process) -> None:
    """Under the names that every Prometheus client has for these."""
    page.value("process_cpu_seconds_total", "counter", "CPU time of the supervisor.", process.cpu_s)
    page.value("process_resident_memory_bytes", "gauge", "Memory of the supervisor.", process.memory)
    page.value("process_open_fds", "gauge", "Open descriptors of the supervisor.", process.fds)
    page.value("process_start_time_seconds", "gauge", "When the supervisor started, since 1970.", process.started_s)


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
