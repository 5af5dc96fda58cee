"""Decisions about jobs, made during one turn of the engine: what to write, who runs what, who is to be woken. In the supervisor.

Nothing here takes effect by itself. A decision appends to ``batch`` (the turn's transaction) and to ``wakes`` (what is told once
that transaction is on disk); the engine commits the one and then does the other.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor import wire
from supervisor.errors import RequestError, StoreError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.overview import Overview
from supervisor.pool import events
from supervisor.pool.pool import Pool
from supervisor.scheduler import Backlog, plan
from supervisor.settings import Settings
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import AddChunk, End, Forget, Insert, Requeue, Start, TakeChunks, Write

LARGEST = 900_000_000
"""Bytes of the longest value that the store can take: SQLite keeps no row of more than 1 GB."""

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
        warn: Callable[[str], None],
    ) -> None:
        """Call ``ended`` with each job that ended and ``yielded`` with the id of each that has a new chunk, once on disk;
        ``warn`` with what a person should know."""
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
        self._warn = warn
        self._limit = min(settings.max_result, LARGEST)
        self._decided: dict[str, Job] = {}
        self._unwanted: dict[str, int] = {}
        self._forgotten: dict[str, int] = {}
        self._next_seq = store.next_seq

    # --- reading --------------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        """The job as it is on disk (or, within a turn, about to be); ``None`` when unknown or forgotten."""
        if job_id in self._unwanted or job_id in self._forgotten:
            return self._decided.get(job_id)
        active = self.active.get(job_id)
        if active is not None:
            return active.job
        return self._decided.get(job_id) or self.backlog.get(job_id) or self._store.get(job_id)

    def committed(self) -> None:
        """The batch is on disk: begin another."""
        self.batch = []
        self._decided.clear()
        self._forgotten = {}

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
            self._warn(str(error))
        waiting = list(self._store.queued_counts())
        for job in self._store.running():
            if self._settings.on_restart == "fail":
                why = "the supervisor was killed while the job ran (--on-restart fail)"
            elif job.chunks_taken and not self._settings.requeue_streams:
                why = "the supervisor was killed after chunks of the job were handed out (--requeue-streams runs it again)"
            elif job.attempts >= HOST_KILL_STARTS:
                why = f"the supervisor was killed while the job ran, {job.attempts} times"
            else:
                # Not put back in memory: once this is on disk the store lists it in its place among the others.
                self._decided[job.id] = self._requeue(job, charged=True)
                waiting[job.low_priority] += 1
                continue
            self.end(job, Outcome(JobStatus.FAILED, error=why))
        for low_priority, count in enumerate(waiting):
            self.backlog.lane(bool(low_priority)).expect(count)

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
            return self._give(job, slots[0], _merged(request.extras, request.s3_config), pool, now, arriving=request)
        self.batch.append(Insert(job.seq, request, job.created_ms))
        self.backlog.lane(job.low_priority).push(job)
        return job

    def assign(self, pool: Pool, now: float) -> None:
        """Give the oldest queued jobs to the slots that have room."""
        for name in plan(len(self.backlog), pool.slots.values()):
            found = self._next()
            if found is None:
                return
            job, extras = found
            self._give(job, name, extras, pool, now)

    def _next(self) -> tuple[Job, bytes | None] | None:
        """The oldest queued job, whole, with its extras; one whose ``s3Config`` cannot be read has failed."""
        while (job := self.backlog.pop(self._decided)) is not None:
            if not job.input:
                job = self._decided.get(job.id) or self._store.get(job.id) or job
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
            self.batch.append(Insert(job.seq, arriving, job.created_ms, started, worker_id))
        else:
            self.batch.append(Start(job.seq, started, worker_id))
        pool.assign(name, wire.Run(job.id, job.input, extras), now)
        self._decided.pop(job.id, None)
        job = job.replace(
            status=JobStatus.IN_PROGRESS,
            started_ms=started,
            worker_id=worker_id,
            attempts=job.attempts + 1,
        )
        self.active[job.id] = Active(job, name)
        return job

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
            try:
                self._secrets.drop(job.id)
            except StoreError as error:
                self._warn(f"a job has ended, and {error}")
        self._ended(job)

    def _leave(self, job_id: str, slot: str) -> Job | None:
        """Take a job out of its worker; ``None`` when it does not run in that ``slot`` (it was cancelled meanwhile)."""
        active = self.active.get(job_id)
        if active is None or active.slot != slot:
            return None
        del self.active[job_id]
        return active.job

    def worker_ended(self, event: events.JobEnded) -> None:
        """A worker has ended a job."""
        job = self._leave(event.job, event.slot)
        if job is None:
            return
        done = event.done
        size = len(done.output or b"") + len(done.error or "")
        if size > self._limit:
            self.end(job, self._too_large("the result", size))
        else:
            self.end(job, Outcome(JobStatus(done.status), done.output, done.error))

    def worker_progressed(self, event: events.JobProgressed) -> None:
        """A running job reported progress, which is nowhere but in memory."""
        active = self.active.get(event.job)
        if active is not None and active.slot == event.slot:
            active.progress = event.value

    def worker_yielded(self, event: events.JobYielded, pool: Pool, now: float) -> None:
        """A running job produced a chunk; the worker is not to be trusted when it is not the next one."""
        active = self.active.get(event.job)
        if active is None or active.slot != event.slot:
            return
        job = active.job
        if event.index != job.chunks:
            pool.distrust(event.slot, f"chunk {event.index} out of order", now)
        elif len(event.value) > self._limit:
            del self.active[job.id]
            self.end(job, self._too_large(f"chunk {event.index}", len(event.value)))
            pool.cancel(event.slot, job.id, now)
        else:
            self.batch.append(AddChunk(job.seq, job.attempts, event.index, event.value))
            active.job = job.replace(chunks=job.chunks + 1)
            self.wakes.append(lambda: self._yielded(job.id))

    def _too_large(self, what: str, size: int) -> Outcome:
        error = f"{what} is {size} bytes long, more than --max-result allows ({self._limit})"
        return Outcome(JobStatus.FAILED, error=error)

    def worker_lost(self, event: events.JobLost) -> None:
        """A job's worker is gone."""
        job = self._leave(event.job, event.slot)
        if job is not None:
            starts = HOST_KILL_STARTS if event.machinery else self._settings.max_attempts
            self._lost(job, event.error, starts if event.charged or event.machinery else None)

    def put_back_all(self) -> None:
        """Take every running job from its worker, uncharged: the supervisor stops."""
        for active in list(self.active.values()):
            del self.active[active.job.id]
            self._lost(active.job, "the supervisor stopped while the job ran", None)

    def _lost(self, job: Job, error: str, starts: int | None) -> None:
        """Queue a running job again at its old place, where it may run again, else it has failed.

        ``starts`` is how many it may have in all; ``None``: this one does not count.
        """
        streamed = job.chunks_taken > 0 and not self._settings.requeue_streams
        if streamed or (starts is not None and job.attempts >= starts):
            self.end(job, Outcome(JobStatus.FAILED, error=error))
        else:
            self._decided.pop(job.id, None)
            self.backlog.lane(job.low_priority).put_back(self._requeue(job, charged=starts is not None))

    def _requeue(self, job: Job, *, charged: bool) -> Job:
        """Write that a running job waits again; ``charged`` keeps its start counted."""
        self.batch.append(Requeue(job.seq, charged))
        self._overview.statistics.retried()
        return job.replace(
            status=JobStatus.IN_QUEUE,
            attempts=job.attempts if charged else job.attempts - 1,
            retries=job.retries + 1,
            started_ms=None,
            worker_id=None,
            chunks=0,
            chunks_taken=0,
        )

    def cancel(self, job_id: str, pool: Pool, now: float) -> Job | None:
        """Cancel a job: a queued one never starts, a running one is stopped. Ended ones stay; ``None`` when unknown."""
        active = self.active.pop(job_id, None)
        if active is not None:
            job = self.end(active.job, Outcome(JobStatus.CANCELLED))
            pool.cancel(active.slot, job_id, now)
            return job
        queued = self.get(job_id)
        if queued is None or queued.status is not JobStatus.IN_QUEUE:
            return queued
        self.backlog.lane(queued.low_priority).remove(queued)
        return self.end(queued, Outcome(JobStatus.CANCELLED))

    # --- streams --------------------------------------------------------------------------------------------------------

    def chunks(self, job: Job) -> list[bytes]:
        """Those of the job's chunks (JSON) that were not handed out."""
        return [value for _, value in self._store.chunks(job.seq, job.chunks_taken)]

    def set_taken(self, job: Job, taken: int) -> bool:
        """Write that the first ``taken`` chunks were handed out; false when the job is gone or was put back since."""
        now = self.get(job.id)
        if now is None or (now.seq, now.retries) != (job.seq, job.retries):
            return False
        self.batch.append(TakeChunks(job.seq, taken))
        active = self.active.get(job.id)
        if active is not None:
            active.job = active.job.replace(chunks_taken=taken)
        return True


def _merged(extras: bytes | None, secret: bytes | None) -> bytes | None:
    """A job's ``webhook`` and ``policy`` together with its ``s3Config``, as one JSON object."""
    if secret is None:
        return extras
    merged = msgspec.json.decode(extras, type=dict[str, msgspec.Raw]) if extras else {}
    return msgspec.json.encode({**merged, "s3Config": msgspec.Raw(secret)})
