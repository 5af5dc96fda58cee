"""Coordinates store, jobs and pool, for clients, screens and the program. In the supervisor.

``loop.py`` has the turns. A turn reads worker events and client commands, decides, commits all in one transaction, and only then
acts on it. So every answer is on disk before it is sent, and a restart recovers by reading the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Union

import msgspec

from supervisor.config.settings import Settings
from supervisor.engine.job_logs import JobLogs
from supervisor.engine.jobs import Jobs
from supervisor.engine.loop import TurnLoop
from supervisor.engine.overview import Overview
from supervisor.engine.shared import Shared
from supervisor.engine.streams import Streams
from supervisor.engine.turn import Turn
from supervisor.engine.turns import Clock, Turns
from supervisor.engine.waiters import Waiters
from supervisor.errors import RequestError, StoreError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.notice import Reloading, StartFailed, Task, TaskFailed
from supervisor.pool import events
from supervisor.pool.interfaces import Pool
from supervisor.protocol.views import Snapshot
from supervisor.store.paging import Page, page
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import Write

STOP_S = 2.0
"""Time beyond ``--grace`` after which the supervisor no longer waits for its workers to exit."""

Happening = Union[events.PoolEvent, Job]
"""Argument of observers: an event of the pool, or a job that ended."""


class Engine:
    """Interface to the running supervisor. Call all methods in the thread of its event loop.

    ``streams`` has the jobs' chunks, ``logs`` their output, ``slots`` the manual slot commands. ``first_load`` gives the load of
    the first ready worker or, not ``ok``, why there is none. ``outbox`` has the webhooks; ``on_webhook`` is called when there is
    one more to deliver.
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
        """Prepare; next ``attach`` a pool, then ``start``. ``status_body`` makes the bodies of webhooks."""
        self.settings = settings
        self.overview = Overview(settings)
        self.on_webhook: Callable[[], None] | None = None
        self.outbox = store.outbox
        self._store = store
        self._secrets = secrets
        self._status_body = status_body
        self._clock = clock or Clock()
        self._ends = Waiters(loop)
        self._jobs = Jobs(store)
        self._turns = Turns(loop, self._clock, self._turn)
        self.streams = Streams(self._jobs, store, self._turns, loop)
        self.logs = JobLogs(self._jobs, store, settings.max_log, loop)
        self._event_loop = loop
        self._observers: list[Callable[[Happening], None]] = []
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------------------------

    def attach(self, pool: Pool) -> None:
        """Use ``pool``, which wakes this engine. Nothing else may be called before."""
        self.pool = pool
        shared = Shared(
            settings=self.settings,
            store=self._store,
            secrets=self._secrets,
            pool=pool,
            loop=self._event_loop,
            clock=self._clock,
            turns=self._turns,
            jobs=self._jobs,
            streams=self.streams,
            logs=self.logs,
            statistics=self.overview.statistics,
            job_ended=self._job_ended,
            webhook_waits=self._webhook_waits,
            notify=self.notify,
            status_body=self._status_body,
        )
        self._loop = TurnLoop(shared)
        self.slots = self._loop.slots
        self.first_load = self._loop.first_loads.first

    def start(self) -> None:
        """Recover the store's jobs and start the workers."""
        now = self._clock.monotonic()
        counts = self._store.counts()
        self.overview.statistics.begin(counts.jobs, counts.retried, now)
        try:  # files that a killed supervisor left of ended jobs
            self._secrets.sweep(self._store.with_s3_config())
        except StoreError as error:
            self.notify(TaskFailed(Task.REMOVE_SECRET, str(error)))
        self._turns.request(self._loop.lifecycle.recover)
        self._loop.start(now)

    @property
    def draining(self) -> bool:
        """True once no more jobs are accepted."""
        return self._loop.draining

    @property
    def ready(self) -> bool:
        """True if a worker has been ready, the program is not draining, and the store can be written."""
        return not self.draining and self._loop.refusal is None and self._loop.first_loads.ok

    def observe(self, observer: Callable[[Happening], None]) -> None:
        """Call ``observer`` with the pool's events and with every job that ended, once it is on disk."""
        self._observers.append(observer)

    async def drain(self, timeout: float, at_once: asyncio.Event) -> None:
        """Accept no more jobs, wait ``timeout`` seconds (or until ``at_once``) for running ones, requeue the rest, stop.

        A store that cannot be written does not prolong this: the next start recovers the jobs that ran.
        """
        self._loop.draining = True
        self.wake()
        until = self._turns.over.until
        await until(lambda: not self._loop.busy, timeout, at_once)
        stopped = self._turns.request(
            lambda turn: turn.acts.append(lambda: self.pool.stop(turn.now, at_once=at_once.is_set()))
        )
        await until(lambda: stopped.done() and self.pool.parked, self.settings.grace + STOP_S, at_once)
        if self._jobs.active and self._loop.refusal is None:
            requeued = self._turns.request(self._loop.lifecycle.requeue_all)
            await asyncio.wait({requeued}, timeout=STOP_S)

    def close(self) -> None:
        """Stop the turns and close the pool; the store stays open."""
        self._closed = True
        self._loop.close()
        self._turns.close()
        self.pool.close()

    # --- for clients ----------------------------------------------------------------------------------------------------

    def submit(self, request: JobRequest, *, patient: bool = False) -> asyncio.Future[Job]:
        """Accept a job; the future gives it once it is on disk. The id of an existing job gives that job. A ``patient`` request
        is kept and retried if the commit fails.

        Raises:
            RequestError: 503 while draining or while the store cannot be written, 429 when the queue is full.
        """
        known = not request.generated and self.job(request.id) is not None
        self._check_open(room=not known)

        def accept(turn: Turn) -> Job:
            queue_only = self.draining or self._loop.commands.purging
            return self._loop.lifecycle.accept(turn, request, queue_only=queue_only)

        return self._turns.request(accept, gather=not self.pool.free.room, patient=patient, arrives=True)

    def _check_open(self, *, room: bool) -> None:
        """Raise if no job can be accepted or, with ``room``, if the queue is full; arrivals since the last turn count."""
        if self.draining:
            raise RequestError(503, "the supervisor is shutting down", retry_after=5)
        self._check_disk()
        limit = self.settings.max_queue
        if not limit or not room:
            return
        if len(self._jobs.backlog) + self._turns.arriving - self.pool.free.room >= limit:
            raise RequestError(429, f"the queue is full: {limit} jobs are queued (--max-queue)", retry_after=1)

    def _check_disk(self) -> None:
        if self._loop.refusal is not None:
            raise self._loop.unavailable()

    def job(self, job_id: str) -> Job | None:
        """Return a job as it is on disk; ``None`` when unknown or deleted."""
        return self._jobs.get(job_id)

    def progress(self, job_id: str) -> bytes | None:
        """Return the newest progress (JSON) of a running job, if any."""
        active = self._jobs.active.get(job_id)
        return active.progress if active is not None else None

    async def wait(self, job_id: str, timeout: float) -> Job | None:
        """Return a job once it has ended, or as it is after ``timeout`` seconds; ``None`` when unknown."""
        job = self.job(job_id)
        if job is None or job.status.terminal:
            return job
        return await self._ends.wait(job_id, timeout) or self.job(job_id)

    def cancel(self, job_id: str) -> asyncio.Future[Job | None]:
        """Cancel a job; the future gives its new state (an ended one keeps its own), ``None`` when unknown.

        Raises:
            RequestError: 503, also by the future, when the store cannot be written; the job is not changed then.
        """
        self._check_disk()
        return self._turns.request(lambda turn: self._loop.commands.cancel(turn, job_id), patient=False)

    def abandon(self, job_id: str) -> None:
        """Cancel a job that has no client any more, unless that would cost the worker and its loaded models."""
        self._turns.request(lambda turn: self._loop.commands.abandon(turn, job_id))

    def retry(self, job_id: str) -> asyncio.Future[Job | None]:
        """Queue a FAILED or TIMED_OUT job again; the future gives its new state, ``None`` when unknown.

        Raises:
            RequestError: 503 and 429 as ``submit``; 409, also by the future, for a job that cannot be run again.
        """
        self._check_open(room=True)
        return self._turns.request(lambda turn: self._loop.commands.retry(turn, job_id), patient=False)

    def purge(self) -> asyncio.Future[int]:
        """Cancel every job that is queued now; the future gives their number once that is on disk.

        Raises:
            RequestError: 503, also by the future, when the store cannot be written.
        """
        self._check_disk()
        asked = self._turns.request(self._loop.commands.purge, patient=False)

        async def removed() -> int:
            return await (await asked)

        return self._event_loop.create_task(removed())

    def requests(self, status: JobStatus | None, limit: int, after: str | None) -> Page:
        """List at most ``limit`` jobs (in ``status``), the newest first, without input and output.

        The page begins behind ``after``: the previous page's ``next``, or a job's id.

        Raises:
            RequestError: 404, ``after`` is neither.
        """
        return page(self._store, self.job, self._jobs.next_seq, status, limit, after)

    def forget(self, job: Job) -> None:
        """Delete an ended job before its retention is over; a later commit deletes its row."""
        self._jobs.to_delete[job.id] = job.seq

    @property
    def running(self) -> int:
        """Number of jobs in workers."""
        return len(self._jobs.active)

    def write(self, write: Write) -> asyncio.Future[None]:
        """Commit ``write``, which concerns no job's state; the future is done once it is on disk."""
        return self._turns.request(lambda turn: turn.rows.append(write))

    def reload(self, changed: tuple[str, ...] = ()) -> None:
        """Replace every worker after its running jobs, so that each loads the handler again, because these files ``changed`` or,
        without any, because of SIGHUP."""
        self.notify(Reloading(changed))
        self.slots.reload()

    def snapshot(self) -> Snapshot:
        """Return the current state for a screen."""
        return self.overview.snapshot(self.pool, self._jobs, self._clock, self.draining)

    # --- for turns ------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Schedule a turn; several calls share one."""
        self._turns.wake()

    def _turn(self) -> None:
        self._turns.begin()
        if not self._closed:
            self._loop.turn()

    def _job_ended(self, job: Job) -> None:
        self._ends.wake(job.id, job)
        self.streams.waiters.wake(job.id)
        self.logs.waiters.wake(job.id)
        self.overview.job_ended(job, self._clock.monotonic())
        for observer in self._observers:
            observer(job)

    def _webhook_waits(self) -> None:
        if self.on_webhook is not None:
            self.on_webhook()

    def notify(self, event: events.PoolEvent) -> None:
        """Pass ``event`` to the overview and to all observers, at once."""
        if isinstance(event, StartFailed) and not self._loop.first_loads.ok:
            event = msgspec.structs.replace(event, retry_s=None)  # if no worker can start at all, the program ends
        self.overview.happened(event, self._clock.wall_ms())
        for observer in self._observers:
            observer(event)
