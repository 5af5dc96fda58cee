"""Which jobs are out of time: running ones past their execution time-out, any past their ``ttl``; in the supervisor."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.cause import ExecutionTimedOut, JobCause, TtlPassed
from supervisor.job import Job
from supervisor.pool.timers import Timers
from supervisor.store.store import Store

PIECE = 200
"""How many expired jobs one turn ends."""


class Deadlines:
    """The deadlines of all jobs. Those of a start are on the monotonic clock; a ``ttl`` outlives the process, so it is on the
    wall clock, and only the nearest of them is in memory."""

    def __init__(self, store: Store) -> None:
        """Look up expired jobs in ``store``."""
        self._store = store
        self._timers = Timers()
        self._timeouts: dict[str, int] = {}
        self._expiry = store.next_expiry()

    def accepted(self, job: Job) -> None:
        """``job`` waits from now on."""
        if job.expires_ms is not None and (self._expiry is None or job.expires_ms < self._expiry):
            self._expiry = job.expires_ms

    def started(self, job: Job, now: float) -> None:
        """``job`` runs since ``now`` (monotonic seconds)."""
        if job.timeout_ms is not None:
            self._timers.set(job.id, now + job.timeout_ms / 1000)
            self._timeouts[job.id] = job.timeout_ms

    def left(self, job_id: str) -> None:
        """A job is no longer in a worker."""
        if self._timeouts.pop(job_id, None) is not None:
            self._timers.set(job_id, None)

    def due(self, now: float, wall_ms: int) -> Iterator[tuple[str, JobCause]]:
        """The ids of jobs that are out of time, and why."""
        for job_id in self._timers.due(now):
            yield job_id, ExecutionTimedOut(self._timeouts[job_id])
        if self.expired(wall_ms):
            for job_id in self._store.expired(wall_ms, PIECE):
                yield job_id, TtlPassed()

    def expired(self, wall_ms: int) -> bool:
        """Whether some job is older than its ``ttl``."""
        return self._expiry is not None and wall_ms >= self._expiry

    def ended(self) -> None:
        """Expired jobs have ended, on disk: look up the next."""
        self._expiry = self._store.next_expiry()

    def next(self, now: float, wall_ms: int) -> float | None:
        """When ``due`` has something again, in monotonic seconds."""
        expiry = None if self._expiry is None else now + max(0, self._expiry - wall_ms) / 1000
        return min((at for at in (self._timers.next(), expiry) if at is not None), default=None)
