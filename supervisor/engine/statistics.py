"""Running counts, rates and percentiles of jobs; kept by the supervisor, bounded in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence

from supervisor.job import Job, JobStatus, delay_ms, execution_ms
from supervisor.protocol.views import Histogram, JobCounts, Stats, Totals

WINDOW_S = 60.0
"""Window of rates and percentiles."""

SAMPLES = 4096
"""Maximum number of jobs in a percentile."""


#: Upper bounds of the buckets of job times, in milliseconds.
JOB_BOUNDS = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000)

#: Upper bounds of the buckets of refresh steps, in milliseconds.
STEP_BOUNDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000)


class Buckets:
    """A histogram."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Use ``bounds``: the largest value of each bucket but the last, which has none."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value, in 0.3 µs: twice for every job."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        """Return all counts so far."""
        return Histogram(tuple(self._bounds), tuple(self._counts), self._sum)


class Statistics:
    """Counts of job events, since the start and in the last minute."""

    def __init__(self) -> None:
        self._submitted = 0
        self._ended = 0
        self._by_status = dict.fromkeys(JobStatus, 0)
        self._before = dict.fromkeys(JobStatus, 0)
        self._retried = 0
        self._delays = Buckets(JOB_BOUNDS)
        self._executions = Buckets(JOB_BOUNDS)
        self._steps = {step: Buckets(STEP_BOUNDS) for step in ("end", "release", "start")}
        self._unverified = 0
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES)
        self._per_second: deque[tuple[int, int]] = deque()
        self._started_at: float | None = None

    def begin(self, ended: Mapping[JobStatus, int], retried: int, now: float) -> None:
        """Add the store's counts; ``now`` in monotonic seconds."""
        self._before.update(ended)
        self._retried = retried
        self._started_at = now

    def submitted(self) -> None:
        """Count a submitted job."""
        self._submitted += 1

    def retried(self, before: JobStatus) -> None:
        """Count a job that went from ``before`` back to the queue."""
        self._retried += 1
        if before.terminal:
            self._before[before] -= 1

    def ended(self, job: Job, now: float) -> None:
        """Count a job that ended at ``now``, monotonic seconds."""
        self._ended += 1
        self._by_status[job.status] += 1
        second = int(now)
        if self._per_second and self._per_second[-1][0] == second:
            self._per_second[-1] = (second, self._per_second[-1][1] + 1)
        else:
            self._per_second.append((second, 1))
            self._trim(now)
        if job.started_ms is not None and job.ended_ms is not None:
            delay, execution = delay_ms(job), execution_ms(job)
            self._recent.append((now, delay, execution))
            self._delays.add(delay)
            self._executions.add(execution)

    def refreshed(self, end_s: float, release_s: float, start_s: float, *, verified: bool) -> None:
        """Count a refresh: the durations of its steps, and whether its memory was verified free."""
        for step, seconds in zip(self._steps.values(), (end_s, release_s, start_s), strict=True):
            step.add(seconds * 1000)
        self._unverified += not verified

    def totals(self) -> Totals:
        """Return the counts since this supervisor started; retries include the store's."""
        return Totals(
            submitted=self._submitted,
            ended={status.value: count for status, count in self._by_status.items() if status.terminal},
            retried=self._retried,
            delay=self._delays.histogram(),
            execution=self._executions.histogram(),
            refresh={step: buckets.histogram() for step, buckets in self._steps.items()},
            unverified=self._unverified,
        )

    def _total(self, status: JobStatus) -> int:
        """Count the jobs that ended with ``status``, including those that the store held at the start."""
        return self._before[status] + self._by_status[status]

    def job_counts(self, in_progress: int, in_queue: int) -> JobCounts:
        """Return the ``jobs`` of ``/health``: failed includes timed out."""
        return JobCounts(
            completed=self._total(JobStatus.COMPLETED),
            failed=self._total(JobStatus.FAILED) + self._total(JobStatus.TIMED_OUT),
            in_progress=in_progress,
            in_queue=in_queue,
            retried=self._retried,
        )

    def stats(self, now: float) -> Stats:
        """Return rates and percentiles at ``now``, monotonic seconds."""
        self._trim(now)
        uptime = now - self._started_at if self._started_at is not None else 0.0
        while self._recent and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()
        delays = sorted(delay for _, delay, _ in self._recent)
        executions = sorted(execution for _, _, execution in self._recent)
        span = max(1.0, min(WINDOW_S, uptime))
        return Stats(
            uptime_s=round(uptime, 3),
            submitted=self._submitted,
            ended=self._ended,
            jobs_per_s=round(sum(count for _, count in self._per_second) / span, 2),
            delay_p50=_percentile(delays, 50),
            delay_p99=_percentile(delays, 99),
            execution_p50=_percentile(executions, 50),
            execution_p99=_percentile(executions, 99),
        )

    def _trim(self, now: float) -> None:
        while self._per_second and self._per_second[0][0] < now - WINDOW_S:
            self._per_second.popleft()


def _percentile(ordered: list[int], percent: int) -> float | None:
    if not ordered:
        return None
    return float(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)])
