"""Decisions about jobs, made during one turn of the engine: what to write, who runs what, who is to be woken. In the supervisor.

Nothing here takes effect by itself. A decision appends to ``batch`` (the turn's transaction) and to ``wakes`` (what is told once
that transaction is on disk); the engine commits the one and then does the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from supervisor import wire
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.overview import Overview
from supervisor.pool import events
from supervisor.pool.pool import Pool
from supervisor.scheduler import Backlog, plan
from supervisor.settings import Settings
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import AddChunk, End, Insert, Requeue, Start, TakeChunks, Write

HOST_KILL_STARTS = 3
"""Most starts of a job that a killed supervisor, template or host had under way (contract §5)."""


class Active:
    """A job in a worker: what is known of it beyond the store."""

    __slots__ = ("job", "progress", "slot")

    def __init__(self, job: Job, slot: str) -> None:
        """``job`` runs in ``slot``."""
        self.job = job
        self.slot = slot
        self.progress: bytes | None = None


class Jobs:
    """Every job that has not ended, and the way of each to its end."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        secrets: SecretFiles,
        overview: Overview,
        wall_ms: Callable[[], int],
        ended: Callable[[Job], None],
        yielded: Callable[[str], None],
    ) -> None:
        """Call ``ended`` with each job that ended and ``yielded`` with the id of each that has a new chunk, once on disk."""
        self.batch: list[Write] = []
        self.wakes: list[Callable[[], object]] = []
        self.active: dict[str, Active] = {}
        self.backlog = Backlog(store.queued)
        self._settings = settings
        self._store = store
        self._secrets = secrets
        self._overview = overview
        self._wall_ms = wall_ms
        self._ended = ended
        self._yielded = yielded
        self._decided: dict[str, Job] = {}
        self._leaving: set[str] = set()
        self._next_seq = store.next_seq

    # --- reading --------------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        """The job as it is on disk (or, within a turn, about to be); ``None`` when unknown or forgotten."""
        active = self.active.get(job_id)
        if active is not None:
            return active.job
        return self._decided.get(job_id) or self.backlog.get(job_id) or self._store.get(job_id)

    def committed(self) -> None:
        """The batch is on disk: begin another."""
        self.batch = []
        self._decided.clear()
        self._leaving.clear()

    # --- the way in -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up the store: jobs that ran when the last supervisor ended run again, up to 3 starts, or have failed."""
        ordinary, low = self._store.queued_counts()
        self.backlog.lane(False).expect(ordinary)
        self.backlog.lane(True).expect(low)
        running = self._store.running()
        for job in running:
            if self._settings.on_restart == "fail":
                why = "the supervisor was killed while the job ran (--on-restart fail)"
            elif job.chunks_taken and not self._settings.requeue_streams:
                why = "the supervisor was killed after chunks of the job were handed out (--requeue-streams runs it again)"
            elif job.attempts >= HOST_KILL_STARTS:
                why = f"the supervisor was killed while the job ran, {job.attempts} times"
            else:
                self.put_back(self._store.get(job.id) or job, charged=True)  # with its input, which the list leaves out
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
        if request.s3_config is not None:
            try:
                self._secrets.put(request.id, request.s3_config)
            except OSError as error:
                raise RequestError(503, f"s3Config could not be stored: {error}", retry_after=5) from error
        job = Job(
            seq=self._next_seq,
            id=request.id,
            status=JobStatus.IN_QUEUE,
            input=request.input,
            created_ms=self._wall_ms(),
            extras=request.extras,
            has_s3_config=request.s3_config is not None,
            low_priority=request.low_priority,
        )
        self._next_seq += 1
        self._overview.statistics.submitted()
        self._decided[job.id] = job
        slots = () if queue_only or len(self.backlog) else plan(1, pool.slots.values())
        if slots:
            return self._give(job, slots[0], pool, now, arriving=request)
        self.batch.append(Insert(job.seq, request, job.created_ms))
        self.backlog.lane(job.low_priority).push(job)
        return job

    def assign(self, pool: Pool, now: float) -> None:
        """Give the oldest queued jobs to the slots that have room."""
        for name in plan(len(self.backlog), pool.slots.values()):
            job = self.backlog.pop(self._leaving)
            if job is None:
                return
            self._give(job, name, pool, now)

    def _give(self, job: Job, name: str, pool: Pool, now: float, arriving: JobRequest | None = None) -> Job:
        """Start ``job`` in slot ``name``: the start is counted on disk before the worker hears of it."""
        started = self._wall_ms()
        worker_id = f"{name}-{pool.slots[name].generation}"
        if arriving is not None:
            self.batch.append(Insert(job.seq, arriving, job.created_ms, started, worker_id))
        else:
            self.batch.append(Start(job.seq, started, worker_id))
        pool.assign(name, wire.Run(job.id, job.input, self._extras(job)), now)
        self._decided.pop(job.id, None)
        job = job.replace(
            status=JobStatus.IN_PROGRESS,
            started_ms=started,
            worker_id=worker_id,
            attempts=job.attempts + 1,
        )
        self.active[job.id] = Active(job, name)
        return job

    def _extras(self, job: Job) -> bytes | None:
        """The job's ``webhook`` and ``policy`` together with its ``s3Config``, as one JSON object."""
        secret = self._secrets.get(job.id) if job.has_s3_config else None
        if secret is None:
            return job.extras
        merged = msgspec.json.decode(job.extras, type=dict[str, msgspec.Raw]) if job.extras else {}
        return msgspec.json.encode({**merged, "s3Config": msgspec.Raw(secret)})

    # --- the way out ----------------------------------------------------------------------------------------------------

    def end(self, job: Job, outcome: Outcome) -> Job:
        """Write how ``job`` ended; who waits for it is woken by the commit."""
        ended = self._wall_ms()
        self.batch.append(End(job.seq, outcome, ended))
        job = job.replace(status=outcome.status, output=outcome.output, error=outcome.error, ended_ms=ended)
        self._decided[job.id] = job
        self.wakes.append(lambda: self._after_end(job))
        return job

    def _after_end(self, job: Job) -> None:
        if job.has_s3_config:
            self._secrets.drop(job.id)
        self._ended(job)

    def worker_ended(self, event: events.JobEnded) -> None:
        """A worker has ended a job; one that was cancelled meanwhile has ended already."""
        active = self.active.pop(event.job, None)
        if active is None:
            return
        done, limit = event.done, self._settings.max_result
        outcome = Outcome(JobStatus(done.status), done.output, done.error)
        if done.output is not None and len(done.output) > limit:
            error = f"the result is {len(done.output)} bytes long, more than --max-result allows ({limit})"
            outcome = Outcome(JobStatus.FAILED, error=error)
        self.end(active.job, outcome)

    def worker_yielded(self, event: events.JobYielded) -> bool:
        """A running job produced a chunk; false when it is not the next one, which breaks the protocol."""
        active = self.active.get(event.job)
        if active is None:
            return True
        job = active.job
        if event.index != job.chunks:
            return False
        self.batch.append(AddChunk(job.seq, job.attempts, event.index, event.value))
        active.job = job.replace(chunks=job.chunks + 1)
        self.wakes.append(lambda: self._yielded(job.id))
        return True

    def worker_lost(self, event: events.JobLost) -> None:
        """A job's worker is gone: put the job back where it may run again, else it has failed."""
        active = self.active.pop(event.job, None)
        if active is None:
            return
        job = active.job
        starts = HOST_KILL_STARTS if event.machinery else self._settings.max_attempts
        charged = event.charged or event.machinery
        streamed = job.chunks_taken > 0 and not self._settings.requeue_streams
        if streamed or (charged and job.attempts >= starts):
            self.end(job, Outcome(JobStatus.FAILED, error=event.error))
        else:
            self.put_back(job, charged=charged)

    def put_back(self, job: Job, *, charged: bool) -> None:
        """Queue a running job again, at its old place; ``charged`` keeps its start counted."""
        self._decided.pop(job.id, None)
        self.batch.append(Requeue(job.seq, charged))
        job = job.replace(
            status=JobStatus.IN_QUEUE,
            attempts=job.attempts if charged else job.attempts - 1,
            retries=job.retries + 1,
            started_ms=None,
            worker_id=None,
            chunks=0,
            chunks_taken=0,
        )
        self._overview.statistics.retried()
        self.backlog.lane(job.low_priority).put_back(job)

    def put_back_all(self) -> None:
        """Queue every running job again, uncharged: the supervisor stops."""
        for active in list(self.active.values()):
            del self.active[active.job.id]
            self.put_back(active.job, charged=False)

    def cancel(self, job_id: str, pool: Pool, now: float) -> Job | None:
        """Cancel a job: a queued one never starts, a running one is stopped. Ended ones stay; ``None`` when unknown."""
        active = self.active.pop(job_id, None)
        if active is not None:
            job = self.end(active.job, Outcome(JobStatus.CANCELLED))
            pool.cancel(active.slot, job_id, now)
            return job
        queued = self.get(job_id)
        if queued is None or queued.status is not JobStatus.IN_QUEUE or job_id in self._leaving:
            return queued
        self.backlog.lane(queued.low_priority).remove(queued)
        self._leaving.add(job_id)
        return self.end(queued, Outcome(JobStatus.CANCELLED))

    # --- streams --------------------------------------------------------------------------------------------------------

    def chunks(self, job: Job) -> list[bytes]:
        """Those of the job's chunks (JSON) that were not handed out."""
        return [value for _, value in self._store.chunks(job.seq, job.chunks_taken)]

    def set_taken(self, job: Job, taken: int) -> None:
        """Write that the first ``taken`` chunks were handed out, unless the job runs anew since."""
        now = self.get(job.id)
        if now is None or now.attempts != job.attempts or now.chunks < taken:
            return
        self.batch.append(TakeChunks(job.seq, taken))
        active = self.active.get(job.id)
        if active is not None:
            active.job = active.job.replace(chunks_taken=taken)

    def running(self) -> Iterable[Active]:
        """The jobs in workers."""
        return self.active.values()
