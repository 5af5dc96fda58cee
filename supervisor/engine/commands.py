"""Cancel, retry, purge and time out jobs; decisions of one turn. In the supervisor."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from functools import partial

import msgspec

from supervisor.cause import ExecutionTimedOut, TtlPassed
from supervisor.engine.lifecycle import Lifecycle, queued_again
from supervisor.engine.shared import Shared
from supervisor.engine.turn import Turn
from supervisor.engine.waiters import settle
from supervisor.errors import RequestError
from supervisor.job import RETRYABLE, Job, JobStatus, Outcome
from supervisor.store.writes import Retry

PURGE_PIECE = 200
"""Jobs of a purge that one turn cancels, so that a long queue does not delay the others."""

EXPIRED_PIECE = 200
"""Expired jobs that one turn ends."""

_CANCELLED = Outcome(JobStatus.CANCELLED)


class Purge(msgspec.Struct, eq=False):
    """A purge in progress: it cancels queued jobs numbered below ``below``, ``removed`` of them so far, on disk.

    ``answer`` gets their number in the end, or the error that stopped the purge.
    """

    below: int
    answer: asyncio.Future[int]
    removed: int = 0


class Commands:
    """Decisions on clients' commands and on deadlines."""

    def __init__(self, shared: Shared, lifecycle: Lifecycle) -> None:
        self._shared = shared
        self._lifecycle = lifecycle
        self._wall_ms = shared.clock.wall_ms
        self._purges: list[Purge] = []

    def cancel(self, turn: Turn, job_id: str) -> Job | None:
        """Cancel a queued or running job and return its new state; an ended one is unchanged. ``None`` when unknown."""
        job = turn.get(job_id)
        if job is None or job.status.terminal:
            return job
        return self._stop(turn, job, _CANCELLED)

    def abandon(self, turn: Turn, job_id: str) -> None:
        """Cancel a job that has no client any more, unless that would cost the worker that runs it."""
        active = turn.running(job_id)
        slot = None if active is None else self._shared.pool.slots.get(active.slot)  # it may have gone
        if slot is None or slot.cancels_gently:
            self.cancel(turn, job_id)

    def time_out(self, turn: Turn) -> None:
        """End the jobs that have timed out as of this turn, which may have ended a start or renewed a ``ttl``."""
        wall_ms, jobs = self._wall_ms(), self._shared.jobs
        for job_id in jobs.timeouts.due(turn.now):
            active = turn.running(job_id)
            if active is not None:
                cause = ExecutionTimedOut(active.job.timeout_ms or 0)
                self._stop(turn, active.job, Outcome(JobStatus.TIMED_OUT, cause=cause), out_of_time=True)
        if jobs.some_expired(wall_ms):
            for job_id in self._shared.store.expired(wall_ms, EXPIRED_PIECE):
                job = turn.get(job_id)
                if job is not None and not job.status.terminal and _has_expired(job, wall_ms):
                    self._stop(turn, job, Outcome(JobStatus.TIMED_OUT, cause=TtlPassed()), out_of_time=True)
            turn.acts.append(jobs.find_expiry)

    def _stop(self, turn: Turn, job: Job, outcome: Outcome, *, out_of_time: bool = False) -> Job:
        active = turn.running(job.id)
        if active is not None:
            slot = active.slot
            turn.closed.add(slot)  # a worker that is about to get a cancel message accepts no job
            turn.acts.append(
                partial(self._shared.pool.cancel, slot, job.id, job.retries, turn.now, out_of_time=out_of_time)
            )
        return self._lifecycle.end(turn, job, outcome)

    def retry(self, turn: Turn, job_id: str) -> Job | None:
        """Queue a FAILED or TIMED_OUT job again, at its old place; return ``None`` when unknown.

        Raises:
            RequestError: 409, it is in another state, or had an ``s3Config``, which was removed.
        """
        job = turn.get(job_id)
        if job is None:
            return None
        if job.status not in RETRYABLE:
            raise RequestError(409, f"the job is {job.status.value}; only FAILED and TIMED_OUT ones can be retried")
        if job.has_s3_config:
            raise RequestError(409, "the job's s3Config is a secret and was removed when it ended; submit it again")
        created = self._wall_ms()
        expires = created + job.expires_ms - job.created_ms if job.expires_ms is not None else None
        turn.rows.append(Retry(job.seq, created, expires))
        turn.acts.append(partial(self._shared.statistics.retried, job.status))
        again = queued_again(job, attempts=0).replace(
            created_ms=created, expires_ms=expires, ended_ms=None, output=None, error=None, cause=None
        )
        turn.put(again, job)
        return again

    # --- purges ---------------------------------------------------------------------------------------------------------

    def purge(self, turn: Turn) -> asyncio.Future[int]:
        """Cancel all jobs that are queued now; the future gives their number once that is on disk."""
        turn.starts_held = True
        purge = Purge(turn.next_seq, self._shared.loop.create_future())
        turn.acts.append(partial(self._purges.append, purge))
        return purge.answer

    def continue_purge(self, turn: Turn) -> None:
        """Cancel the next piece of the oldest purge, and finish it when there are no more jobs."""
        purge = self._purges[0]
        piece = list(itertools.islice(_below(turn, purge.below), PURGE_PIECE))
        for job in piece:
            self._lifecycle.end(turn, job, _CANCELLED)
        turn.acts.append(partial(self._purged, purge, len(piece)))
        if len(piece) < PURGE_PIECE:
            turn.wakes.append(lambda: settle(purge.answer, purge.removed))

    def _purged(self, purge: Purge, count: int) -> None:
        purge.removed += count
        if count < PURGE_PIECE:
            self._purges.remove(purge)

    def reject(self, error: RequestError) -> None:
        """Stop all purges with ``error``, since a commit failed. The message says how many jobs were cancelled before."""
        for purge in self._purges:
            refusal = error
            if purge.removed:
                text = f"{error}; {purge.removed} of the queued jobs were cancelled before, the others remain queued"
                refusal = RequestError(error.status, text, retry_after=error.retry_after)
            settle(purge.answer, 0, refusal)
        self._purges.clear()

    @property
    def purging(self) -> bool:
        """True while a purge is in progress."""
        return bool(self._purges)


def _has_expired(job: Job, wall_ms: int) -> bool:
    return job.expires_ms is not None and job.expires_ms <= wall_ms


def _below(turn: Turn, seq: int) -> Iterator[Job]:
    """Iterate over the queued jobs with a lower number, in queue order."""
    for low_priority in (False, True):
        yield from itertools.takewhile(lambda job: job.seq < seq, turn.queued(low_priority))
