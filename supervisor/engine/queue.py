"""The queue of jobs, in order; in the supervisor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from operator import attrgetter

from supervisor.job import Job

WINDOW = 1024
"""Queued jobs of each lane that are kept in memory; the others are in the store only, so a long queue costs no memory."""

LARGE_INPUT = 2048
"""Size in bytes from which a queued job's input is kept in the store only."""

Loader = Callable[[bool, int, int], list[Job]]
"""``(low_priority, after_seq, limit)`` → the next queued jobs of that lane from the store."""

by_seq = attrgetter("seq")


class Lane:
    """The ``count`` queued jobs of one priority, oldest first. The first ones are in memory: all up to ``_last_seq``,
    that one too."""

    def __init__(self, low_priority: bool, load: Loader, count: int) -> None:
        """Begin with ``count`` jobs in the store, which ``load`` reads."""
        self.count = count
        self._low = low_priority
        self._load = load
        self._window: dict[str, Job] = {}
        self._last_seq = 0
        self._sorted = True

    def add(self, job: Job) -> None:
        """Add a job: a requeued one at its old place, a new one behind all others."""
        all_here = self.count == len(self._window) and self.count < WINDOW
        if all_here or job.seq <= self._last_seq:
            self._sorted = self._sorted and job.seq > self._last_seq
            self._last_seq = max(self._last_seq, job.seq)
            self._window[job.id] = job if len(job.input) < LARGE_INPUT else job.replace(input=b"")
        self.count += 1

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the queued jobs, oldest first; they stay queued. Those beyond the window are loaded on the way.

        Call this only while memory and store agree. An empty input, which is no JSON, is in the store only.
        """
        if not self._sorted:
            self._window = {job.id: job for job in sorted(self._window.values(), key=by_seq)}
            self._sorted = True
        yield from self._window.values()
        while self.count > len(self._window):
            jobs = self._load(self._low, self._last_seq, WINDOW)
            if not jobs:
                return
            self._last_seq = jobs[-1].seq
            self._window.update((job.id, job) for job in jobs)
            yield from jobs

    def get(self, job_id: str) -> Job | None:
        """Return a queued job, if it is in memory."""
        return self._window.get(job_id)

    def remove(self, job: Job) -> None:
        """Remove a queued job, in memory or not."""
        self._window.pop(job.id, None)
        self.count -= 1


class Backlog:
    """All queued jobs: oldest first, those of low priority after the others."""

    def __init__(self, load: Loader, count: int = 0, low_count: int = 0) -> None:
        """Begin with the store's jobs, ``count`` and ``low_count`` by priority, which ``load`` reads."""
        self._lanes = (Lane(False, load, count), Lane(True, load, low_count))

    def __len__(self) -> int:
        return self._lanes[0].count + self._lanes[1].count

    def lane(self, low_priority: bool) -> Lane:
        """Return the lane of that priority."""
        return self._lanes[low_priority]

    def oldest(self, count: int) -> list[Job]:
        """Return the next ``count`` jobs of each lane; they stay queued."""
        return [job for lane in self._lanes for job in itertools.islice(lane, count)]

    def get(self, job_id: str) -> Job | None:
        """Return a queued job, if it is in memory."""
        return self._lanes[0].get(job_id) or self._lanes[1].get(job_id)
