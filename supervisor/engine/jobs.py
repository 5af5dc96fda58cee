"""Every job that has not ended, as memory has it: a picture of the store, changed when a turn is on disk. In the supervisor."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.engine.deadlines import Deadlines
from supervisor.engine.queue import Backlog
from supervisor.job import Job
from supervisor.store.store import Store


class Active:
    """A job in a worker: what is known of it beyond the store."""

    __slots__ = ("job", "progress", "slot", "streamed_bytes")

    def __init__(self, job: Job, slot: str) -> None:
        """``job`` runs in ``slot``."""
        self.job = job
        self.slot = slot
        self.progress: bytes | None = None
        self.streamed_bytes = 0


class Jobs:
    """The jobs in workers, those that wait, and their deadlines; the others are in the store only."""

    def __init__(self, store: Store) -> None:
        """Take up what ``store`` says waits; what ran when it was written is for ``recovery``."""
        self.active: dict[str, Active] = {}
        self.backlog = Backlog(store.queued)
        self.deadlines = Deadlines(store)
        self.next_seq = store.next_seq
        self._store = store
        self._to_delete: dict[str, int] = {}
        for low_priority, count in enumerate(store.queued_counts()):
            self.backlog.lane(bool(low_priority)).expect(count)

    def get(self, job_id: str, *, whole: bool = True) -> Job | None:
        """Get a job as it is on disk, ``None`` when unknown or deleted. Without ``whole``, input and output may be missing."""
        if job_id in self._to_delete:
            return None
        active = self.active.get(job_id)
        if active is not None:
            return active.job
        return self.backlog.get(job_id) or (self._store.get(job_id) if whole else self._store.facts(job_id))

    def delete(self, job: Job) -> None:
        """Let go of a job that has ended; its row goes with the next commit that is made anyway."""
        self._to_delete[job.id] = job.seq

    @property
    def to_delete(self) -> dict[str, int]:
        """The numbers of jobs to be deleted, by id."""
        return dict(self._to_delete)

    def deleted(self, ids: Iterable[str]) -> None:
        """Those jobs are deleted, on disk."""
        for job_id in ids:
            self._to_delete.pop(job_id, None)

    def wait(self, job: Job) -> None:
        """``job`` waits: behind all others if it is new, else at its old place."""
        lane = self.backlog.lane(job.low_priority)
        if job.seq >= self.next_seq:
            lane.push(job)
        else:
            lane.put_back(job)
