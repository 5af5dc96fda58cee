"""A job's life from arrival to end: decisions of one turn, which change nothing by themselves. In the supervisor."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from functools import partial

import msgspec

from supervisor.cause import (
    ChunksHandedOut,
    JobCause,
    SecretUnreadable,
    SupervisorKilled,
    SupervisorStopped,
)
from supervisor.engine.shared import Shared
from supervisor.engine.turn import Turn
from supervisor.errors import RequestError, SecretError, StoreError
from supervisor.job import HOST_KILL_STARTS, IN_PROGRESS, IN_QUEUE, Job, JobRequest, JobStatus, Outcome
from supervisor.notice import Task, TaskFailed
from supervisor.store.writes import AddWebhook, End, Insert, Requeue, StartJob
from supervisor.wire import messages as wire


class Lifecycle:
    """Decisions on jobs' states. Each method adds to its ``turn``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._settings = shared.settings
        self._secrets = shared.secrets
        self._wall_ms = shared.clock.wall_ms

    # --- arrival and start ----------------------------------------------------------------------------------------------

    def accept(self, turn: Turn, request: JobRequest, *, queue_only: bool) -> Job:
        """Accept a new job; an idle worker gets it at once. The id of an existing job gives that job.

        Raises:
            RequestError: 503, its ``s3Config`` could not be written.
        """
        known = None if request.generated else turn.get(request.id)
        if known is not None:
            return known
        if request.s3_config is not None:
            self._keep_secret(turn, request.id, request.s3_config)
        job = self._new_job(turn, request)
        turn.acts.append(self._shared.statistics.submitted)
        slot = None if queue_only or turn.starts_held or turn.waiting else turn.seating.take()
        if slot is not None:
            return self._start(turn, job, slot, _merged(request.extras, request.s3_config), arriving=request)
        turn.rows.append(Insert(job.seq, request, job.created_ms, None, None, job.timeout_ms, job.expires_ms))
        turn.put(job, None)
        return job

    def _new_job(self, turn: Turn, request: JobRequest) -> Job:
        created = self._wall_ms()
        ttl = request.ttl_ms or int(self._settings.ttl * 1000)
        turn.next_seq += 1
        return Job(
            seq=turn.next_seq - 1,
            id=request.id,
            status=IN_QUEUE,
            input=request.input,
            created_ms=created,
            extras=request.extras,
            has_s3_config=request.s3_config is not None,
            low_priority=request.low_priority,
            timeout_ms=request.timeout_ms or int(self._settings.execution_timeout * 1000) or None,
            expires_ms=created + ttl if ttl else None,
        )

    def assign(self, turn: Turn) -> None:
        """Assign the oldest queued jobs to slots with free capacity."""
        if turn.starts_held:
            return
        queue = itertools.chain.from_iterable(map(turn.queued, (False, True)))
        while turn.waiting and (name := turn.seating.take()) is not None:
            found = self._next(turn, queue)
            if found is None:
                return
            job, extras = found
            self._start(turn, job, name, extras)

    def waits(self, count: int) -> list[float]:
        """Return the ``count`` longest waiting times in seconds, the longest first; called between turns."""
        now = self._wall_ms()
        waits = [(now - job.created_ms) / 1000 for job in self._shared.jobs.backlog.oldest(count)]
        # A negative time means that the clock was set back: the real one is unknown.
        return sorted((wait if wait >= 0 else math.inf for wait in waits), reverse=True)[:count]

    def _next(self, turn: Turn, queue: Iterator[Job]) -> tuple[Job, bytes | None] | None:
        """Return the next job of ``queue``, whole, with its extras; fail those whose ``s3Config`` cannot be read."""
        for queued in queue:
            try:
                secret = self._secrets.need(queued.id) if queued.has_s3_config else None
            except SecretError as error:
                cause = SecretUnreadable(error.file, error.reason)
                self.end(turn, queued, Outcome(JobStatus.FAILED, cause=cause))
                continue
            job = queued
            if not job.input and (stored := self._shared.store.get(job.id)) is not None:
                job = job.replace(input=stored.input)
            return job, _merged(job.extras, secret)
        return None

    def _start(self, turn: Turn, job: Job, name: str, extras: bytes | None, arriving: JobRequest | None = None) -> Job:
        """Start ``job`` in slot ``name``; the start is counted on disk before the worker receives the job."""
        started = self._wall_ms()
        worker_id = self._shared.pool.slots[name].worker_id
        if arriving is not None:
            turn.rows.append(
                Insert(job.seq, arriving, job.created_ms, started, worker_id, job.timeout_ms, job.expires_ms)
            )
        else:
            turn.rows.append(StartJob(job.seq, started, worker_id))
        running = job.replace(status=IN_PROGRESS, started_ms=started, worker_id=worker_id, attempts=job.attempts + 1)
        turn.put(running, None if arriving is not None else job, name)
        run = wire.Run(job.id, job.input, extras)
        turn.acts.append(partial(self._shared.pool.assign, name, run, job.retries, turn.now))
        return running

    # --- end and requeue ------------------------------------------------------------------------------------------------

    def end(self, turn: Turn, job: Job, outcome: Outcome) -> Job:
        """End ``job``, given as of this turn; its waiters are woken after the commit."""
        self._leave(turn, job)
        ended_ms = self._wall_ms()
        turn.rows.append(End(job.seq, outcome, ended_ms))
        ended = job.replace(
            status=outcome.status, output=outcome.output, error=outcome.error, cause=outcome.cause, ended_ms=ended_ms
        )
        turn.put(ended, job)
        if ended.extras is not None:
            self._add_webhook(turn, ended)
        turn.wakes.append(partial(self._after_end, ended))
        return ended

    def lost(self, turn: Turn, job: Job, cause: JobCause, starts: int | None) -> None:
        """Requeue a job whose worker was lost, or fail it with ``cause`` if it may not run again.

        ``starts`` is the most starts it may have in all; ``None``: this one does not count.
        """
        streamed = job.streamed and not self._settings.requeue_streams
        if streamed or (starts is not None and job.attempts >= starts):
            self.end(turn, job, Outcome(JobStatus.FAILED, cause=cause))
        else:
            self.requeue(turn, job, charged=starts is not None)

    def requeue(self, turn: Turn, job: Job, *, charged: bool) -> None:
        """Requeue a running job at its old place; ``charged`` keeps its start counted."""
        self._leave(turn, job)
        turn.rows.append(Requeue(job.seq, charged))
        turn.put(queued_again(job, attempts=job.attempts if charged else job.attempts - 1), job)
        turn.acts.append(partial(self._shared.statistics.retried, job.status))

    def recover(self, turn: Turn) -> None:
        """Requeue the jobs that ran when the last supervisor ended, up to ``HOST_KILL_STARTS`` starts, or fail them."""
        for job in self._shared.store.running():
            cause = self._recovery_failure(job)
            if cause is None:
                self.requeue(turn, job, charged=True)
            else:
                self.end(turn, job, Outcome(JobStatus.FAILED, cause=cause))

    def _recovery_failure(self, job: Job) -> JobCause | None:
        if self._settings.on_restart == "fail":
            return SupervisorKilled()
        if job.streamed and not self._settings.requeue_streams:
            return ChunksHandedOut()
        return SupervisorKilled(job.attempts) if job.attempts >= HOST_KILL_STARTS else None

    def requeue_all(self, turn: Turn) -> None:
        """Requeue every running job, uncharged, as the supervisor stops."""
        for job_id in self._shared.jobs.active:
            active = turn.running(job_id)
            if active is not None:
                self.lost(turn, active.job, SupervisorStopped(), None)

    def _leave(self, turn: Turn, job: Job) -> None:
        """Write the rest of the log of a job that leaves its worker."""
        row = self._shared.logs.close(turn.logs, job) if job.status is IN_PROGRESS else None
        if row is not None:
            turn.rows.append(row)

    def _add_webhook(self, turn: Turn, job: Job) -> None:
        """Add the job's webhook to the outbox, in the same transaction as its end."""
        url = msgspec.json.decode(job.extras or b"{}", type=_Extras).webhook
        if url is not None:
            webhook_id = f"msg_{os.urandom(12).hex()}"
            body = self._shared.status_body(job)
            turn.rows.append(AddWebhook(webhook_id, job.id, url, job.ended_ms or 0, body))
            turn.wakes.append(self._shared.webhook_waits)

    def _after_end(self, job: Job) -> None:
        if job.has_s3_config:
            self.drop_secret(job.id)
        self._shared.job_ended(job)

    # --- secrets --------------------------------------------------------------------------------------------------------

    def _keep_secret(self, turn: Turn, job_id: str, data: bytes) -> None:
        try:
            self._secrets.put(job_id, data)
        except StoreError as error:
            raise RequestError(503, str(error), retry_after=5) from error
        turn.secrets.append(job_id)

    def drop_secret(self, job_id: str) -> None:
        """Remove the ``s3Config`` of a job that has ended or was not accepted."""
        try:
            self._secrets.drop(job_id)
        except StoreError as error:
            self._shared.notify(TaskFailed(Task.REMOVE_ENDED_SECRET, str(error)))


class _Extras(msgspec.Struct):
    webhook: str | None = None


def queued_again(job: Job, *, attempts: int) -> Job:
    """Return ``job`` back in the queue, with ``attempts`` counted starts."""
    return job.replace(
        status=IN_QUEUE,
        attempts=attempts,
        retries=job.retries + 1,
        started_ms=None,
        worker_id=None,
        chunks=0,
        chunks_taken=0,
        streamed=False,
    )


def _merged(extras: bytes | None, secret: bytes | None) -> bytes | None:
    """Merge a job's ``webhook`` and ``policy`` with its ``s3Config`` into one JSON object."""
    if secret is None:
        return extras
    merged = msgspec.json.decode(extras, type=dict[str, msgspec.Raw]) if extras else {}
    return msgspec.json.encode({**merged, "s3Config": msgspec.Raw(secret)})
