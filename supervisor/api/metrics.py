"""`/metrics`: the snapshot and the counters as Prometheus reads them; in the supervisor.

The text format 0.0.4 and how to name metrics: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/practices/naming/. Seconds, bytes and ratios; labels name slots, GPUs and states, never jobs.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Union

import psutil

from supervisor.errors import StoreError
from supervisor.protocol.responses import COUNTED_AS
from supervisor.protocol.views import GpuView, Histogram, Snapshot, Totals, WorkerView

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

MIB = 2**20

Labels = dict[str, str]
Samples = Sequence[tuple[Labels, Union[float, Histogram, None]]]
Metric = tuple[str, str, Union[float, Samples]]
"""Its name, what it means, and its value or its samples."""


class Deliveries(Protocol):
    """The webhooks: those ``delivered`` and given up (``failed``) since the start, and how many wait."""

    delivered: int
    failed: int

    @property
    def pending(self) -> int:
        """How many wait for a try or are under way."""


def page_of(engine: Engine, deliveries: Deliveries | None) -> bytes:
    """All metrics of what ``engine`` runs, now."""
    totals = engine.overview.statistics.totals()
    return body(engine.snapshot(), totals, ready=engine.ready, deliveries=deliveries)


def body(now: Snapshot, totals: Totals, *, ready: bool, deliveries: Deliveries | None) -> bytes:
    """All metrics; one that has no value is left out."""
    metrics = (
        *_of_server(now, ready=ready),
        *_of_jobs(now, totals),
        *_of_slots(now.workers),
        *_of_refreshes(now.workers, totals),
        *_of_gpus(now.gpus),
        *_of_webhooks(deliveries),
        *_of_process(),
    )
    return "".join(f"{line}\n" for metric in metrics for line in _lines(*metric)).encode()


# --- the metrics --------------------------------------------------------------------------------------------------------------


def _of_server(now: Snapshot, *, ready: bool) -> Iterator[Metric]:
    info = {"version": now.version, "endpoint_id": now.endpoint_id, "handler": now.handler}
    yield "supervise_info", "What runs here; always 1.", [(info, 1)]
    yield "supervise_uptime_seconds", "Time since the start.", now.stats.uptime_s
    yield "supervise_ready", "1 if /readyz says so.", ready
    yield "supervise_draining", "1 while draining.", now.draining


def _of_jobs(now: Snapshot, totals: Totals) -> Iterator[Metric]:
    ended = [({"status": status}, count) for status, count in totals.ended.items()]
    yield "supervise_jobs_submitted_total", "Jobs accepted.", totals.submitted
    yield "supervise_jobs_ended_total", "Jobs ended, by their final status.", ended
    yield "supervise_jobs_retried_total", "Times a job went back to the queue.", totals.retried
    yield "supervise_jobs_queued", "Jobs in the queue.", now.jobs.in_queue
    yield "supervise_jobs_running", "Jobs in workers.", now.jobs.in_progress
    yield "supervise_job_delay_seconds", "Time in the queue of jobs that ended after a start.", [({}, totals.delay)]
    text = "Time in the worker of jobs that ended after a start."
    yield "supervise_job_execution_seconds", text, [({}, totals.execution)]


def _of_slots(workers: Sequence[WorkerView]) -> Iterator[Metric]:
    states = dict.fromkeys(COUNTED_AS, 0) | Counter(worker.state for worker in workers)
    each = [({"slot": worker.slot}, worker) for worker in workers]
    yield "supervise_slots", "Slots by state.", [({"state": state}, count) for state, count in states.items()]
    state = [({**slot, "state": w.state}, 1) for slot, w in each]
    yield "supervise_slot_state", "The state that a slot is in; 1.", state
    yield "supervise_slot_jobs_running", "Jobs in the slot's worker.", [(slot, len(w.running)) for slot, w in each]
    yield "supervise_slot_jobs_total", "Jobs that the slot was given.", [(slot, w.jobs) for slot, w in each]
    yield "supervise_slot_workers_total", "Workers that the slot has had.", [(slot, w.generation) for slot, w in each]
    yield "supervise_slot_refreshes_total", "Refreshes done.", [(slot, w.refreshes) for slot, w in each]
    restarts = [(slot, w.restarts) for slot, w in each]
    yield "supervise_slot_restarts_total", "Workers replaced because they died, hung or were killed.", restarts
    memory = [(slot, _bytes(w.gpu_memory_mib)) for slot, w in each]
    yield "supervise_slot_gpu_memory_bytes", "GPU memory that the slot's worker and its processes hold.", memory


def _of_refreshes(workers: Iterable[WorkerView], totals: Totals) -> Iterator[Metric]:
    text = "Time of a refresh by step: end of the worker, release of its GPU memory, start of a fresh one."
    yield "supervise_refresh_seconds", text, [({"step": step}, times) for step, times in totals.refresh.items()]
    text = "Refreshes whose GPU memory could not be verified to be free."
    yield "supervise_refreshes_unverified_total", text, totals.unverified
    last = [({"slot": worker.slot}, worker.last_refresh) for worker in workers if worker.last_refresh is not None]
    steps = [
        ({**slot, "step": step}, ms / 1000)
        for slot, view in last
        for step, ms in (("end", view.end_ms), ("release", view.release_ms), ("start", view.start_ms))
    ]
    yield "supervise_slot_last_refresh_seconds", "Time of the slot's last refresh by step.", steps
    freed = [(slot, _bytes(view.freed_mib)) for slot, view in last]
    yield "supervise_slot_last_refresh_freed_bytes", "GPU memory that the slot's last refresh freed.", freed


def _of_gpus(gpus: Iterable[GpuView]) -> Iterator[Metric]:
    each = [({"gpu": str(gpu.index), "uuid": gpu.uuid}, gpu) for gpu in gpus]
    names = [({**gpu, "name": view.name, "slots": ",".join(view.slots)}, 1) for gpu, view in each]
    used = [(gpu, _bytes(view.memory_used_mib)) for gpu, view in each]
    busy = [(gpu, None if view.utilization is None else view.utilization / 100) for gpu, view in each]
    yield "supervise_gpu_info", "What the GPU is, and the slots on it; always 1.", names
    yield "supervise_gpu_memory_used_bytes", "GPU memory in use by all processes.", used
    yield "supervise_gpu_memory_total_bytes", "GPU memory.", [(gpu, _bytes(v.memory_total_mib)) for gpu, v in each]
    yield "supervise_gpu_utilization_ratio", "Share of the last moments in which the GPU was busy: 0 to 1.", busy
    yield "supervise_gpu_temperature_celsius", "GPU temperature.", [(gpu, v.temperature_c) for gpu, v in each]
    yield "supervise_gpu_power_watts", "GPU power draw.", [(gpu, view.power_w) for gpu, view in each]
    yield "supervise_gpu_lost", "1 while the GPU is out of service.", [(gpu, view.lost) for gpu, view in each]


def _of_webhooks(deliveries: Deliveries | None) -> Iterator[Metric]:
    if deliveries is None:
        return
    yield "supervise_webhooks_delivered_total", "Webhooks that were acknowledged.", deliveries.delivered
    yield "supervise_webhooks_failed_total", "Webhooks given up after the last try.", deliveries.failed
    with contextlib.suppress(StoreError):  # a disk that refuses is when the other metrics are wanted most
        yield "supervise_webhooks_pending", "Webhooks that wait for a try.", deliveries.pending


def _of_process() -> Iterator[Metric]:
    """Of this process, its workers not included, under the names that every Prometheus client has for these."""
    process = psutil.Process()
    cpu = process.cpu_times()
    yield "process_cpu_seconds_total", "CPU time of the supervisor.", cpu.user + cpu.system
    yield "process_resident_memory_bytes", "Memory of the supervisor.", process.memory_info().rss
    yield "process_open_fds", "Open descriptors of the supervisor.", process.num_fds()
    yield "process_start_time_seconds", "When the supervisor started, since 1970.", process.create_time()


# --- the text -----------------------------------------------------------------------------------------------------------------


def _lines(name: str, text: str, values: float | Samples) -> Iterator[str]:
    """A metric's part of the page. What is counted from the start is a counter, by its name."""
    samples = values if isinstance(values, Sequence) else [({}, values)]
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return
    histograms = isinstance(known[0][1], Histogram)
    kind = "histogram" if histograms else "counter" if name.endswith("_total") else "gauge"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in known:
        if isinstance(value, Histogram):
            yield from _histogram(name, labels, value)
        else:
            yield f"{name}{_labels(labels)} {_number(value)}"


def _histogram(name: str, labels: Labels, times: Histogram) -> Iterator[str]:
    """Times in milliseconds, as seconds."""
    bounds = [*(_number(bound / 1000) for bound in times.bounds), "+Inf"]
    for bound, count in zip(bounds, itertools.accumulate(times.counts), strict=True):
        yield f"{name}_bucket{_labels({**labels, 'le': bound})} {count}"
    yield f"{name}_sum{_labels(labels)} {_number(times.sum / 1000)}"
    yield f"{name}_count{_labels(labels)} {sum(times.counts)}"


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
