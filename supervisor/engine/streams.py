"""Stream chunks, each handed out once; in the supervisor. That a chunk leaves is on disk before it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from supervisor.engine.waiters import Waiters
from supervisor.job import Job

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


class Source(Protocol):
    """Where chunks come from: the engine."""

    def job(self, job_id: str) -> Job | None:
        """The job as it is on disk."""

    def facts(self, job_id: str) -> Job | None:
        """As ``job``, but its ``input`` and ``output`` may be missing."""

    def chunks(self, job: Job, start: int, limit: int, enough: int) -> list[bytes]:
        """At most ``limit`` of its chunks (JSON) from index ``start`` on, and none behind that with which they have ``enough``
        bytes; none when it was put back or forgotten since ``job`` was seen."""

    def set_taken(self, job: Job, taken: int) -> asyncio.Future[bool]:
        """Write how many chunks were handed out; done once it is on disk: whether the job still has them."""

    def set_shown(self, job: Job) -> asyncio.Future[bool]:
        """Write that chunks are shown to somebody; done once it is on disk: whether the job still has them."""


class Streams:
    """Leases of all jobs' chunks."""

    def __init__(self, source: Source, loop: asyncio.AbstractEventLoop) -> None:
        """Hand out what ``source`` has."""
        self.waiters = Waiters(loop)
        self._source = source
        self._loop = loop
        self._leased: set[str] = set()

    async def take(self, job_id: str, timeout: float, *, one_look: bool = False) -> ChunkLease | None:
        """The chunks not handed out before, or as many of them as ``one_look`` takes; waits up to ``timeout`` seconds for a first
        one or the job's end. ``None`` when unknown."""
        deadline = self._loop.time() + timeout
        while True:
            job = self._source.facts(job_id)
            if job is None:
                return None
            if job_id not in self._leased and (job.chunks > job.chunks_taken or job.status.terminal):
                lease = await self._lease(job, one_look)
                if lease is not None:
                    return lease
                continue
            left = deadline - self._loop.time()
            if left <= 0:
                return ChunkLease(Chunks(job, job.chunks, []))
            await self.waiters.wait(job_id, left)

    async def read(self, job_id: str, start: int, timeout: float) -> Chunks | None:
        """What one look takes of the chunks from index ``start`` on, which stay for others; waits up to ``timeout`` seconds for
        the first of them or the job's end. ``None`` when unknown."""
        deadline = self._loop.time() + timeout
        while True:
            job = self._source.job(job_id)
            if job is None:
                return None
            if job.chunks > start:
                # What was shown cannot be unseen: should its worker be lost, the job is not simply run again.
                if job.streamed or job.status.terminal or await self._source.set_shown(job):
                    return self._look(job, start)
                continue
            left = deadline - self._loop.time()
            if job.status.terminal or left <= 0:
                return Chunks(job, start, [])
            await self.waiters.wait(job_id, left)

    def following(self, chunks: Chunks) -> Chunks:
        """What the next look takes of those that the job had when ``chunks`` were read; none when it was put back or forgotten
        since."""
        return self._look(chunks.job, chunks.end)

    def _look(self, job: Job, start: int) -> Chunks:
        limit = max(0, min(READ_CHUNKS, job.chunks - start))
        return Chunks(job, start, self._source.chunks(job, start, limit, READ_BYTES))

    async def _lease(self, job: Job, one_look: bool) -> ChunkLease | None:
        """What ``job`` has for nobody else; ``None`` when it was put back meanwhile, so that these chunks are no more."""
        first = job.chunks_taken
        if job.chunks <= first:
            return ChunkLease(Chunks(job, first, []))
        self._leased.add(job.id)
        try:
            chunks = self._look(job, first)
            taken = await self._source.set_taken(job, chunks.end if one_look else job.chunks)
        except BaseException:
            self._hand_out_again(job, first)
            raise
        if not taken:
            self._free(job.id)
            return None
        return ChunkLease(chunks, lambda sent: self._free(job.id) if sent else self._hand_out_again(job, first))

    def _hand_out_again(self, job: Job, first: int) -> None:
        """Chunks from ``first`` on reached nobody. Who waits for them looks when that is on disk: earlier they seem taken."""
        self._source.set_taken(job, first).add_done_callback(lambda _: self._free(job.id))

    def _free(self, job_id: str) -> None:
        self._leased.discard(job_id)
        self.waiters.wake(job_id)
