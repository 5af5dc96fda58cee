"""One turn's decisions: the rows to write, and the changes that follow the commit. In the supervisor.

Memory does not change while a turn decides. A decision sees earlier ones of the same turn through the ``Turn``; ``apply`` makes
the changes in memory. A turn whose commit fails is dropped: there is nothing to roll back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from supervisor.engine.job_logs import Drafts
from supervisor.engine.jobs import Active, Jobs
from supervisor.engine.queue import by_seq
from supervisor.job import IN_PROGRESS, IN_QUEUE, Job
from supervisor.pool import events
from supervisor.pool.slots.free import FreeSlots, Seating
from supervisor.store.writes import DeleteJob, Write


class Turn:
    """Decisions of one turn, at ``now`` (monotonic seconds).

    ``rows`` are written in one transaction. After the commit memory is changed, then ``acts`` run on the pool, then ``wakes``
    resume waiters, each in the order of the decisions.
    """

    def __init__(self, jobs: Jobs, free: FreeSlots, now: float, count: int = 0, commands: int = 0) -> None:
        """Start from ``jobs``, which are not changed, and the ``free`` slots, with ``count`` events and ``commands``."""
        self.now = now
        self.events = count
        self.commands = commands
        self.rows: list[Write] = []
        self.acts: list[Callable[[], object]] = []
        self.wakes: list[Callable[[], object]] = []
        self.jobs: dict[str, Job] = {}
        """Each job that was decided about, in its new state."""
        self.leaving: set[str] = set()
        """Ids of those that leave the queue."""
        self.returning: list[str] = []
        """Ids of those that return to the queue: requeued or retried."""
        self.waiting = len(jobs.backlog)
        """Number of jobs queued after this turn."""
        self.active: dict[str, Active | None] = {}
        """Each job in a worker that was decided about, in its new state; ``None``: it leaves the worker."""
        self.closed: set[str] = set()
        """Slots that get no job: their worker is about to be stopped."""
        self.seating = Seating(free, self.closed)
        self.logs: Drafts = {}
        self.secrets: list[str] = []
        """Ids of new jobs whose ``s3Config`` file was written; it is removed if the commit fails."""
        self.next_seq = jobs.next_seq
        self.starts_held = False
        """True while no job may start because the queue is about to be purged."""
        self._memory = jobs
        self._deleted: Mapping[str, int] = {}

    def get(self, job_id: str, *, whole: bool = True) -> Job | None:
        """Get a job as of this turn, ``None`` when unknown or deleted. Without ``whole``, input and output may be missing."""
        return self.jobs.get(job_id) or self._memory.get(job_id, whole=whole)

    def running(self, job_id: str) -> Active | None:
        """Get a job in a worker, as of this turn."""
        return self.active[job_id] if job_id in self.active else self._memory.active.get(job_id)

    def reported(self, event: events.OfJob | events.Printed) -> Active | None:
        """Get the job of ``event``, unless that came from an earlier start of it."""
        active = self.running(event.job or "")
        return active if active is not None and (active.job.retries, active.slot) == (event.start, event.slot) else None

    def put(self, job: Job, before: Job | None, slot: str | None = None) -> None:
        """Replace ``before`` (``None``: the job is new) by ``job``; with ``slot`` it starts there."""
        if before is not None and before.status is IN_QUEUE:
            self.waiting -= 1
            if job.id not in self.jobs:
                self.leaving.add(job.id)
        if job.status is IN_QUEUE:
            self.waiting += 1
            if before is not None:
                self.returning.append(job.id)
        self.jobs[job.id] = job
        if slot is not None:
            self.active[job.id] = Active(job, slot)
        elif (active := self.running(job.id)) is not None:
            self.active[job.id] = active.replace(job=job) if job.status is IN_PROGRESS else None

    def queued(self, low_priority: bool) -> Iterator[Job]:
        """Iterate over the queued jobs of a lane as of this turn, oldest first; they may be decided about meanwhile."""
        lane, jobs = self._memory.backlog.lane(low_priority), self.jobs
        staying = (job for job in lane if job.id not in jobs)
        if self.returning:
            back = {job.seq: job for job in map(jobs.__getitem__, self.returning) if _waits(job, low_priority)}
            staying = heapq.merge(staying, map(back.__getitem__, sorted(back)), key=by_seq)
        yield from staying
        first_new = self._memory.next_seq
        yield from [job for job in jobs.values() if job.seq >= first_new and _waits(job, low_priority)]

    def transaction(self) -> list[Write]:
        """Return the rows to write, with pending deletions: those wait for the next commit that is made anyway."""
        if not self.rows:
            return []
        self._deleted = dict(self._memory.to_delete)
        return [*map(DeleteJob, self._deleted.values()), *self.rows] if self._deleted else self.rows

    # --- once the rows are on disk ------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Make this turn's changes in memory."""
        memory = self._memory
        for job_id, job in self.jobs.items():
            if job_id in self.leaving:
                memory.backlog.lane(job.low_priority).remove(job)
            if job.status is IN_QUEUE:
                memory.enqueue(job)
        for job_id, active in self.active.items():
            memory.set_active(job_id, active, self.now)
        memory.next_seq = self.next_seq
        for job_id in self._deleted:
            memory.to_delete.pop(job_id, None)


def _waits(job: Job, low_priority: bool) -> bool:
    return job.status is IN_QUEUE and job.low_priority is low_priority
