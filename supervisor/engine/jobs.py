"""Every job that has not ended, as memory has it: a picture of the store, changed when a turn is on disk. In the supervisor."""

from __future__ import annotations

from typing import Any

import msgspec

from supervisor.engine.queue import Backlog
from supervisor.job import Job
from supervisor.pool.timers import Timers
from supervisor.store.store import Store


class Active(msgspec.Struct, frozen=True):
    """A job in a worker: what is known of it beyond the store."""

    job: Job
    slot: str
    progress: bytes | None = None
    streamed_bytes: int = 0

    def replace(self, **changes: Any) -> Active:
        """A copy with ``changes``."""
        return msgspec.structs.replace(self, **changes)


class Jobs:
    """The jobs in workers, those that wait, and their deadlines; the others are in the store only.

    Time-outs of starts are on the monotonic clock; a ``ttl`` outlives the process, so it is on the wall clock, and only the
    nearest of them is in memory.
    """

    def __init__(self, store: Store) -> None:
        """Take up what ``store`` says waits; what ran when it was written is for ``Lifecycle.recover``."""
        self.active: dict[str, Active] = {}
        self.backlog = Backlog(store.queued, *store.queued_counts())
        self.timeouts = Timers()
        """When each start that has a time-out is out of time."""
        self.next_seq = store.next_seq
        self.to_delete: dict[str, int] = {}
        """The numbers of jobs that ended and that nobody wants any more, by id; a later commit deletes them."""
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

    def wait(self, job: Job) -> None:
        """``job`` waits from now on."""
        self.backlog.lane(job.low_priority).add(job)
        self._heed_ttl(job)

    def run(self, job_id: str, active: Active | None, now: float) -> None:
        """A job is so in its worker, since ``now`` (monotonic seconds) if it has just started; ``None``: no longer."""
        before = self.active.get(job_id)
        if active is None:
            self.active.pop(job_id, None)
            self.timeouts.set(job_id, None)
            return
        self.active[job_id] = active
        job = active.job
        if before is None or before.job.retries != job.retries:
            self._heed_ttl(job)
            self.timeouts.set(job_id, None if job.timeout_ms is None else now + job.timeout_ms / 1000)

    def _heed_ttl(self, job: Job) -> None:
        if job.expires_ms is not None and (self._expiry_ms is None or job.expires_ms < self._expiry_ms):
            self._expiry_ms = job.expires_ms

    def some_expired(self, wall_ms: int) -> bool:
        """Whether some job is older than its ``ttl``, or was to be."""
        return self._expiry_ms is not None and wall_ms >= self._expiry_ms

    def find_expiry(self) -> None:
        """Expired jobs have ended, on disk: look up the next."""
        self._expiry_ms = self._store.next_expiry()

    def deadline(self, now: float, wall_ms: int) -> float | None:
        """When the next job is out of time, in monotonic seconds."""
        expiry = None if self._expiry_ms is None else now + max(0, self._expiry_ms - wall_ms) / 1000
        return min((at for at in (self.timeouts.next(), expiry) if at is not None), default=None)
