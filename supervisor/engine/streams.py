"""Stream chunks, each handed out once; in the supervisor. A delivery is committed before the chunk is sent."""

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
"""Chunks per read, and the bytes after which a read stops, so that a long stream is never in memory at once."""


class Chunks(msgspec.Struct, frozen=True):
    """Chunks of ``job`` (JSON) from index ``first`` on."""

    job: Job
    first: int
    values: list[bytes]

    @property
    def end(self) -> int:
        """Index of the next chunk to read."""
        return self.first + len(self.values)


class ChunkLease:
    """Exclusive right to send a job's ``chunks`` to one client, until it is confirmed or released.

    Where ``chunks`` is only the first read, the lease covers what ``Streams.following`` returns, up to ``job.chunks``.
    """

    def __init__(self, chunks: Chunks, settle: Callable[[bool], None] | None = None) -> None:
        """Call ``settle`` once, with True if the answer was sent."""
        self.chunks = chunks
        self._settle = settle

    @property
    def job(self) -> Job:
        """The chunks' job, as it was when they were read; its ``input`` and ``output`` may be missing."""
        return self.chunks.job

    def confirm(self) -> None:
        """Record that the client received the chunks."""
        self._finish(True)

    def release(self) -> None:
        """Make the chunks available again: the answer could not be sent."""
        self._finish(False)

    def _finish(self, sent: bool) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(sent)


class Streams:
    """Leases and reads of all jobs' chunks."""

    def __init__(self, jobs: Jobs, store: Store, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self.waiters = Waiters(loop)
        """Clients that wait for a new chunk, or the job's end."""
        self._jobs = jobs
        self._store = store
        self._turns = turns
        self._loop = loop
        self._leased: set[str] = set()

    async def take(self, job_id: str, timeout: float, *, one_look: bool = False) -> ChunkLease | None:
        """Lease the chunks not handed out before; with ``one_look``, only those of one read.

        Wait up to ``timeout`` seconds for the first one or the job's end. Return ``None`` for an unknown job.
        """
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
        """Read chunks from index ``start`` on, without handing them out.

        Wait up to ``timeout`` seconds for the first of them or the job's end. Return ``None`` for an unknown job.
        """
        deadline = self._loop.time() + timeout
        while (job := self._jobs.get(job_id)) is not None:
            if job.chunks > start:
                # A client that has seen chunks cannot unsee them: if the worker is lost, the job is not simply run again.
                if job.streamed or job.status.terminal or await self._mark(job):
                    return self._read_chunks(job, start)
            elif job.status.terminal or not await self.waiters.until(job_id, deadline):
                return Chunks(job, start, [])
        return None

    def following(self, chunks: Chunks) -> Chunks:
        """Read on behind ``chunks``, up to those that the job had then; none if it was requeued or deleted since."""
        return self._read_chunks(chunks.job, chunks.end)

    def _read_chunks(self, job: Job, start: int) -> Chunks:
        limit = max(0, min(READ_CHUNKS, job.chunks - start))
        found = self._store.chunks(job.seq, start, limit, enough=READ_BYTES, retries=job.retries)
        return Chunks(job, start, [value for _, value in found])

    async def _lease(self, job: Job, one_look: bool) -> ChunkLease | None:
        """Lease the unread chunks of ``job``; return ``None`` if it was requeued meanwhile, which drops its chunks."""
        first = job.chunks_taken
        if job.chunks <= first:
            return ChunkLease(Chunks(job, first, []))
        self._leased.add(job.id)
        try:
            chunks = self._read_chunks(job, first)
            taken = await self._mark(job, chunks.end if one_look else job.chunks)
        except BaseException:
            self._return_chunks(job, first)
            raise
        if not taken:
            self._free(job.id)
            return None
        return ChunkLease(chunks, lambda sent: self._free(job.id) if sent else self._return_chunks(job, first))

    def _return_chunks(self, job: Job, first: int) -> None:
        """Make chunks from ``first`` on available again. Waiters are woken after the commit: before it they seem taken."""
        self._mark(job, first).add_done_callback(lambda _: self._free(job.id))

    def _free(self, job_id: str) -> None:
        self._leased.discard(job_id)
        self.waiters.wake(job_id)

    def _mark(self, job: Job, taken: int | None = None) -> asyncio.Future[bool]:
        """Write that chunks were read, or that the first ``taken`` were handed out.

        The future gives, once that is on disk, True if the job still has them.
        """
        return self._turns.request(lambda turn: _marked(turn, job, taken))


def _marked(turn: Turn, job: Job, taken: int | None) -> bool:
    """Add the mark to ``turn``; return False if the job was deleted or requeued since."""
    now = turn.get(job.id, whole=False)
    if now is None or (now.seq, now.retries) != (job.seq, job.retries):
        return False
    turn.rows.append(ShowChunks(job.seq) if taken is None else TakeChunks(job.seq, taken))
    active = turn.running(job.id)
    if active is not None:
        chunks_taken = active.job.chunks_taken if taken is None else taken
        turn.put(active.job.replace(chunks_taken=chunks_taken, streamed=True), active.job)
    return True
