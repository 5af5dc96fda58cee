"""Who waits for a job's end or for its next chunk; in the supervisor. The engine wakes them after its commit."""

from __future__ import annotations

import asyncio

from supervisor.job import Job


class Waiters:
    """Futures by job id; nothing is left behind when a waiter times out or is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make futures of ``loop``."""
        self._loop = loop
        self._waiting: dict[str, list[asyncio.Future[Job | None]]] = {}

    async def wait(self, job_id: str, timeout: float) -> Job | None:
        """What ``wake`` gives for this job; ``None`` after ``timeout`` seconds."""
        future: asyncio.Future[Job | None] = self._loop.create_future()
        self._waiting.setdefault(job_id, []).append(future)
        handle = self._loop.call_later(timeout, _expire, future)
        try:
            return await future
        finally:
            handle.cancel()
            others = self._waiting.get(job_id)
            if others is not None and future in others:
                others.remove(future)
                if not others:
                    del self._waiting[job_id]

    def wake(self, job_id: str, job: Job | None = None) -> None:
        """Free everyone who waits for this job."""
        waiting = self._waiting.pop(job_id, None)
        if waiting is not None:
            for future in waiting:
                if not future.done():
                    future.set_result(job)

    def __contains__(self, job_id: str) -> bool:
        """Whether anyone waits for this job."""
        return job_id in self._waiting


def _expire(future: asyncio.Future[Job | None]) -> None:
    if not future.done():
        future.set_result(None)
