"""THE LOOP, in the supervisor: one turn joins pool, scheduler and store; decisions only.

A turn reads what the workers and clients have said, decides, commits it all in one transaction, and only then acts on it: sends
jobs to workers, frees waiting clients. So what anybody was told is on disk, and a restart recovers by reading the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Union

from supervisor.config.settings import Settings
from supervisor.engine.commands import Orders
from supervisor.engine.commits import Commits
from supervisor.engine.job_logs import JobLogs
from supervisor.engine.jobs import Jobs
from supervisor.engine.overview import Overview
from supervisor.engine.reports import Reports
from supervisor.engine.retention import Housekeeping
from supervisor.engine.scaling import Scaling
from supervisor.engine.streams import Streams
from supervisor.engine.turn import Clock, Turns
from supervisor.engine.waiters import Waiters
from supervisor.errors import RequestError, StoreError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.pool import events
from supervisor.pool.pool import Pool
from supervisor.pool.slots.machine import IllegalStepError
from supervisor.protocol.views import Snapshot
from supervisor.store.paging import Page, page
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import Write

STOP_S = 2.0
"""How much longer than ``--grace`` the end of all workers may take before the supervisor goes on without them."""

Happening = Union[events.PoolEvent, Job]
"""What observers hear of: what the pool says to people, and each job that ended."""


class Engine:
    """The supervisor's mind. All methods belong to the thread of its event loop.

    ``streams`` hands out chunks and ``logs`` what jobs printed. ``outbox`` has the webhooks, and
    ``on_webhook`` is called when there is one more to deliver.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        secrets: SecretFiles,
        loop: asyncio.AbstractEventLoop,
        status_body: Callable[[Job], bytes],
        clock: Clock | None = None,
    ) -> None:
        """Serve what ``settings`` say; ``attach`` a pool, then ``start``. ``status_body`` makes the bodies of webhooks."""
        self.settings = settings
        self.overview = Overview(settings)
        self.draining = False
        self.first_load: asyncio.Future[events.FirstLoad] = loop.create_future()
        self.on_webhook: Callable[[], None] | None = None
        self.status_body = status_body
        self.outbox = store.outbox
        self.streams = Streams(self, loop)
        self.logs = JobLogs(store, loop, settings.max_log, self.job)
        self._store = store
        self._clock = clock or Clock()
        self._pool: Pool | None = None
        self._ends = Waiters(loop)
        self._turns = Turns(loop, self._clock, self._turn)
        self._commits = Commits(store, loop, self._committed, self._refused, self._stalled)
        self._jobs = Jobs(settings, store, secrets, self.logs, self.overview, self._clock.wall_ms, self)
        self._reports = Reports(settings, self._jobs, self.logs, self)
        self._orders = Orders(self._jobs, self.overview, self._clock.wall_ms)
        self._housekeeping = Housekeeping(settings, store, self._clock.wall_ms, self.warn, self.wake)
        self._loop = loop
        self._observers: list[Callable[[Happening], None]] = []
        self._failed_loads: dict[str, events.FirstLoad] = {}
        self._arriving = 0
        self._closed = False
        self._hearing = True

    # --- life -----------------------------------------------------------------------------------------------------------

    def attach(self, pool: Pool) -> None:
        """Use ``pool``, which wakes this engine."""
        self._pool = pool
        self._scaling = Scaling(self.settings, len(pool.slots))

    def start(self) -> None:
        """Take up what the store holds and start the workers."""
        now = self._clock.monotonic()
        counts = self._store.counts()
        self.overview.statistics.begin(counts.jobs, counts.retried, now)
        self._jobs.recover()
        self._scaling.begin(self.pool, now)
        self.pool.start(now)
        self.wake()

    @property
    def pool(self) -> Pool:
        """The pool in use."""
        if self._pool is None:
            raise RuntimeError("the engine has no pool yet")
        return self._pool

    @property
    def ready(self) -> bool:
        """Whether some worker has been ready and the program is neither draining nor without a disk."""
        return (
            not self.draining
            and self._commits.refusal is None
            and self.first_load.done()
            and self.first_load.result().ok
        )

    def observe(self, observer: Callable[[Happening], None]) -> None:
        """Call ``observer`` with what the pool says and with every job that ended, once it is on disk."""
        self._observers.append(observer)

    async def drain(self, timeout: float, at_once: asyncio.Event) -> None:
        """Take no more jobs, let those that run end for ``timeout`` seconds (or until ``at_once``), requeue the rest, stop.

        A disk that refuses delays this no longer: the next start finds what ran.
        """
        self.draining = True
        self.wake()
        until = self._turns.until
        await until(lambda: not self._jobs.active, timeout, at_once)
        stopped = self._turns.ask(lambda now: self.pool.stop(now, at_once=at_once.is_set()))
        await until(lambda: stopped.done() and self.pool.parked, self.settings.grace + STOP_S, at_once)
        if self._jobs.active and self._commits.refusal is None:
            put_back = self._turns.ask(lambda _now: self._jobs.put_back_all())
            await asyncio.wait({put_back}, timeout=STOP_S)

    def close(self) -> None:
        """Have no turn any more and let go of the pipes; the store stays open."""
        self._closed = True
        self._commits.close()
        self._turns.close()
        self.pool.close()

    # --- what clients ask -----------------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> asyncio.Future[Job]:
        """Accept a job; the future gives it once it is on disk. The id of a job that exists gives that job.

        Raises:
            RequestError: 503 while draining or when the disk refuses, 429 when the queue is full.
        """
        known = not request.generated and self.job(request.id) is not None
        self._check_open(room=not known)
        queue_only = self._orders.purging
        self._arriving += 1

        def accept(now: float) -> Job:
            self._arriving -= 1
            return self._jobs.accept(request, self.pool, now, queue_only=self.draining or queue_only)

        full = not any(slot.room for slot in self.pool.takers)
        return self._turns.ask(accept, gather=full, patient=False)

    def _check_open(self, *, room: bool) -> None:
        """Refuse when no job can be taken, or (``room``) none more; those that came since the last turn count."""
        if self.draining:
            raise RequestError(503, "the supervisor is shutting down", retry_after=5)
        self._check_disk()
        limit = self.settings.max_queue
        if not limit or not room:
            return
        free = sum(slot.room for slot in self.pool.takers)
        if len(self._jobs.backlog) + self._arriving - free >= limit:
            raise RequestError(429, f"the queue is full: {limit} jobs wait (--max-queue)", retry_after=1)

    def _check_disk(self) -> None:
        if self._commits.refusal is not None:
            raise RequestError(503, f"the job store cannot be written: {self._commits.refusal}", retry_after=5)

    def job(self, job_id: str) -> Job | None:
        """The job as it is on disk; ``None`` when unknown or forgotten."""
        return self._store.get(job_id) if self._commits.pending else self._jobs.get(job_id)

    def facts(self, job_id: str) -> Job | None:
        """As ``job``, but its ``input`` and ``output`` may be missing."""
        return self._store.facts(job_id) if self._commits.pending else self._jobs.get(job_id, whole=False)

    def progress(self, job_id: str) -> bytes | None:
        """The newest progress (JSON) of a running job."""
        active = self._jobs.active.get(job_id)
        return active.progress if active is not None else None

    async def wait(self, job_id: str, timeout: float) -> Job | None:
        """The job once it has ended, or as it is after ``timeout`` seconds; ``None`` when unknown."""
        job = self.job(job_id)
        if job is None or job.status.terminal:
            return job
        return await self._ends.wait(job_id, timeout) or self.job(job_id)

    def cancel(self, job_id: str) -> asyncio.Future[Job | None]:
        """Cancel a job; the future gives it as it is then (an ended one keeps its state), ``None`` when unknown.

        Raises:
            RequestError: 503, also by the future, when the disk refuses; then the job goes on as if this had not been asked for.
        """
        self._check_disk()
        return self._turns.ask(lambda _now: self._orders.cancel(job_id, self.pool), patient=False)

    def abandon(self, job_id: str) -> None:
        """Nobody will ask for this job any more: cancel it, unless that would cost the worker and what it has loaded."""
        self._turns.ask(lambda _now: self._orders.abandon(job_id, self.pool))

    def retry(self, job_id: str) -> asyncio.Future[Job | None]:
        """Queue a job that failed or timed out once more; the future gives it as it is then, ``None`` when unknown.

        Raises:
            RequestError: 503 and 429 as ``submit``; 409, also by the future, for a job that cannot be run again.
        """
        self._check_open(room=True)
        return self._turns.ask(lambda _now: self._orders.retry(job_id), patient=False)

    def purge(self) -> asyncio.Future[int]:
        """Cancel every job that is queued now; the future gives how many, once that is on disk.

        Raises:
            RequestError: 503, also by the future, when the disk refuses.
        """
        self._check_disk()
        removed: asyncio.Future[int] = self._loop.create_future()
        self._turns.ask(lambda _now: self._orders.purge(removed))
        return removed

    def requests(self, status: JobStatus | None, limit: int, after: str | None) -> Page:
        """At most ``limit`` jobs (in ``status``), the newest first, without input and output, behind ``after``: what ``next`` of
        the page before says, or a job's id.

        Raises:
            RequestError: 404, ``after`` is neither.
        """
        return page(self._store, self.job, self._jobs.next_seq, status, limit, after)

    def forget(self, job: Job) -> None:
        """Let go of a job that has ended, before its retention is over; its row goes with a later commit."""
        self._jobs.forget(job)

    @property
    def running(self) -> int:
        """How many jobs are in workers."""
        return len(self._jobs.active)

    def chunks(self, job: Job, start: int, limit: int, enough: int) -> list[bytes]:
        """At most ``limit`` of the job's chunks (JSON) from index ``start`` on, and none behind that with which they have
        ``enough`` bytes; none when it was put back or forgotten since ``job`` was seen."""
        return [value for _, value in self._store.chunks(job.seq, start, limit, enough=enough, retries=job.retries)]

    def set_taken(self, job: Job, taken: int) -> asyncio.Future[bool]:
        """Write that the first ``taken`` chunks were handed out; done once it is on disk: whether the job still has them."""
        return self._turns.ask(lambda _now: self._jobs.set_taken(job, taken))

    def set_shown(self, job: Job) -> asyncio.Future[bool]:
        """Write that chunks are shown to somebody; done once it is on disk: whether the job still has them."""
        return self._turns.ask(lambda _now: self._jobs.set_shown(job))

    def write(self, write: Write) -> asyncio.Future[None]:
        """Write something beside the jobs; done once it is on disk."""
        return self._turns.ask(lambda _now: self._jobs.batch.append(write))

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``, after the jobs that it runs.

        Raises:
            RequestError: 404 for an unknown slot, 409 when it has no worker to replace now.
        """
        self._by_hand(slot, self.pool.refresh, "it has no worker to refresh now")

    def pause(self, slot: str) -> None:
        """Take ``slot`` out of service, after the jobs that its worker runs, and free its GPU. Raises as ``refresh`` does."""
        self._by_hand(slot, self.pool.pause, "it cannot be paused now")

    def resume(self, slot: str) -> None:
        """Put a paused ``slot`` back into service. Raises as ``refresh`` does."""
        self._by_hand(slot, self.pool.resume, "it is not paused")

    def _by_hand(self, slot: str, do: Callable[[str, str, float], None], refusal: str) -> None:
        if slot not in self.pool.slots:
            known = ", ".join(self.pool.slots)
            raise RequestError(404, f"no slot {slot[:80]!r}; there are: {known}")
        try:
            do(slot, "hand", self._clock.monotonic())
        except IllegalStepError as error:
            state = self.pool.slots[slot].state.value
            raise RequestError(409, f"slot {slot} is {state}: {refusal}") from error
        self.wake()

    def reload(self, why: str) -> None:
        """Replace every worker after the jobs that it runs, so that each loads the handler anew; ``why`` is for people."""
        self.say("reload", f"{why}: reloading")
        self.pool.reload(self._clock.monotonic())
        self.wake()

    def snapshot(self) -> Snapshot:
        """Everything a screen shows, now."""
        clock, jobs = self._clock, self._jobs
        running = list(jobs.active.values())
        return self.overview.snapshot(
            self.pool, running, len(jobs.backlog), clock.wall_ms(), clock.monotonic(), self.draining
        )

    # --- the turn -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon; several calls share one."""
        self._turns.wake()

    def _turn(self) -> None:
        self._turns.begin()
        if self._closed:
            return
        if self._commits.pending or self._store.retention.forgetting:
            self._hear(
                False
            )  # what is said now would be announced at each pass of the loop, and a turn comes afterwards
            return
        now = self._clock.monotonic()
        self._apply(self.pool.collect(now), now)
        self._turns.answer(now, self._jobs.wakes)
        self._orders.time_out(self.pool, now)
        if self._orders.purging:
            self._orders.go_on_purging()
        if self.draining:
            self.pool.stop(now, idle_only=True)
        elif not self._orders.purging:  # what is to be purged must not start meanwhile
            self._jobs.assign(self.pool, now)
        self._commit()

    def _commit(self) -> None:
        if not self._jobs.batch:
            self._committed()
            return
        self._jobs.clear_away()
        self._commits.write(self._jobs.batch)

    def _committed(self) -> None:
        if not self._hearing:
            self._hear(True)
            self.wake()
        self._jobs.committed()
        now = self._clock.monotonic()
        if not self.draining and not self._orders.purging:
            self._scaling.act(self.pool, self._jobs.waits, now)
        self._apply(self.pool.perform(now), now)
        wakes, self._jobs.wakes = self._jobs.wakes, []
        for wake in wakes:
            wake()
        if self._jobs.batch or self._orders.purging:
            self.wake()
        self._housekeeping.tidy(now)
        scaling = None if self.draining else self._scaling.deadline
        times = (self.pool.deadline(), self._orders.deadline(now), scaling, self._housekeeping.next)
        self._turns.end(now, min(at for at in times if at is not None))

    def _refused(self, error: StoreError) -> None:
        """The disk did not take this turn: what clients asked for is refused, and what has happened is written later."""
        refusal = RequestError(503, f"the job store cannot be written: {error}", retry_after=5)
        self._jobs.withdraw(self.pool, self._clock.monotonic())
        self._orders.refuse(refusal)
        self._turns.refuse(refusal)

    def _stalled(self, error: StoreError | None) -> None:
        """The disk refuses: nothing of this turn is told to anybody, and nothing more is heard, until it is on disk."""
        if error is not None:
            self.warn(f"the job store cannot be written, trying again: {error}")
        else:
            self.warn("the job store can be written again")
            self.wake()
        self._hear(error is None)

    def _hear(self, hearing: bool) -> None:
        if hearing is not self._hearing:
            self._hearing = hearing
            self.pool.listen(hearing)

    # --- what has happened ----------------------------------------------------------------------------------------------

    def _apply(self, happened: Sequence[events.PoolEvent], now: float) -> None:
        reports = self._reports
        for event in happened:
            if isinstance(event, events.JobEnded):
                reports.ended(event)
            elif isinstance(event, events.JobProgressed):
                reports.progressed(event)
            elif isinstance(event, events.JobYielded):
                reports.yielded(event, self.pool, now)
            elif isinstance(event, events.JobLost):
                reports.lost(event)
            elif isinstance(event, events.FirstLoad):
                self._first_loaded(event)
            else:
                if isinstance(event, events.Printed):
                    reports.printed(event)
                self._tell(event)

    def job_ended(self, job: Job) -> None:
        """``job`` has ended, on disk: tell who waits for that."""
        self._ends.wake(job.id, job)
        self.streams.waiters.wake(job.id)
        self.overview.job_ended(job, self._clock.monotonic())
        for observer in self._observers:
            observer(job)

    def _first_loaded(self, event: events.FirstLoad) -> None:
        """The first worker in service opens the doors; when none comes, the worst cause is the result."""
        if self.first_load.done():
            return
        if event.ok:
            self.first_load.set_result(event)
            return
        self._failed_loads[event.slot] = event
        started = {name for name, slot in self.pool.slots.items() if slot.generation and not slot.pausing}
        if self._failed_loads.keys() >= started:
            died = [load for load in self._failed_loads.values() if load.failed is None]
            self.first_load.set_result(died[0] if died else event)

    def job_yielded(self, job_id: str) -> None:
        """A job has a new chunk, on disk."""
        self.streams.waiters.wake(job_id)

    def webhook_waits(self) -> None:
        """There is a webhook to deliver, on disk."""
        if self.on_webhook is not None:
            self.on_webhook()

    def warn(self, text: str) -> None:
        """Tell a person of ``text``, which is not as it should be."""
        self.say("warning", text)

    def say(self, kind: str, text: str) -> None:
        """Tell a person ``text``; ``kind`` as in ``Notice``."""
        self._tell(events.Notice(kind, text))

    def _tell(self, event: events.PoolEvent) -> None:
        self.overview.happened(event, self._clock.wall_ms())
        for observer in self._observers:
            observer(event)
