"""Workers' reports about their jobs, and the decisions on them; in the supervisor, during a turn."""

from __future__ import annotations

from functools import partial

from supervisor.cause import NotEncodable, StreamTooLarge, TooLarge
from supervisor.engine.lifecycle import Lifecycle
from supervisor.engine.shared import Shared
from supervisor.engine.turn import Turn
from supervisor.job import HOST_KILL_STARTS, JobStatus, Outcome
from supervisor.pool import events
from supervisor.store.writes import AddChunk

LARGEST = 900_000_000
"""Bytes of the largest value that the store accepts: SQLite keeps no row of more than 1 GB."""

STREAM_RESULTS = 10
"""Limit of all chunks of a job together, in multiples of ``--max-result`` or of ``LEAST_RESULT``, whichever is larger."""

LEAST_RESULT = 2**20

CHUNK_COST = 100
"""Bytes that a chunk counts beside its own, for its row, so that many small ones reach the limit too."""


class Reports:
    """Decisions on the workers' reports. A report about a job that no longer runs in that slot is ignored."""

    def __init__(self, shared: Shared, lifecycle: Lifecycle) -> None:
        self._shared = shared
        self._lifecycle = lifecycle
        self._limit = min(shared.settings.max_result, LARGEST)
        self._stream_limit = STREAM_RESULTS * max(self._limit, LEAST_RESULT)

    def printed(self, turn: Turn, event: events.Printed) -> None:
        """Add lines to the log of the job that printed them."""
        active = turn.reported(event)
        if active is None:
            return
        job, logs = active.job, self._shared.logs
        piece = logs.printed(turn.logs, job, event.lines)
        if piece is not None:
            turn.rows.append(piece)
        if job.id in logs.waiters:
            turn.wakes.append(partial(logs.waiters.wake, job.id))

    def ended(self, turn: Turn, event: events.JobEnded) -> None:
        """End a job as its worker reported."""
        active = turn.reported(event)
        if active is None:
            return
        job, done = active.job, event.done
        what = done.cause.what if isinstance(done.cause, NotEncodable) else ""
        size = len(done.output or b"") + len(done.error or what)
        if size > self._limit:
            self._lifecycle.end(turn, job, Outcome(JobStatus.FAILED, cause=TooLarge(size, self._limit)))
        else:
            self._lifecycle.end(turn, job, Outcome(JobStatus(done.status), done.output, done.error, done.cause))

    def progressed(self, turn: Turn, event: events.JobProgressed) -> None:
        """Keep a job's progress, in memory only."""
        active = turn.reported(event)
        if active is not None:
            turn.active[event.job] = active.replace(progress=event.value)

    def yielded(self, turn: Turn, event: events.JobYielded) -> None:
        """Add a chunk of a running job; distrust a worker that sends one out of order."""
        active = turn.reported(event)
        if active is None:
            return
        job = active.job
        if event.index != job.chunks:
            cause = f"chunk {event.index} out of order"
            turn.closed.add(event.slot)
            turn.acts.append(partial(self._shared.pool.distrust, event.slot, cause, turn.now))
            return
        streamed = active.streamed_bytes + len(event.value) + CHUNK_COST
        too_much = self._too_much(event, streamed)
        if too_much is not None:
            self._lifecycle.end(turn, job, too_much)
            turn.closed.add(event.slot)
            turn.acts.append(partial(self._shared.pool.cancel, event.slot, job.id, event.start, turn.now))
            return
        turn.rows.append(AddChunk(job.seq, job.attempts, event.index, event.value))
        turn.active[job.id] = active.replace(streamed_bytes=streamed)
        turn.put(job.replace(chunks=job.chunks + 1), job)
        turn.wakes.append(partial(self._shared.streams.waiters.wake, job.id))

    def _too_much(self, event: events.JobYielded, streamed: int) -> Outcome | None:
        """Return the failure if this chunk, or with it the stream of ``streamed`` bytes, exceeds a limit."""
        if len(event.value) > self._limit:
            return Outcome(JobStatus.FAILED, cause=TooLarge(len(event.value), self._limit, event.index))
        if streamed <= self._stream_limit:
            return None
        cause = StreamTooLarge(event.index + 1, CHUNK_COST, self._stream_limit, STREAM_RESULTS)
        return Outcome(JobStatus.FAILED, cause=cause)

    def lost(self, turn: Turn, event: events.JobLost) -> None:
        """Requeue or fail a job whose worker was lost."""
        active = turn.reported(event)
        if active is not None:
            starts = HOST_KILL_STARTS if event.machinery else self._shared.settings.max_attempts
            self._lifecycle.lost(turn, active.job, event.cause, starts if event.charged or event.machinery else None)
