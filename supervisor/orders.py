"""What is done to jobs by hand and by the clock: cancel, time out, retry, purge; in the supervisor, during a turn."""

from __future__ import annotations

from collections.abc import Callable

from supervisor.errors import RequestError
from supervisor.job import TRANSITIONS, Job, JobStatus, Outcome
from supervisor.jobs import Jobs, queued_again
from supervisor.overview import Overview
from supervisor.pool.pool import Pool
from supervisor.store.writes import Retry

PURGE_PIECE = 200
"""How many jobs of a purge one turn cancels, so that a long queue delays nobody."""


class Purge:
    """A purge of the queue under way: jobs numbered ``below`` are cancelled, ``removed`` of them so far."""

    def __init__(self, below: int, done: Callable[[int], None]) -> None:
        """Call ``done`` with how many they were in the end."""
        self.below = below
        self.done = done
        self.removed = 0


class Orders:
    """Carries out what clients ask for and what deadlines demand."""

    def __init__(self, jobs: Jobs, overview: Overview, wall_ms: Callable[[], int]) -> None:
        """Decide about ``jobs``."""
        self._jobs = jobs
        self._overview = overview
        self._wall_ms = wall_ms
        self._purges: list[Purge] = []

    def cancel(self, job_id: str, pool: Pool, now: float) -> Job | None:
        """Cancel a job: a queued one never starts, a running one is stopped. Ended ones stay; ``None`` when unknown."""
        return self._stop(job_id, Outcome(JobStatus.CANCELLED), pool, now)

    def abandon(self, job_id: str, pool: Pool, now: float) -> None:
        """Cancel a job that nobody waits for any more, unless it runs and its worker would go with it."""
        active = self._jobs.active.get(job_id)
        if active is None or pool.cancels_gently(active.slot):
            self.cancel(job_id, pool, now)

    def time_out(self, pool: Pool, now: float) -> None:
        """End the jobs that are out of time."""
        for job_id, why in self._jobs.deadlines.due(now, self._wall_ms()):
            self._stop(job_id, Outcome(JobStatus.TIMED_OUT, error=why), pool, now, out_of_time=True)

    def deadline(self, now: float) -> float | None:
        """When the next job is out of time, in monotonic seconds."""
        return self._jobs.deadlines.next(now, self._wall_ms())

    def _stop(self, job_id: str, outcome: Outcome, pool: Pool, now: float, *, out_of_time: bool = False) -> Job | None:
        active = self._jobs.leave(job_id)
        if active is not None:
            job = self._jobs.end(active.job, outcome)
            pool.cancel(active.slot, job_id, now, out_of_time=out_of_time)
            return job
        queued = self._jobs.get(job_id)
        if queued is None or queued.status is not JobStatus.IN_QUEUE:
            return queued
        self._jobs.backlog.lane(queued.low_priority).remove(queued)
        return self._jobs.end(queued, outcome)

    def retry(self, job_id: str) -> Job | None:
        """Queue a job that failed or timed out once more, at its old place; ``None`` when unknown.

        Raises:
            RequestError: 409, it ended otherwise or not at all, or its ``s3Config`` is gone.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if JobStatus.IN_QUEUE not in TRANSITIONS[job.status] or not job.status.terminal:
            raise RequestError(409, f"the job is {job.status.value}; only FAILED and TIMED_OUT ones can be run again")
        if job.has_s3_config:
            raise RequestError(409, "the job's s3Config is a secret and was removed when it ended; submit it again")
        created = self._wall_ms()
        expires = created + job.expires_ms - job.created_ms if job.expires_ms is not None else None
        self._jobs.arrived(job, job)
        self._jobs.batch.append(Retry(job.seq, created, expires))
        self._overview.statistics.retried(job.status)
        job = queued_again(job, attempts=0).replace(
            created_ms=created, expires_ms=expires, ended_ms=None, output=None, error=None
        )
        self._jobs.decided[job.id] = job
        self._jobs.deadlines.accepted(job)
        self._jobs.backlog.lane(job.low_priority).put_back(job)
        return job

    def purge(self, done: Callable[[int], None]) -> None:
        """Cancel all jobs that are queued now; ``done`` gets how many, once that is on disk."""
        self._purges.append(Purge(self._jobs.next_seq, done))

    def go_on_purging(self) -> None:
        """Cancel some of the jobs that are to be purged."""
        left = PURGE_PIECE
        while self._purges:
            purge = self._purges[0]
            while left and (job := self._jobs.backlog.pop(self._jobs.decided, purge.below)) is not None:
                self._jobs.end(job, Outcome(JobStatus.CANCELLED))
                purge.removed += 1
                left -= 1
            if not left:
                return
            self._purges.pop(0)
            self._jobs.wakes.append(lambda purge=purge: purge.done(purge.removed))  # type: ignore[misc]

    @property
    def purging(self) -> bool:
        """Whether a purge is under way."""
        return bool(self._purges)
