"""The jobs that wait, in their order; in the supervisor."""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterator

from supervisor.job import Job

WINDOW = 1024
"""How many queued jobs of each lane are kept in memory; the others wait in the store only, so a long queue costs no memory."""

LARGE_INPUT = 2048
"""Bytes from which the input of a queued job waits in the store only; the job has none in memory then."""

Loader = Callable[[bool, int, int], list[Job]]
"""``(low_priority, after_seq, limit)`` → the next queued jobs of that lane from the store."""


class Lane:
    """The queued jobs of one priority, oldest first, of which the first ones are in memory."""

    def __init__(self, low_priority: bool, load: Loader) -> None:
        """Jobs beyond the window are fetched by ``load``."""
        self.count = 0
        self._low = low_priority
        self._load = load
        self._window: dict[str, Job] = {}
        self._returned: list[Job] = []
        self._last_seq = 0

    def push(self, job: Job) -> None:
        """Add a new job behind all others."""
        if self.count == len(self._window) + len(self._returned) and len(self._window) < WINDOW:
            self._window[job.id] = _without_large_input(job)
            self._last_seq = job.seq
        self.count += 1

    def put_back(self, job: Job) -> None:
        """Add a job that was taken before, at its old place."""
        bisect.insort(self._returned, _without_large_input(job), key=_seq)
        self.count += 1

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the queued jobs, oldest first; they stay. Those beyond the window are loaded as they are reached.

        Only while memory and store agree. A job's input is empty, which no JSON is, where it waits in the store.
        """
        return heapq.merge(self._stored(), self._returned, key=_seq) if self._returned else self._stored()

    def _stored(self) -> Iterator[Job]:
        yield from self._window.values()
        while self.count > len(self._window) + len(self._returned):
            jobs = self._load(self._low, self._last_seq, WINDOW)
            if not jobs:
                return
            self._last_seq = jobs[-1].seq
            back = {job.id for job in self._returned}  # the store lists those, too
            more = [job for job in jobs if job.id not in back]
            self._window.update((job.id, job) for job in more)
            yield from more

    def get(self, job_id: str) -> Job | None:
        """A queued job, if it is in memory."""
        return self._window.get(job_id) or next((job for job in self._returned if job.id == job_id), None)

    def remove(self, job: Job) -> None:
        """Drop a queued job, in memory or not."""
        if self._window.pop(job.id, None) is None:
            at = bisect.bisect_left(self._returned, job.seq, key=_seq)
            if at < len(self._returned) and self._returned[at].id == job.id:
                del self._returned[at]
        self.count -= 1

    def expect(self, count: int) -> None:
        """The store holds ``count`` queued jobs of this lane before any is pushed."""
        self.count = count


class Backlog:
    """All queued jobs: oldest first, those of low priority after the others."""

    def __init__(self, load: Loader) -> None:
        """``load`` fetches queued jobs from the store."""
        self._lanes = (Lane(False, load), Lane(True, load))

    def __len__(self) -> int:
        """How many jobs wait."""
        return self._lanes[0].count + self._lanes[1].count

    def lane(self, low_priority: bool) -> Lane:
        """The lane of that priority."""
        return self._lanes[low_priority]

    def oldest(self, count: int) -> list[Job]:
        """The next ``count`` jobs of each lane, which stay."""
        return [job for lane in self._lanes for job in itertools.islice(lane, count)]

    def get(self, job_id: str) -> Job | None:
        """A queued job, if it is in memory."""
        return self._lanes[0].get(job_id) or self._lanes[1].get(job_id)


def _seq(job: Job) -> int:
    return job.seq


def _without_large_input(job: Job) -> Job:
    return job if len(job.input) < LARGE_INPUT else job.replace(input=b"")
