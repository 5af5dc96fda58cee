"""The jobs that have not ended, in memory: a view of the store, updated after each commit. In the supervisor."""

from __future__ import annotations

from typing import Any

import msgspec

from supervisor.engine.queue import Backlog
from supervisor.job import Job
from supervisor.pool.timers import Timers
from supervisor.store.store import Store


class Active(msgspec.Struct, frozen=True):
    """A job in a worker, with its state that is not in the store."""

    job: Job
    slot: str
    progress: bytes | None = None
    streamed_bytes: int = 0

    def replace(self, **changes: Any) -> Active:
        """Return a copy with ``changes``."""
        return msgspec.structs.replace(self, **changes)


class Jobs:
    """Running and queued jobs and their deadlines; all others are in the store only.

    Execution time-outs use the monotonic clock. A ``ttl`` outlives the process, so it uses the wall clock, and only the nearest
    expiry is in memory.
    """

    def __init__(self, store: Store) -> None:
        """Load the queue from ``store``; jobs that ran when it was closed are left to ``Lifecycle.recover``."""
        self.active: dict[str, Active] = {}
        self.backlog = Backlog(store.queued, *store.queued_counts())
        self.timeouts = Timers()
        """Deadlines of the starts that have an execution time-out."""
        self.next_seq = store.next_seq
        self.to_delete: dict[str, int] = {}
        """Ended jobs to be deleted by a later commit: number by id."""
        self._store = store
        self._expiry_ms = store.next_expiry()

    def get(self, job_id: str, *, whole: bool = True) -> Job | None:
        """Get a job as it is on disk, ``None`` when unknown or deleted. Without ``whole``, input and output may be missing."""
        if job_id in self.to_delete:
            return None
        active = self.active.get(job_id)
        if active is not None:
            return active.job
        return self.backlog.get(job_id) or (self._store.get(job_id) if whole else self._store.facts(job_id))

    def enqueue(self, job: Job) -> None:
        """Add ``job`` to the queue."""
        self.backlog.lane(job.low_priority).add(job)
        self._track_ttl(job)

    def set_active(self, job_id: str, active: Active | None, now: float) -> None:
        """Set the state of a job in a worker; ``None`` removes it. A new start begins at ``now`` (monotonic seconds)."""
        before = self.active.get(job_id)
        if active is None:
            self.active.pop(job_id, None)
            self.timeouts.set(job_id, None)
            return
        self.active[job_id] = active
        job = active.job
        if before is None or before.job.retries != job.retries:
            self._track_ttl(job)
            self.timeouts.set(job_id, None if job.timeout_ms is None else now + job.timeout_ms / 1000)

    def _track_ttl(self, job: Job) -> None:
        if job.expires_ms is not None and (self._expiry_ms is None or job.expires_ms < self._expiry_ms):
            self._expiry_ms = job.expires_ms

    def some_expired(self, wall_ms: int) -> bool:
        """Return whether the nearest expiry has passed; its job may have ended before."""
        return self._expiry_ms is not None and wall_ms >= self._expiry_ms

    def find_expiry(self) -> None:
        """Load the next expiry from the store, after expired jobs were ended there."""
        self._expiry_ms = self._store.next_expiry()

    def deadline(self, now: float, wall_ms: int) -> float | None:
        """Return when the next job times out, in monotonic seconds."""
        expiry = None if self._expiry_ms is None else now + max(0, self._expiry_ms - wall_ms) / 1000
        return min((at for at in (self.timeouts.next(), expiry) if at is not None), default=None)
