"""What screens are told: counts, rates, the newest ends, and nothing that is large."""

import msgspec
import pytest

from supervisor.cause import Exited, RefreshBy, RefreshCause, WorkerLost
from supervisor.config.resolve import make_settings
from supervisor.engine.overview import ENDED_JOBS, LOG_LINES, Overview
from supervisor.engine.statistics import SAMPLES, WINDOW_S, Buckets, Statistics
from supervisor.gpu.records import GpuProcess, GpuSample
from supervisor.job import Job, JobStatus, delay_ms, execution_ms
from supervisor.notice import Level, Refreshed, WorkerReady
from supervisor.pool import events
from supervisor.protocol.job_error import ERROR_CHARS, first_line


def job(seq=1, status=JobStatus.COMPLETED, **fields):
    times = {"created_ms": 1_000, "started_ms": 1_010, "ended_ms": 1_030}
    return Job(seq=seq, id=f"job-{seq}", status=status, input=b"1", **{**times, **fields})


# --- statistics ---------------------------------------------------------------------------------------------------------


def test_counts_go_on_from_the_store():
    statistics = Statistics()
    statistics.begin({JobStatus.COMPLETED: 5, JobStatus.TIMED_OUT: 1}, retried=2, now=100.0)
    statistics.ended(job(), 100.0)
    statistics.ended(job(status=JobStatus.FAILED), 100.0)
    statistics.retried(JobStatus.FAILED)
    counts = statistics.job_counts(in_progress=3, in_queue=4)
    assert (counts.completed, counts.failed, counts.in_progress, counts.in_queue, counts.retried) == (6, 1, 3, 4, 3)


def test_rates_and_percentiles_are_those_of_the_last_minute():
    statistics = Statistics()
    statistics.begin({}, 0, now=100.0)
    statistics.ended(job(created_ms=0, started_ms=9_000, ended_ms=99_000), 100.0)
    for second in range(int(WINDOW_S)):
        statistics.ended(job(), 200.0 + second)
    stats = statistics.stats(259.0)
    assert (stats.jobs_per_s, stats.ended) == (1.0, 61)
    assert (stats.delay_p50, stats.delay_p99, stats.execution_p50, stats.execution_p99) == (10, 10, 20, 20)
    empty = statistics.stats(1_000.0)
    assert (empty.jobs_per_s, empty.delay_p50, empty.execution_p99) == (0.0, None, None)


def test_a_young_supervisor_divides_by_its_age():
    statistics = Statistics()
    statistics.begin({}, 0, now=100.0)
    for _ in range(20):
        statistics.ended(job(), 110.0)
    assert statistics.stats(110.0).jobs_per_s == 2.0


def test_totals_only_grow():
    statistics = Statistics()
    statistics.begin({JobStatus.FAILED: 5}, retried=2, now=100.0)
    statistics.submitted()
    statistics.ended(job(status=JobStatus.FAILED), 100.0)
    statistics.ended(job(status=JobStatus.CANCELLED, started_ms=None), 100.0)
    statistics.retried(JobStatus.FAILED)
    totals = statistics.totals()
    assert (totals.submitted, totals.retried) == (1, 3)
    assert totals.ended == {"COMPLETED": 0, "FAILED": 1, "CANCELLED": 1, "TIMED_OUT": 0}
    assert statistics.job_counts(0, 0).failed == 5
    for times, milliseconds in ((totals.delay, 10), (totals.execution, 20)):
        assert (sum(times.counts), times.sum) == (1, milliseconds)


def test_buckets_hold_their_upper_bounds():
    buckets = Buckets((10, 100))
    for value in (0, 10, 11, 100, 101, 1e9):
        buckets.add(value)
    assert buckets.histogram().counts == (2, 2, 2)


def test_refreshes_are_counted_by_step():
    overview = Overview(make_settings("echo:handler"))
    for verified in (True, False):
        overview.happened(Refreshed("gpu0", RefreshCause(RefreshBy.HANDLER), 0.02, 0.001, 0.5, 270, verified), 1)
    totals = overview.statistics.totals()
    assert {step: round(times.sum) for step, times in totals.refresh.items()} == {
        "end": 40,
        "release": 2,
        "start": 1000,
    }
    assert totals.unverified == 1


def test_percentiles_of_a_spread():
    statistics = Statistics()
    statistics.begin({}, 0, now=0.0)
    for delay in range(100):
        statistics.ended(job(started_ms=1_000 + delay, ended_ms=1_000 + delay), 1.0)
    stats = statistics.stats(1.0)
    assert (stats.delay_p50, stats.delay_p99) == (50, 99)


