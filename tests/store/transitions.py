"""Which state of a job may follow which: what the store has to hold to."""

from __future__ import annotations

from supervisor.job import JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.IN_QUEUE: frozenset({JobStatus.IN_PROGRESS, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT}),
    JobStatus.IN_PROGRESS: frozenset(
        {JobStatus.IN_QUEUE, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.IN_QUEUE}),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.TIMED_OUT: frozenset({JobStatus.IN_QUEUE}),
}
