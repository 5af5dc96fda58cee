"""Decisions about jobs, made during one turn of the engine: what to write, who runs what, who is to be woken. In the supervisor.

Nothing here takes effect by itself. A decision appends to ``batch`` (the turn's transaction) and to ``wakes`` (what is told once
that transaction is on disk); the engine commits the one and then does the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Protocol

import msgspec

from supervisor.config.settings import Settings
from supervisor.engine.deadlines import Deadlines
from supervisor.engine.job_logs import JobLogs, OpenLog
from supervisor.engine.overview import Overview
from supervisor.engine.queue import Backlog, plan
from supervisor.errors import RequestError, StoreError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.pool.pool import Pool
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import (
    AddWebhook,
    End,
    Forget,
    Insert,
    Requeue,
    ShowChunks,
    Start,
    TakeChunks,
    Write,
)
from supervisor.wire import messages as wire

HOST_KILL_STARTS = 3
"""Most starts of a job that a killed supervisor, template or host had under way."""


class Active:
    """A job in a worker: what is known of it beyond the store."""

    __slots__ = ("deadline", "job", "log", "progress", "slot", "streamed_bytes")

    def __init__(self, job: Job, slot: str) -> None:
        """``job`` runs in ``slot``."""
        self.job = job
        self.slot = slot
        self.progress: bytes | None = None
        self.streamed_bytes = 0
        # What it left behind when it was taken out of its worker.
        self.deadline: tuple[float, int] | None = None
        self.log: OpenLog | None = None


class Observer(Protocol):
    """Whom the way of a job concerns; told once it is on disk."""

    def job_ended(self, job: Job) -> None:
        """``job`` has ended."""

    def job_yielded(self, job_id: str) -> None:
        """A job has a new chunk."""

    def webhook_waits(self) -> None:
        """There is a webhook to deliver."""

    def status_body(self, job: Job) -> bytes:
        """What `/status` answers for ``job``; asked at once."""

    def warn(self, text: str) -> None:
        """Tell a person ``text``; called at once."""


class Jobs:
    """Every job that has not ended, and the way of each to its end."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        secrets: SecretFiles,
        logs: JobLogs,
        overview: Overview,
        wall_ms: Callable[[], int],
        observer: Observer,
    ) -> None:
        """Tell ``observer`` what becomes of them."""
        self.batch: list[Write] = []
        self.wakes: list[Callable[[], object]] = []
        self.refusable: list[Callable[[Pool, float], None]] = []
        """What takes back each thing that clients asked for in this turn, in their order."""
        self.active: dict[str, Active] = {}
        self.backlog = Backlog(store.queued)
        self._settings = settings
        self._store = store
        self._secrets = secrets
        self._logs = logs
        self._overview = overview
        self._wall_ms = wall_ms
        self._observer = observer
        self.deadlines = Deadlines(store)
        self.decided: dict[str, Job] = {}
        self._unwanted: dict[str, int] = {}
        self._forgotten: dict[str, int] = {}
        self.next_seq = store.next_seq

    # --- reading --------------------------------------------------------------------------------------------------------

    def get(self, job_id: str, *, whole: bool = True) -> Job | None:
        """The job as it is on disk (or, within a turn, about to be); ``None`` when unknown or forgotten. Unless it must be
        ``whole``, its ``input`` and ``output`` are not read."""
        if job_id in self._unwanted or job_id in self._forgotten:
            return self.decided.get(job_id)
        active = self.active.get(job_id)
        if active is not None:
            return active.job
        known = self.decided.get(job_id) or self.backlog.get(job_id)
        return known or (self._store.get(job_id) if whole else self._store.facts(job_id))

    def committed(self) -> None:
        """The batch is on disk: begin another."""
        self.batch = []
        self.decided.clear()
        self._forgotten = {}
        self.refusable.clear()
        self.deadlines.settled()

    def forget(self, job: Job) -> None:
        """Have nothing more to do with a job that has ended; its row goes with the next commit that is made anyway."""
        self._unwanted[job.id] = job.seq

    def clear_away(self) -> None:
        """Write that unwanted jobs are forgotten; before a new one may have the id of one."""
        self.batch.extend(map(Forget, self._unwanted.values()))
        self._forgotten |= self._unwanted
        self._unwanted = {}

    # --- the way in -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up the store: jobs that ran when the last supervisor ended run again, up to 3 starts, or have failed.

        What a killed supervisor left of jobs that had ended, their ``s3Config``, is removed.
        """
        try:
            self._secrets.sweep(self._store.with_s3_config())
        except StoreError as error:
            self._observer.warn(str(error))
        self.deadlines.recover()
        for low_priority, count in enumerate(self._store.queued_counts()):
            self.backlog.lane(bool(low_priority)).expect(count)
        for job in self._store.running():
            if self._settings.on_restart == "fail":
                why = "the supervisor was killed while the job ran (--on-restart fail)"
            elif job.streamed and not self._settings.requeue_streams:
                why = "the supervisor was killed after chunks of the job were handed out (--requeue-streams runs it again)"
            elif job.attempts >= HOST_KILL_STARTS:
                why = f"the supervisor was killed while the job ran, {job.attempts} times"
            else:
                self.decided[job.id] = queued = self._requeue(job, charged=True)
                self.backlog.lane(job.low_priority).put_back(queued)
                continue
            self.end(job, Outcome(JobStatus.FAILED, error=why))

    def accept(self, request: JobRequest, pool: Pool, now: float, *, queue_only: bool) -> Job:
        """Take a new job in; an idle worker gets it at once. The id of a job that exists gives that job.

        Raises:
            RequestError: 503, its ``s3Config`` could not be written.
        """
        if not request.generated:
            known = self.get(request.id)
            if known is not None:
                return known
        if request.id in self._unwanted:
            self.clear_away()
        if request.s3_config is not None:
            try:
                self._secrets.put(request.id, request.s3_config)
            except StoreError as error:
                raise RequestError(503, str(error), retry_after=5) from error
        job = self._new_job(request)
        self.arrived(job, None)
        self._overview.statistics.submitted()
        self.decided[job.id] = job
        slots = () if queue_only or len(self.backlog) else plan(1, pool.takers)
        if slots:
            return self._give(job, slots[0], _merged(request.extras, request.s3_config), pool, now, arriving=request)
        self.batch.append(Insert(job.seq, request, job.created_ms, None, None, job.timeout_ms, job.expires_ms))
        self.backlog.lane(job.low_priority).push(job)
        return job

    def _new_job(self, request: JobRequest) -> Job:
        created = self._wall_ms()
        ttl = request.ttl_ms or int(self._settings.ttl * 1000)
        job = Job(
            seq=self.next_seq,
            id=request.id,
            status=JobStatus.IN_QUEUE,
            input=request.input,
            created_ms=created,
            extras=request.extras,
            has_s3_config=request.s3_config is not None,
            low_priority=request.low_priority,
            timeout_ms=request.timeout_ms or int(self._settings.execution_timeout * 1000) or None,
            expires_ms=created + ttl if ttl else None,
        )
        self.next_seq += 1
        if ttl:
            self.deadlines.accepted(job)
        return job

    def arrived(self, job: Job, before: Job | None) -> None:
        """``job`` comes to the queue, by what is written from here on; ``before``: it had ended so, and is to run again."""
        first = len(self.batch)
        self.refusable.append(lambda pool, now: self._send_away(job.id, before, first, pool, now))

    def withdraw(self, pool: Pool, now: float) -> None:
        """Take back what clients asked for in this turn, which the disk did not take; nobody was told of it."""
        while self.refusable:
            self.refusable.pop()(pool, now)

    def _send_away(self, job_id: str, before: Job | None, first: int, pool: Pool, now: float) -> None:
        job = self.get(job_id)
        if job is None or job.status.terminal:
            return  # given up in the same turn: that it was may be written
        active = self.active.pop(job.id, None)
        if active is not None:
            self.deadlines.left(job.id)
            pool.withdraw(active.slot, job.id, now)
        else:
            self.backlog.lane(job.low_priority).remove(job)
        self.decided.pop(job.id, None)
        self.batch[first:] = [write for write in self.batch[first:] if getattr(write, "seq", None) != job.seq]
        if before is not None:
            self.decided[job.id] = before
            self._overview.statistics.not_retried(before.status)
        elif job.has_s3_config:
            self._drop_secret(job)

    def assign(self, pool: Pool, now: float) -> None:
        """Give the oldest queued jobs to the slots that have room."""
        for name in plan(len(self.backlog), pool.takers):
            found = self._next()
            if found is None:
                return
            job, extras = found
            self._give(job, name, extras, pool, now)

    def waits(self, count: int) -> list[float]:
        """How many seconds each of the ``count`` jobs has waited that have waited longest; asked between turns."""
        now = self._wall_ms()
        waits = [(now - job.created_ms) / 1000 for job in self.backlog.oldest(count)]
        # One that comes from the future waits since the clock was set back, and nobody knows how long it did before.
        return sorted((wait if wait >= 0 else math.inf for wait in waits), reverse=True)[:count]

    def _next(self) -> tuple[Job, bytes | None] | None:
        """The oldest queued job, whole, with its extras; one whose ``s3Config`` cannot be read has failed."""
        while (job := self.backlog.pop(self.decided)) is not None:
            if not job.input:
                job = self.decided.get(job.id) or self._store.get(job.id) or job
            try:
                secret = self._secrets.get(job.id) if job.has_s3_config else None
            except StoreError as error:
                self.end(job, Outcome(JobStatus.FAILED, error=str(error)))
            else:
                return job, _merged(job.extras, secret)
        return None

    def _give(
        self, job: Job, name: str, extras: bytes | None, pool: Pool, now: float, arriving: JobRequest | None = None
    ) -> Job:
        """Start ``job`` in slot ``name``: the start is counted on disk before the worker hears of it."""
        started = self._wall_ms()
        worker_id = f"{name}-{pool.slots[name].generation}"
        if arriving is not None:
            self.batch.append(
                Insert(job.seq, arriving, job.created_ms, started, worker_id, job.timeout_ms, job.expires_ms)
            )
        else:
            self.batch.append(Start(job.seq, started, worker_id))
        pool.assign(name, wire.Run(job.id, job.input, extras), now)
        self.decided.pop(job.id, None)
        job = job.replace(
            status=JobStatus.IN_PROGRESS,
            started_ms=started,
            worker_id=worker_id,
            attempts=job.attempts + 1,
        )
        self.active[job.id] = Active(job, name)
        self.deadlines.started(job, now)
        return job

    # --- the way out ----------------------------------------------------------------------------------------------------

    def end(self, job: Job, outcome: Outcome) -> Job:
        """Write how ``job`` ended; who waits for it is woken by the commit."""
        ended = self._wall_ms()
        self.batch.append(End(job.seq, outcome, ended))
        job = job.replace(status=outcome.status, output=outcome.output, error=outcome.error, ended_ms=ended)
        self.decided[job.id] = job
        if job.extras is not None:
            self._owe_webhook(job)
        self.wakes.append(lambda: self._after_end(job))
        return job

    def _owe_webhook(self, job: Job) -> None:
        """Write, beside the end of ``job``, that its webhook is to be told; from then on it has a life of its own."""
        url = msgspec.json.decode(job.extras or b"{}", type=_Extras).webhook
        if url is not None:
            webhook_id = f"msg_{os.urandom(12).hex()}"
            body = self._observer.status_body(job)
            self.batch.append(AddWebhook(webhook_id, job.id, url, job.ended_ms or 0, body))
            self.wakes.append(self._observer.webhook_waits)

    def _after_end(self, job: Job) -> None:
        if job.has_s3_config:
            self._drop_secret(job)
        self._logs.waiters.wake(job.id)
        self._observer.job_ended(job)

    def _drop_secret(self, job: Job) -> None:
        try:
            self._secrets.drop(job.id)
        except StoreError as error:
            self._observer.warn(f"a job has ended, and {error}")

    def leave(self, job_id: str, slot: str | None = None) -> Active | None:
        """Take a job out of its worker; ``None`` when it runs nowhere, or not in that ``slot`` (it was cancelled meanwhile)."""
        active = self.active.get(job_id)
        if active is None or (slot is not None and active.slot != slot):
            return None
        del self.active[job_id]
        if active.job.timeout_ms is not None:
            active.deadline = self.deadlines.left(job_id)
        active.log = self._logs.left(active.job)
        printed = self._logs.rest(active.job, active.log) if active.log is not None else None
        if printed is not None:
            self.batch.append(printed)
        return active

    def stay(self, active: Active) -> None:
        """``active``, which has left its worker in this turn, has not."""
        self.active[active.job.id] = active
        self.deadlines.back(active.job.id, active.deadline)
        self._logs.back(active.job, active.log)

    def put_back_all(self) -> None:
        """Take every running job from its worker, uncharged: the supervisor stops."""
        for active in list(self.active.values()):
            self.leave(active.job.id)
            self.lost(active.job, "the supervisor stopped while the job ran", None)

    def lost(self, job: Job, error: str, starts: int | None) -> None:
        """Queue a running job again at its old place, where it may run again, else it has failed.

        ``starts`` is how many it may have in all; ``None``: this one does not count.
        """
        streamed = job.streamed and not self._settings.requeue_streams
        if streamed or (starts is not None and job.attempts >= starts):
            self.end(job, Outcome(JobStatus.FAILED, error=error))
        else:
            self.decided.pop(job.id, None)
            self.backlog.lane(job.low_priority).put_back(self._requeue(job, charged=starts is not None))

    def _requeue(self, job: Job, *, charged: bool) -> Job:
        """Write that a running job waits again; ``charged`` keeps its start counted."""
        self.batch.append(Requeue(job.seq, charged))
        self._overview.statistics.retried(job.status)
        return queued_again(job, attempts=job.attempts if charged else job.attempts - 1)

    # --- streams --------------------------------------------------------------------------------------------------------

    def set_taken(self, job: Job, taken: int) -> bool:
        """Write that the first ``taken`` chunks were handed out; false when the job is gone or was put back since."""
        if not self._is_still(job):
            return False
        self.batch.append(TakeChunks(job.seq, taken))
        active = self.active.get(job.id)
        if active is not None:
            active.job = active.job.replace(chunks_taken=taken, streamed=True)
        return True

    def set_shown(self, job: Job) -> bool:
        """Write that chunks of the job are shown to somebody; false when the job is gone or was put back since."""
        if not self._is_still(job):
            return False
        self.batch.append(ShowChunks(job.seq))
        active = self.active.get(job.id)
        if active is not None:
            active.job = active.job.replace(streamed=True)
        return True

    def _is_still(self, job: Job) -> bool:
        now = self.get(job.id)
        return now is not None and (now.seq, now.retries) == (job.seq, job.retries)


class _Extras(msgspec.Struct):
    webhook: str | None = None


def queued_again(job: Job, *, attempts: int) -> Job:
    """``job`` as it waits once more, after that many ``attempts`` which count."""
    return job.replace(
        status=JobStatus.IN_QUEUE,
        attempts=attempts,
        retries=job.retries + 1,
        started_ms=None,
        worker_id=None,
        chunks=0,
        chunks_taken=0,
        streamed=False,
    )


def _merged(extras: bytes | None, secret: bytes | None) -> bytes | None:
    """A job's ``webhook`` and ``policy`` together with its ``s3Config``, as one JSON object."""
    if secret is None:
        return extras
    merged = msgspec.json.decode(extras, type=dict[str, msgspec.Raw]) if extras else {}
    return msgspec.json.encode({**merged, "s3Config": msgspec.Raw(secret)})
