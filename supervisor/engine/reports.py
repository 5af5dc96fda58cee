"""What workers say about their jobs, and what becomes of those; in the supervisor, during a turn."""

from __future__ import annotations

from supervisor.config.settings import Settings
from supervisor.engine.job_logs import JobLogs
from supervisor.engine.jobs import HOST_KILL_STARTS, Jobs, Observer
from supervisor.job import JobStatus, Outcome
from supervisor.pool import events
from supervisor.pool.pool import Pool
from supervisor.store.writes import AddChunk

LARGEST = 900_000_000
"""Bytes of the longest value that the store can take: SQLite keeps no row of more than 1 GB."""


STREAM_RESULTS = 10
"""The chunks of one job may have so many times ``--max-result`` together, or so many times ``LEAST_RESULT``."""

LEAST_RESULT = 2**20

CHUNK_COST = 100
"""Bytes that a chunk counts for beside its own: what its row takes, so that many small ones come to an end too."""


class Reports:
    """Takes the workers' reports. One about a job that does not run in that slot any more changes nothing."""

    def __init__(self, settings: Settings, jobs: Jobs, logs: JobLogs, observer: Observer) -> None:
        """Decide about ``jobs`` and keep ``logs``."""
        self._settings = settings
        self._jobs = jobs
        self._logs = logs
        self._observer = observer
        self._limit = min(settings.max_result, LARGEST)
        self._stream_limit = STREAM_RESULTS * max(self._limit, LEAST_RESULT)

    def printed(self, event: events.Printed) -> None:
        """A worker printed lines while it ran one job, or marked them as this job's."""
        active = self._jobs.active.get(event.job) if event.job is not None else None
        if active is None or active.slot != event.slot:
            return
        piece = self._logs.printed(active.job, event.lines)
        if piece is not None:
            self._jobs.batch.append(piece)
        if active.job.id in self._logs.waiters:
            self._jobs.wakes.append(lambda: self._logs.waiters.wake(active.job.id))

    def ended(self, event: events.JobEnded) -> None:
        """A worker has ended a job."""
        active = self._jobs.leave(event.job, event.slot)
        if active is None:
            return
        job, done = active.job, event.done
        size = len(done.output or b"") + len(done.error or "")
        if size > self._limit:
            self._jobs.end(job, self._too_large("the result", size))
        else:
            self._jobs.end(job, Outcome(JobStatus(done.status), done.output, done.error))

    def progressed(self, event: events.JobProgressed) -> None:
        """A running job reported progress, which is nowhere but in memory."""
        active = self._jobs.active.get(event.job)
        if active is not None and active.slot == event.slot:
            active.progress = event.value

    def yielded(self, event: events.JobYielded, pool: Pool, now: float) -> None:
        """A running job produced a chunk; the worker is not to be trusted when it is not the next one."""
        active = self._jobs.active.get(event.job)
        if active is None or active.slot != event.slot:
            return
        job = active.job
        if event.index != job.chunks:
            pool.distrust(event.slot, f"chunk {event.index} out of order", now)
            return
        active.streamed_bytes += len(event.value) + CHUNK_COST
        too_much = self._too_much(event, active.streamed_bytes)
        if too_much is not None:
            self._jobs.leave(job.id)
            self._jobs.end(job, too_much)
            pool.cancel(event.slot, job.id)
        else:
            self._jobs.batch.append(AddChunk(job.seq, job.attempts, event.index, event.value))
            active.job = job.replace(chunks=job.chunks + 1)
            self._jobs.wakes.append(lambda: self._observer.job_yielded(job.id))

    def _too_much(self, event: events.JobYielded, streamed: int) -> Outcome | None:
        """How a job ends by this chunk, with which its stream has ``streamed`` bytes."""
        if len(event.value) > self._limit:
            return self._too_large(f"chunk {event.index}", len(event.value))
        if streamed <= self._stream_limit:
            return None
        error = (
            f"its {event.index + 1} chunks, each with {CHUNK_COST} bytes for its place, are larger than"
            f" {self._stream_limit} bytes ({STREAM_RESULTS} times --max-result, at least {STREAM_RESULTS} MiB)"
        )
        return Outcome(JobStatus.FAILED, error=error)

    def _too_large(self, what: str, size: int) -> Outcome:
        error = f"{what} is {size} bytes long, more than --max-result allows ({self._limit})"
        return Outcome(JobStatus.FAILED, error=error)

    def lost(self, event: events.JobLost) -> None:
        """A job's worker is gone."""
        active = self._jobs.leave(event.job, event.slot)
        if active is not None:
            starts = HOST_KILL_STARTS if event.machinery else self._settings.max_attempts
            self._jobs.lost(active.job, event.error, starts if event.charged or event.machinery else None)
