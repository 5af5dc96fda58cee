"""Stream chunks, each handed out once; in the supervisor. That a chunk leaves is on disk before it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from supervisor.engine.jobs import Jobs
from supervisor.engine.turn import Turn
from supervisor.engine.turns import Turns
from supervisor.engine.waiters import Waiters
from supervisor.job import Job
from supervisor.store.store import Store
from supervisor.store.writes import ShowChunks, TakeChunks

READ_CHUNKS = 256
READ_BYTES = 2**20
"""How many chunks one look takes, and after how many bytes it takes no more: nobody's long stream is in memory at once."""


class Chunks(msgspec.Struct, frozen=True):
    """Chunks of ``job`` (JSON) from index ``first`` on."""

    job: Job
    first: int
    values: list[bytes]

    @property
    def end(self) -> int:
        """The index to go on with."""
        return self.first + len(self.values)


class ChunkLease:
    """Chunks that are being handed to one client; nobody else gets any of this job until it is confirmed or released.

    They are ``chunks``, and where that is the first of many looks what ``Streams.following`` gives up to ``job.chunks``.
    """

    def __init__(self, chunks: Chunks, settle: Callable[[bool], None] | None = None) -> None:
        """``settle`` is called once with whether the answer was sent."""
        self.chunks = chunks
        self._settle = settle

    @property
    def job(self) -> Job:
        """Whose chunks they are, as it was then; its ``input`` and ``output`` may be missing."""
        return self.chunks.job

    def confirm(self) -> None:
        """The client has them."""
        self._finish(True)

    def release(self) -> None:
        """The answer could not be sent: hand them out again."""
        self._finish(False)

    def _finish(self, sent: bool) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(sent)


class Streams:
    """Leases of all jobs' chunks."""

    def __init__(self, jobs: Jobs, store: Store, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self.waiters = Waiters(loop)
        """To be woken when a job has a new chunk, and when it has ended."""
        self._jobs = jobs
        self._store = store
        self._turns = turns
        self._loop = loop
        self._leased: set[str] = set()

    async def take(self, job_id: str, timeout: float, *, one_look: bool = False) -> ChunkLease | None:
        """The chunks not handed out before, or as many of them as ``one_look`` takes; waits up to ``timeout`` seconds for a first
        one or the job's end. ``None`` when unknown."""
        deadline = self._loop.time() + timeout
        while (job := self._jobs.get(job_id, whole=False)) is not None:
            if job_id not in self._leased and (job.chunks > job.chunks_taken or job.status.terminal):
                lease = await self._lease(job, one_look)
                if lease is not None:
                    return lease
            elif not await self.waiters.until(job_id, deadline):
                return ChunkLease(Chunks(job, job.chunks, []))
        return None

    async def read(self, job_id: str, start: int, timeout: float) -> Chunks | None:
        """What one look takes of the chunks from index ``start`` on, which stay for others; waits up to ``timeout`` seconds for
        the first of them or the job's end. ``None`` when unknown."""
        deadline = self._loop.time() + timeout
        while (job := self._jobs.get(job_id)) is not None:
            if job.chunks > start:
                # What was shown cannot be unseen: should its worker be lost, the job is not simply run again.
                if job.streamed or job.status.terminal or await self._mark(job):
                    return self._look(job, start)
            elif job.status.terminal or not await self.waiters.until(job_id, deadline):
                return Chunks(job, start, [])
        return None

    def following(self, chunks: Chunks) -> Chunks:
        """What the next look takes of those that the job had when ``chunks`` were read; none when it was put back or forgotten
        since."""
        return self._look(chunks.job, chunks.end)

    def _look(self, job: Job, start: int) -> Chunks:
        limit = max(0, min(READ_CHUNKS, job.chunks - start))
        found = self._store.chunks(job.seq, start, limit, enough=READ_BYTES, retries=job.retries)
        return Chunks(job, start, [value for _, value in found])

    async def _lease(self, job: Job, one_look: bool) -> ChunkLease | None:
        """What ``job`` has for nobody else; ``None`` when it was put back meanwhile, so that these chunks are no more."""
        first = job.chunks_taken
        if job.chunks <= first:
            return ChunkLease(Chunks(job, first, []))
        self._leased.add(job.id)
        try:
            chunks = self._look(job, first)
            taken = await self._mark(job, chunks.end if one_look else job.chunks)
        except BaseException:
            self._hand_out_again(job, first)
            raise
        if not taken:
            self._free(job.id)
            return None
        return ChunkLease(chunks, lambda sent: self._free(job.id) if sent else self._hand_out_again(job, first))

    def _hand_out_again(self, job: Job, first: int) -> None:
        """Chunks from ``first`` on reached nobody. Who waits for them looks when that is on disk: earlier they seem taken."""
        self._mark(job, first).add_done_callback(lambda _: self._free(job.id))

    def _free(self, job_id: str) -> None:
        self._leased.discard(job_id)
        self.waiters.wake(job_id)

    def _mark(self, job: Job, taken: int | None = None) -> asyncio.Future[bool]:
        """Write that chunks are shown to somebody, or that the first ``taken`` were handed out; done once it is on disk: whether
        the job still has them."""
        return self._turns.ask(lambda turn: _marked(turn, job, taken))


def _marked(turn: Turn, job: Job, taken: int | None) -> bool:
    """Decide so; false when the job is gone or was put back since."""
    now = turn.get(job.id, whole=False)
    if now is None or (now.seq, now.retries) != (job.seq, job.retries):
        return False
    turn.rows.append(ShowChunks(job.seq) if taken is None else TakeChunks(job.seq, taken))
    active = turn.running(job.id)
    if active is not None:
        chunks_taken = active.job.chunks_taken if taken is None else taken
        turn.put(active.job.replace(chunks_taken=chunks_taken, streamed=True), active.job)
    return True
