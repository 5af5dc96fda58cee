"""THE LOOP, in the supervisor: one turn joins pool, scheduler and store; decisions only.

A turn reads what the workers and clients have said, decides, commits it all in one transaction, and only then acts on it: sends
jobs to workers, frees waiting clients. So what anybody was told is on disk, and a restart recovers by reading the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Union

from supervisor.commits import Commits
from supervisor.errors import RequestError, StoreError
from supervisor.job import Job, JobRequest
from supervisor.jobs import Jobs
from supervisor.overview import Overview
from supervisor.pool import events
from supervisor.pool.machine import IllegalStepError
from supervisor.pool.pool import Pool
from supervisor.pool.slot import SlotState
from supervisor.settings import Settings
from supervisor.snapshot import Snapshot
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.streams import ChunkLease, Streams
from supervisor.waiters import Waiters

FORGET_PIECE = 200
"""Jobs forgotten between two turns, so that retention never delays one."""

FORGET_EVERY_S = 30.0
"""How often old jobs are looked for."""

GATHER_S = 0.001
"""How long a job that must wait for a worker anyway may wait for others to share its commit: at a high load the next turn comes
sooner by itself, so nobody waits longer, and a job costs one commit in place of two."""

STOP_S = 2.0
"""How much longer than ``--grace`` the end of all workers may take before the supervisor goes on without them."""

RELOADABLE = frozenset({SlotState.STARTING, SlotState.IDLE, SlotState.BUSY, SlotState.BACKOFF, SlotState.BROKEN})
"""The states in which a worker has read the handler, or tried to; all others lead to one that has not."""

T = TypeVar("T")
Happening = Union[events.PoolEvent, Job]
"""What observers hear of: what the pool says to people, and each job that ended."""


class Clock:
    """The two clocks: a fake one makes turns replayable."""

    def monotonic(self) -> float:
        """Seconds for deadlines."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Milliseconds since 1970 for people."""
        return time.time_ns() // 1_000_000