def test_memory_is_bounded():
    statistics = Statistics()
    statistics.begin({}, 0, now=0.0)
    for number in range(2 * SAMPLES):
        statistics.ended(job(), float(number))
    assert len(statistics._recent) == SAMPLES
    assert len(statistics._per_second) <= WINDOW_S + 2


@pytest.mark.parametrize(
    ("times", "now_ms", "delay", "execution"),
    [
        ({}, None, 10, 20),
        ({"started_ms": None, "ended_ms": None}, 1_500, 500, 0),
        ({"started_ms": None, "ended_ms": 1_200}, None, 200, 0),
        ({"started_ms": None, "ended_ms": None}, None, 0, 0),
        ({"started_ms": 900, "ended_ms": 800}, None, 0, 0),  # the clock was set back
    ],
)
def test_times_of_a_job(times, now_ms, delay, execution):
    assert (delay_ms(job(**times), now_ms), execution_ms(job(**times))) == (delay, execution)


# --- overview -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("plain\nmore", "plain"),
        ('{"error_type": "<class \'ValueError\'>", "error_message": "no\\nwhy"}', "ValueError: no"),
        ('{"error_type": "MyError!", "error_message": "no"}', "MyError!: no"),  # a metaclass wrote it
        ('{"other": 1}', '{"other": 1}'),
        ("x" * 1_000, "x" * ERROR_CHARS),
        ("\ud800 half a pair", "\ud800 half a pair"),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line


def test_of_jobs_that_ended_nothing_large_is_kept():
    overview = Overview(make_settings("test:handler"))
    for seq in range(ENDED_JOBS + 5):
        overview.job_ended(job(seq, JobStatus.FAILED, extras=b"{}", output=b"1" * 10_000, error="e" * 10_000), 1.0)
    lost = WorkerLost("cpu0", 7, Exited(1), ("t" * 10_000,))
    overview.job_ended(job(0, JobStatus.FAILED, cause=lost), 1.0)
    assert overview._ended[-1].error == "worker cpu0 (pid 7) exited with code 1"
    assert len(overview._ended) == ENDED_JOBS
    assert sum(len(msgspec.msgpack.encode(kept)) for kept in overview._ended) < ENDED_JOBS * 1_000


def test_the_log_keeps_the_newest_lines_with_their_slot_and_job():
    overview = Overview(make_settings("test:handler"))
    overview.happened(events.Printed("cpu0", "a", [f"line {number}" for number in range(1_000)]), 5)
    overview.happened(WorkerReady("cpu0", 7, "function", 1.25), 6)
    assert len(overview._log) == LOG_LINES
    newest, before = overview._log[-1], overview._log[-2]
    assert (newest.text, newest.slot) == ("cpu0: ready (pid 7, function, loaded in 1.2 ms)", None)
    assert (before.text, before.slot, before.job, before.at) == ("line 999", "cpu0", "a", 5)
    assert (newest.level, before.level) == (Level.INFO, None)


@pytest.mark.parametrize(
    ("figures", "shown"), [((700,), 700), ((700, 50), 750), ((None,), None), ((700, None), None), ((), None)]
)
def test_what_a_worker_holds_is_unknown_where_one_figure_is(make_house, played_memory, figures, shown):
    house = make_house(memory=played_memory)
    ours = tuple(GpuProcess(pid, mib, "python", "cpu0") for pid, mib in enumerate(figures))
    unseen = GpuProcess(1 << 22, 900, visible=False)
    played_memory.samples = {"GPU-0": GpuSample("GPU-0", memory_used_mib=1800, processes=(*ours, unseen))}
    house.start()
    seen = house.engine.snapshot()
    assert seen.workers[0].gpu_memory_mib == shown
    assert [process.visible for process in seen.gpus[0].processes] == [*[True] * len(ours), False]


def test_a_snapshot_of_a_house_with_a_gpu(make_house, played_memory):
    house = make_house(memory=played_memory)
    ours, stranger = GpuProcess(1, 700, "python", "cpu0"), GpuProcess(2, 50, "other")
    played_memory.samples = {"GPU-0": GpuSample("GPU-0", memory_used_mib=800, processes=(ours, stranger))}
    house.start()
    house.submit("a")
    house.submit("b")
    seen = house.engine.snapshot()
    (worker,), (gpu,), (running,) = seen.workers, seen.gpus, seen.running
    assert (worker.id, worker.state, worker.gpu_memory_mib, worker.running) == ("cpu0-1", "busy", 700, ("a",))
    assert (gpu.memory_used_mib, gpu.slots, [process.slot for process in gpu.processes]) == (
        800,
        ("cpu0",),
        ["cpu0", None],
    )
    assert (running.id, running.slot, bytes(running.progress)) == ("a", "cpu0", b"null")
    assert (seen.jobs.in_progress, seen.jobs.in_queue) == (1, 1)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=type(seen)) == seen
