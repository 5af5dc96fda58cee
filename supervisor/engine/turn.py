"""One turn's decisions: the rows they write, and what they change once those are on disk. In the supervisor.

Memory stands still while a turn decides. A decision that must see an earlier one of the same turn sees it through the ``Turn``;
``apply`` brings memory to where the turn has it. A turn that the disk refuses is dropped: there is nothing to take back.
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
from supervisor.store.writes import Forget, Write


class Turn:
    """What one turn decides, at ``now`` (monotonic seconds).

    ``rows`` are written in one transaction. Once they are on disk, memory is changed, then ``acts`` are carried out on the
    pool, then who waits is told by ``wakes``, each in the order of their decisions.
    """

    def __init__(self, jobs: Jobs, free: FreeSlots, now: float, count: int = 0, commands: int = 0) -> None:
        """Decide about ``jobs``, which stay as they are, and the ``free`` slots, by so many events and ``commands``."""
        self.now = now
        self.events = count
        self.commands = commands
        self.rows: list[Write] = []
        self.acts: list[Callable[[], object]] = []
        self.wakes: list[Callable[[], object]] = []
        self.jobs: dict[str, Job] = {}
        """The newest state of each job that something was decided about."""
        self.leaving: set[str] = set()
        """Those of them that wait in the queue as memory has it, and will not."""
        self.returning: list[str] = []
        """Those that come back to the queue: they were taken from their worker, or are run again."""
        self.waiting = len(jobs.backlog)
        """How many jobs will wait."""
        self.active: dict[str, Active | None] = {}
        """The newest state of each job in a worker that something was decided about; ``None``: it leaves, or left."""
        self.closed: set[str] = set()
        """Slots that are given no job: something else is about to happen to their worker."""
        self.seating = Seating(free, self.closed)
        self.logs: Drafts = {}
        self.secrets: list[str] = []
        """Ids of new jobs whose ``s3Config`` was put into its file, which goes if they do not come."""
        self.next_seq = jobs.next_seq
        self.starts_held = False
        """No job starts: the queue is about to be purged."""
        self._memory = jobs
        self._deleted: Mapping[str, int] = {}

    def get(self, job_id: str, *, whole: bool = True) -> Job | None:
        """Get a job as it will be, ``None`` when unknown or deleted. Without ``whole``, input and output may be missing."""
        return self.jobs.get(job_id) or self._memory.get(job_id, whole=whole)

    def running(self, job_id: str) -> Active | None:
        """Get a job that will be in a worker, as it will be."""
        return self.active[job_id] if job_id in self.active else self._memory.active.get(job_id)

    def reported(self, event: events.OfJob | events.Printed) -> Active | None:
        """Get the job that ``event`` is about, if it is still in the start that this came from."""
        active = self.running(event.job or "")
        return active if active is not None and (active.job.retries, active.slot) == (event.start, event.slot) else None

    def put(self, job: Job, before: Job | None, slot: str | None = None) -> None:
        """Decide that ``job`` will be so, which is ``before`` as this turn has it; ``None``: it is new. It starts in ``slot``."""
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
        """Iterate over the jobs of a lane that will wait, oldest first, while they are decided about."""
        lane, jobs = self._memory.backlog.lane(low_priority), self.jobs
        staying = (job for job in lane if job.id not in jobs)
        if self.returning:
            back = {job.seq: job for job in map(jobs.__getitem__, self.returning) if _waits(job, low_priority)}
            staying = heapq.merge(staying, map(back.__getitem__, sorted(back)), key=by_seq)
        yield from staying
        first_new = self._memory.next_seq
        yield from [job for job in jobs.values() if job.seq >= first_new and _waits(job, low_priority)]

    def transaction(self) -> list[Write]:
        """Get all that is to be written: jobs that nobody wants any more are deleted with the next commit that is made anyway."""
        if not self.rows:
            return []
        self._deleted = dict(self._memory.to_delete)
        return [*map(Forget, self._deleted.values()), *self.rows] if self._deleted else self.rows

    # --- once the rows are on disk ------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Bring memory to where this turn has it."""
        memory = self._memory
        for job_id, job in self.jobs.items():
            if job_id in self.leaving:
                memory.backlog.lane(job.low_priority).remove(job)
            if job.status is IN_QUEUE:
                memory.wait(job)
        for job_id, active in self.active.items():
            memory.run(job_id, active, self.now)
        memory.next_seq = self.next_seq
        for job_id in self._deleted:
            memory.to_delete.pop(job_id, None)


def _waits(job: Job, low_priority: bool) -> bool:
    return job.status is IN_QUEUE and job.low_priority is low_priority
