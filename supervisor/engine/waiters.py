"""Futures for a job's end, its next chunk or its next lines; in the supervisor. The engine wakes them after its commit."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from supervisor.job import Job

T = TypeVar("T")


class Waiters:
    """Futures by job id; a waiter that times out or is cancelled is removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[asyncio.Future[Job | None]]] = {}

    async def wait(self, job_id: str, timeout: float) -> Job | None:
        """Wait for ``wake`` and return its ``job``; ``None`` after ``timeout`` seconds."""
        future: asyncio.Future[Job | None] = self._loop.create_future()
        others = self._waiting.setdefault(job_id, set())
        others.add(future)
        handle = self._loop.call_later(timeout, settle, future, None)
        try:
            return await future
        finally:
            handle.cancel()
            others.discard(future)
            if not others and self._waiting.get(job_id) is others:
                del self._waiting[job_id]

    async def until(self, job_id: str, deadline: float) -> bool:
        """Wait for ``wake`` or ``deadline``, by the loop's clock; return False, at once, if that has passed."""
        left = deadline - self._loop.time()
        if left > 0:
            await self.wait(job_id, left)
        return left > 0

    def wake(self, job_id: str, job: Job | None = None) -> None:
        """Resume all waiters of this job."""
        for future in self._waiting.pop(job_id, ()):
            settle(future, job)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._waiting


def settle(future: asyncio.Future[T], value: T, error: Exception | None = None) -> None:
    """Set the result of ``future``, or the ``error``, unless it is done or cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
