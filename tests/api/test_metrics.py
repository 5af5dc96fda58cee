"""The text that Prometheus reads, read by its own parser."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from supervisor.api import metrics
from supervisor.errors import StoreError
from supervisor.protocol.views import GpuView, Histogram, JobCounts, RefreshView, Snapshot, Stats, Totals, WorkerView

HOSTILE = 'a "handler"\\of\nmine'
EMPTY = Histogram((10.0, 1_000.0), (0, 0, 0), 0.0)
TOTALS = Totals(
    submitted=7,
    ended={"COMPLETED": 4, "FAILED": 1, "CANCELLED": 0, "TIMED_OUT": 0},
    retried=2,
    delay=Histogram((10.0, 1_000.0), (2, 1, 1), 90_015.5),
    execution=EMPTY,
    refresh={"end": Histogram((10.0, 1_000.0), (1, 0, 0), 2.5), "release": EMPTY, "start": EMPTY},
    unverified=1,
)
REFRESH = RefreshView(1, "the handler", 24.0, 1.0, 16.0, 41.0, freed_mib=270)
SNAPSHOT = Snapshot(
    at=1,
    version="0.1.0",
    endpoint_id="echo",
    handler=HOSTILE,
    pid=1,
    url=None,
    draining=False,
    jobs=JobCounts(in_progress=1, in_queue=2),
    workers=(
        WorkerView(
            "gpu0-3", "gpu0", (0,), "busy", 41, 3, 5, 2, 0, ("job-1",), gpu_memory_mib=512, last_refresh=REFRESH
        ),
        WorkerView("gpu1-1", "gpu1", (1,), "held", None, 1, 0, 0, 4),
    ),
    gpus=(
        GpuView(0, "GPU-a", "H200", False, 512, 1024, 40, 55, 310.5, slots=("gpu0",)),
        GpuView(1, "GPU-b", "H200", slots=("gpu1",), lost=True),
    ),
    running=(),
    ended=(),
    log=(),
    stats=Stats(12.5, 7, 5, 0.5),
)


class Deliveries:
    delivered = 3
    failed = 1
    pending = 2


DELIVERIES = Deliveries()


class DeliveriesWithoutDisk:
    delivered = 3
    failed = 1

    @property
    def pending(self) -> int:
        raise StoreError("the disk is gone")


def body(deliveries: metrics.Deliveries | None = DELIVERIES, **changes: Any) -> str:
    now = msgspec.structs.replace(SNAPSHOT, **changes)
    return metrics.body(now, TOTALS, ready=True, deliveries=deliveries).decode()


def families(text: str) -> dict[str, Any]:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client reads what it would scrape")
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("supervise_info", {"version": "0.1.0", "endpoint_id": "echo", "handler": HOSTILE}, 1),
        ("supervise_uptime_seconds", {}, 12.5),
        ("supervise_ready", {}, 1),
        ("supervise_draining", {}, 0),
        ("supervise_jobs_submitted_total", {}, 7),
        ("supervise_jobs_ended_total", {"status": "COMPLETED"}, 4),
        ("supervise_jobs_ended_total", {"status": "TIMED_OUT"}, 0),
        ("supervise_jobs_retried_total", {}, 2),
        ("supervise_jobs_queued", {}, 2),
        ("supervise_jobs_running", {}, 1),
        ("supervise_job_delay_seconds_bucket", {"le": "0.01"}, 2),
        ("supervise_job_delay_seconds_bucket", {"le": "1"}, 3),
        ("supervise_job_delay_seconds_bucket", {"le": "+Inf"}, 4),
        ("supervise_job_delay_seconds_count", {}, 4),
        ("supervise_job_delay_seconds_sum", {}, 90.0155),
        ("supervise_slots", {"state": "busy"}, 1),
        ("supervise_slots", {"state": "held"}, 1),
        ("supervise_slots", {"state": "lost"}, 0),
        ("supervise_slot_state", {"slot": "gpu1", "state": "held"}, 1),
        ("supervise_slot_jobs_running", {"slot": "gpu0"}, 1),
        ("supervise_slot_jobs_total", {"slot": "gpu0"}, 5),
        ("supervise_slot_workers_total", {"slot": "gpu0"}, 3),
        ("supervise_slot_refreshes_total", {"slot": "gpu0"}, 2),
        ("supervise_slot_restarts_total", {"slot": "gpu1"}, 4),
        ("supervise_slot_gpu_memory_bytes", {"slot": "gpu0"}, 512 * 2**20),
        ("supervise_refresh_seconds_count", {"step": "end"}, 1),
        ("supervise_refresh_seconds_sum", {"step": "end"}, 0.0025),
        ("supervise_refreshes_unverified_total", {}, 1),
        ("supervise_slot_last_refresh_seconds", {"slot": "gpu0", "step": "start"}, 0.016),
        ("supervise_slot_last_refresh_freed_bytes", {"slot": "gpu0"}, 270 * 2**20),
        ("supervise_gpu_memory_used_bytes", {"gpu": "0", "uuid": "GPU-a"}, 512 * 2**20),
        ("supervise_gpu_utilization_ratio", {"gpu": "0", "uuid": "GPU-a"}, 0.4),
        ("supervise_gpu_temperature_celsius", {"gpu": "0", "uuid": "GPU-a"}, 55),
        ("supervise_gpu_power_watts", {"gpu": "0", "uuid": "GPU-a"}, 310.5),
        ("supervise_gpu_lost", {"gpu": "1", "uuid": "GPU-b"}, 1),
        ("supervise_webhooks_delivered_total", {}, 3),
        ("supervise_webhooks_failed_total", {}, 1),
        ("supervise_webhooks_pending", {}, 2),
    ],
)
def test_values(name: str, labels: dict[str, str], value: float) -> None:
    assert values(body())[name, tuple(sorted(labels.items()))] == value


def test_names_follow_the_conventions() -> None:
    text = body()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)
    assert list(kinds) == helps
    for name, kind in kinds.items():
        assert re.fullmatch(r"(supervise|process)_[a-z_]+", name)
        assert name.endswith("_total") is (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith("_seconds")


def test_what_is_not_known_is_left_out() -> None:
    found = values(body(DeliveriesWithoutDisk()))
    assert not [name for name, labels in found if ("uuid", "GPU-b") in labels and name.endswith(("_bytes", "_ratio"))]
    assert ("supervise_webhooks_delivered_total", ()) in found
    assert ("supervise_webhooks_pending", ()) not in found
    assert "supervise_gpu" not in body(gpus=())
    assert "webhooks" not in body(None)


def test_jobs_are_no_labels() -> None:
    assert "job-1" not in body()


def test_a_line_is_a_sample_whatever_the_labels_hold() -> None:
    for line in body().splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .+|[a-z_]+(\{([a-z_]+="(\\["\\n]|[^"\\])*",?)+\})? [0-9.e+-]+', line), line


def test_of_this_process() -> None:
    found = values(body())
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_resident_memory_bytes", ()] > metrics.MIB
    assert found["process_open_fds", ()] > 2
    assert found["process_start_time_seconds", ()] > 1_600_000_000
