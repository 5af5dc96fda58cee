"""What is done to jobs by hand and by the clock: cancel, time out, retry, purge; in the supervisor, during a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from supervisor.engine.jobs import Active, Jobs, queued_again
from supervisor.engine.overview import Overview
from supervisor.errors import RequestError
from supervisor.job import TRANSITIONS, Job, JobStatus, Outcome
from supervisor.pool.pool import Pool
from supervisor.store.writes import Retry

PURGE_PIECE = 200
"""How many jobs of a purge one turn cancels, so that a long queue delays nobody."""

_CANCELLED = Outcome(JobStatus.CANCELLED)

T = TypeVar("T")


class Purge:
    """A purge of the queue under way: jobs numbered ``below`` are cancelled, ``removed`` of them so far."""

    def __init__(self, below: int, answer: asyncio.Future[int]) -> None:
        """``answer`` gets how many they were in the end, or why it came to no end."""
        self.below = below
        self.removed = 0
        self._answer = answer

    def done(self) -> None:
        """All of them are cancelled, on disk."""
        if not self._answer.done():
            self._answer.set_result(self.removed)

    def refuse(self, error: RequestError) -> None:
        """No more of them will be. What is on disk stays so, and is said."""
        if self.removed:
            text = f"{error}; {self.removed} of the queued jobs were cancelled before, the others wait on"
            error = RequestError(error.status, text, retry_after=error.retry_after)
        if not self._answer.done():
            self._answer.set_exception(error)


class _Stopped(NamedTuple):
    """A job as it was before it was stopped: in its worker, if it ran, and as the turn had decided until then."""

    job: Job
    active: Active | None
    decided: Job | None


class Orders:
    """Carries out what clients ask for and what deadlines demand. What a client asked for, and the disk does not take, is as if
    it had not been asked for: ``Jobs.withdraw`` takes it back."""

    def __init__(self, jobs: Jobs, overview: Overview, wall_ms: Callable[[], int]) -> None:
        """Decide about ``jobs``."""
        self._jobs = jobs
        self._overview = overview
        self._wall_ms = wall_ms
        self._purges: list[Purge] = []

    def cancel(self, job_id: str, pool: Pool) -> Job | None:
        """Cancel a job: a queued one never starts, a running one is stopped. Ended ones stay; ``None`` when unknown."""
        job = self._jobs.get(job_id)
        if job is None or job.status.terminal:
            return job
        before, begun = self._as_it_is(job), self._so_far()
        cancelled = self._stop(job_id, _CANCELLED, pool)
        self._may_be_refused([before], begun)
        return cancelled

    def abandon(self, job_id: str, pool: Pool) -> None:
        """Cancel a job that nobody waits for any more, unless it runs and its worker would go with it."""
        active = self._jobs.active.get(job_id)
        if active is None or pool.cancels_gently(active.slot):
            self._stop(job_id, _CANCELLED, pool)

    def time_out(self, pool: Pool, now: float) -> None:
        """End the jobs that are out of time."""
        for job_id, why in self._jobs.deadlines.due(now, self._wall_ms()):
            self._stop(job_id, Outcome(JobStatus.TIMED_OUT, error=why), pool, out_of_time=True)

    def deadline(self, now: float) -> float | None:
        """When the next job is out of time, in monotonic seconds."""
        return self._jobs.deadlines.next(now, self._wall_ms())

    def _stop(self, job_id: str, outcome: Outcome, pool: Pool, *, out_of_time: bool = False) -> Job | None:
        active = self._jobs.leave(job_id)
        if active is not None:
            job = self._jobs.end(active.job, outcome)
            pool.cancel(active.slot, job_id, out_of_time=out_of_time)
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

    def purge(self, answer: asyncio.Future[int]) -> None:
        """Cancel all jobs that are queued now; ``answer`` gets how many, once that is on disk."""
        self._purges.append(Purge(self._jobs.next_seq, answer))

    def go_on_purging(self) -> None:
        """Cancel some of the jobs that are to be purged."""
        jobs, begun = self._jobs, self._so_far()
        purges = [(purge, purge.removed) for purge in self._purges]
        stopped: list[_Stopped] = []
        while self._purges and len(stopped) < PURGE_PIECE:
            purge = self._purges[0]
            job = jobs.backlog.pop(jobs.decided, purge.below)
            if job is None:
                self._purges.pop(0)
                jobs.wakes.append(purge.done)
                continue
            stopped.append(self._as_it_is(job))
            jobs.end(job, _CANCELLED)
            purge.removed += 1
        self._may_be_refused(stopped, begun, purges)

    def refuse(self, error: RequestError) -> None:
        """The disk does not take this turn: tell those who purge."""
        purges, self._purges = self._purges, []
        for purge in purges:
            purge.refuse(error)

    @property
    def purging(self) -> bool:
        """Whether a purge is under way."""
        return bool(self._purges)

    # --- what the disk may refuse ---------------------------------------------------------------------------------------

    def _as_it_is(self, job: Job) -> _Stopped:
        return _Stopped(job, self._jobs.active.get(job.id), self._jobs.decided.get(job.id))

    def _so_far(self) -> tuple[int, int]:
        """How much this turn writes and tells without what is decided now."""
        return len(self._jobs.batch), len(self._jobs.wakes)

    def _may_be_refused(
        self, stopped: Sequence[_Stopped], begun: tuple[int, int], purges: Sequence[tuple[Purge, int]] = ()
    ) -> None:
        """What was decided since ``begun`` stopped those jobs, by ``purges``, each of which had removed so many before."""
        writes, wakes = self._jobs.batch[begun[0] :], self._jobs.wakes[begun[1] :]

        def take_back(pool: Pool, _now: float) -> None:
            _take_out(writes, self._jobs.batch)
            _take_out(wakes, self._jobs.wakes)
            for before in stopped:
                self._go_on(before, pool)
            for purge, removed in purges:
                purge.removed = removed
            self._purges[:0] = [purge for purge, _ in purges if purge not in self._purges]

        self._jobs.refusable.append(take_back)

    def _go_on(self, stopped: _Stopped, pool: Pool) -> None:
        """A job that was stopped in this turn was not."""
        job, active, decided = stopped
        self._jobs.decided.pop(job.id, None)
        if decided is not None:
            self._jobs.decided[job.id] = decided
        if active is None:
            self._jobs.backlog.lane(job.low_priority).put_back(job)
        else:
            self._jobs.stay(active)
            pool.leave_running(active.slot, job.id)


def _take_out(these: Sequence[T], everything: list[T]) -> None:
    """Take ``these`` very objects, of which there may be equal ones, out of ``everything``."""
    out = set(map(id, these))
    everything[:] = [each for each in everything if id(each) not in out]