class Engine:
    """The supervisor's mind. All methods belong to the thread of its event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        secrets: SecretFiles,
        loop: asyncio.AbstractEventLoop,
        clock: Clock | None = None,
    ) -> None:
        """Serve what ``settings`` say; ``attach`` a pool, then ``start``."""
        self.settings = settings
        self.overview = Overview(settings)
        self.draining = False
        self.first_load: asyncio.Future[events.FirstLoad] = loop.create_future()
        self._store = store
        self._loop = loop
        self._clock = clock or Clock()
        self._pool: Pool | None = None
        self._ends = Waiters(loop)
        self._streams = Streams(self, loop)
        self._commits = Commits(store, loop, self._committed, self._stalled)
        self._jobs = Jobs(
            settings,
            store,
            secrets,
            self.overview,
            self._clock.wall_ms,
            self._job_ended,
            self._streams.waiters.wake,
            self._warn,
        )
        self._inbox: list[Callable[[float], None]] = []
        self._observers: list[Callable[[Happening], None]] = []
        self._failed_loads: dict[str, events.FirstLoad] = {}
        self._scheduled = False
        self._closed = False
        self._gathering: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._next_forget = 0.0
        self._changed: asyncio.Future[None] = loop.create_future()

    # --- life -----------------------------------------------------------------------------------------------------------

    def attach(self, pool: Pool) -> None:
        """Use ``pool``, which wakes this engine."""
        self._pool = pool

    def start(self) -> None:
        """Take up what the store holds and start the workers."""
        now = self._clock.monotonic()
        counts = self._store.counts()
        self.overview.statistics.begin(counts.jobs, counts.retried, now)
        self._jobs.recover()
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
        await self._until(lambda: not self._jobs.active, timeout, at_once)
        stopped = self._in_turn(lambda now: self.pool.stop(now, at_once=at_once.is_set()))
        await self._until(lambda: stopped.done() and self.pool.parked, self.settings.grace + STOP_S, at_once)
        if self._jobs.active and self._commits.refusal is None:
            put_back = self._in_turn(lambda _now: self._jobs.put_back_all())
            await asyncio.wait({put_back}, timeout=STOP_S)

    def close(self) -> None:
        """Have no turn any more and let go of the pipes; the store stays open."""
        self._closed = True
        self._commits.close()
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        self.pool.close()

    # --- what clients ask -----------------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> asyncio.Future[Job]:
        """Accept a job; the future gives it once it is on disk. The id of a job that exists gives that job.

        Raises:
            RequestError: 503 while draining or when the disk refuses, 429 when the queue is full.
        """
        if self.draining:
            raise RequestError(503, "the supervisor is shutting down", retry_after=5)
        if self._commits.refusal is not None:
            raise RequestError(503, f"the job store cannot be written: {self._commits.refusal}", retry_after=5)
        if self._is_full() and (request.generated or self.job(request.id) is None):
            limit = self.settings.max_queue
            raise RequestError(429, f"the queue is full: {limit} jobs wait (--max-queue)", retry_after=1)
        return self._in_turn(
            lambda now: self._jobs.accept(request, self.pool, now, queue_only=self.draining),
            gather=not self._has_room(),
        )

    def job(self, job_id: str) -> Job | None:
        """The job as it is on disk; ``None`` when unknown or forgotten."""
        return self._store.get(job_id) if self._commits.pending else self._jobs.get(job_id)

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
        """Cancel a job; the future gives it as it is then (an ended one keeps its state), ``None`` when unknown."""
        return self._in_turn(lambda now: self._jobs.cancel(job_id, self.pool, now))

    def forget(self, job: Job) -> None:
        """Let go of a job that has ended, before its retention is over; its row goes with a later commit."""
        self._jobs.forget(job)

    @property
    def running(self) -> int:
        """How many jobs are in workers."""
        return len(self._jobs.active)

    async def take_chunks(self, job_id: str, timeout: float) -> ChunkLease | None:
        """The stream chunks not handed out before; waits up to ``timeout`` seconds for a first one or the job's end."""
        return await self._streams.take(job_id, timeout)

    def chunks(self, job: Job) -> list[bytes]:
        """Those of the job's chunks (JSON) that were not handed out."""
        return self._jobs.chunks(job)

    def set_taken(self, job: Job, taken: int) -> asyncio.Future[bool]:
        """Write that the first ``taken`` chunks were handed out; done once it is on disk: whether the job still has them."""
        return self._in_turn(lambda _now: self._jobs.set_taken(job, taken))

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``, after the jobs that it runs.

        Raises:
            RequestError: 404 for an unknown slot, 409 when it has no worker to replace now.
        """
        if slot not in self.pool.slots:
            known = ", ".join(self.pool.slots)
            raise RequestError(404, f"no slot {slot!r}; there are: {known}")
        try:
            self.pool.refresh(slot, "hand", self._clock.monotonic())
        except IllegalStepError as error:
            state = self.pool.slots[slot].state.value
            raise RequestError(409, f"slot {slot} is {state}: it has no worker to refresh now") from error
        self.wake()

    def reload(self) -> None:
        """Replace every worker, so that each loads the handler anew."""
        for name, slot in self.pool.slots.items():
            if slot.state in RELOADABLE:
                self.pool.refresh(name, "a reload", self._clock.monotonic())
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
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _has_room(self) -> bool:
        return any(slot.room for slot in self.pool.slots.values())

    def _is_full(self) -> bool:
        """Whether one more job would wait beyond ``--max-queue``; those that came since the last turn count."""
        limit = self.settings.max_queue
        if not limit:
            return False
        room = sum(slot.room for slot in self.pool.slots.values())
        return len(self._jobs.backlog) + len(self._inbox) - room >= limit

    def _gather(self) -> None:
        """Have a turn within ``GATHER_S``."""
        if self._gathering is None and not self._scheduled:
            self._gathering = self._loop.call_later(GATHER_S, self.wake)

    def _turn(self) -> None:
        self._scheduled = False
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._closed or self._commits.pending:
            return
        now = self._clock.monotonic()
        self._apply(self.pool.collect(now), now)
        inbox, self._inbox = self._inbox, []
        for command in inbox:
            command(now)
        if self.draining:
            self.pool.stop(now, idle_only=True)
        else:
            self._jobs.assign(self.pool, now)
        self._commit()

    def _in_turn(self, decide: Callable[[float], T], *, gather: bool = False) -> asyncio.Future[T]:
        """Run ``decide(now)`` in the next turn, which ``gather`` lets come a moment later; the future gives what it returned
        once that turn is on disk."""
        future: asyncio.Future[T] = self._loop.create_future()

        def command(now: float) -> None:
            try:
                decided = decide(now)
            except RequestError as error:
                if not future.done():
                    future.set_exception(error)
            else:
                self._jobs.wakes.append(lambda: _resolve(future, decided))

        self._inbox.append(command)
        if gather:
            self._gather()
        else:
            self.wake()
        return future

    def _commit(self) -> None:
        if not self._jobs.batch:
            self._committed()
            return
        self._jobs.clear_away()
        self._commits.write(self._jobs.batch)

    def _committed(self) -> None:
        self._jobs.committed()
        now = self._clock.monotonic()
        self._apply(self.pool.perform(now), now)
        wakes, self._jobs.wakes = self._jobs.wakes, []
        for wake in wakes:
            wake()
        if not self._changed.done():
            self._changed.set_result(None)
        if self._jobs.batch or self._inbox:
            self.wake()
        self._arm(now)

    def _stalled(self, error: StoreError | None) -> None:
        """The disk refuses: nothing of this turn is told to anybody, and nothing more is heard, until it is on disk."""
        if error is not None:
            self._warn(f"the job store cannot be written, trying again: {error}")
        else:
            self._warn("the job store can be written again")
            self.wake()
        self.pool.listen(error is None)

    def _arm(self, now: float) -> None:
        """Wake again at the next deadline."""
        if now >= self._next_forget:
            self._forget(now)
        deadline = self.pool.deadline()
        at = self._next_forget if deadline is None else min(deadline, self._next_forget)
        if self._timer is not None:
            if now < self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), self._timer_fired)

    def _timer_fired(self) -> None:
        """Not under way any more: the loop's clock is coarse, so it may come before its time and must be set again then."""
        self._timer = None
        self.wake()

    def _forget(self, now: float) -> None:
        before = self._clock.wall_ms() - int(self.settings.retention * 1000)
        try:
            forgotten = self._store.forget(before, FORGET_PIECE)
        except StoreError as error:
            self._tell(events.Notice("warning", f"old jobs could not be removed: {error}"))
            forgotten = 0
        self._next_forget = now + (0.01 if forgotten == FORGET_PIECE else FORGET_EVERY_S)

    # --- what has happened ----------------------------------------------------------------------------------------------

    def _apply(self, happened: Sequence[events.PoolEvent], now: float) -> None:
        jobs = self._jobs
        for event in happened:
            if isinstance(event, events.JobEnded):
                jobs.worker_ended(event)
            elif isinstance(event, events.JobProgressed):
                jobs.worker_progressed(event)
            elif isinstance(event, events.JobYielded):
                jobs.worker_yielded(event, self.pool, now)
            elif isinstance(event, events.JobLost):
                jobs.worker_lost(event)
            elif isinstance(event, events.FirstLoad):
                self._first_loaded(event)
            else:
                self._tell(event)

    def _job_ended(self, job: Job) -> None:
        self._ends.wake(job.id, job)
        self._streams.waiters.wake(job.id)
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
        if len(self._failed_loads) == len(self.pool.slots):
            died = [load for load in self._failed_loads.values() if load.failed is None]
            self.first_load.set_result(died[0] if died else event)

    def _warn(self, text: str) -> None:
        self._tell(events.Notice("warning", text))

    def _tell(self, event: events.PoolEvent) -> None:
        self.overview.happened(event, self._clock.wall_ms())
        for observer in self._observers:
            observer(event)

    async def _until(self, reached: Callable[[], bool], timeout: float, at_once: asyncio.Event) -> None:
        """Until ``reached`` is true after some turn, ``at_once`` is set, or ``timeout`` seconds have passed."""
        deadline = self._clock.monotonic() + timeout
        hurry = asyncio.ensure_future(at_once.wait())
        try:
            while not reached() and not at_once.is_set():
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return
                self._changed = self._loop.create_future()
                waits: set[asyncio.Future[Any]] = {self._changed, hurry}
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()


def _resolve(future: asyncio.Future[T], value: T) -> None:
    """Give ``value``, unless nobody waits any more."""
    if not future.done():
        future.set_result(value)
