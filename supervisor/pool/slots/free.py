"""Index of slots with free capacity: choosing one costs the same for any number of slots. In the supervisor."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Container, Iterator
from typing import NamedTuple

from supervisor.pool.slots.slot import Slot


class Seat(NamedTuple):
    """A slot that runs ``load`` jobs and has capacity for ``room`` more. Seats sort in the order of assignment."""

    load: int
    number: int
    name: str
    room: int


class FreeSlots:
    """The slots with free capacity, fewest running jobs first, then by number. ``room`` is their total free capacity."""

    def __init__(self) -> None:
        self.room = 0
        self._order: list[Seat] = []
        self._seats: dict[str, Seat] = {}

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._order)

    def update(self, slot: Slot, room: int) -> None:
        """Update the entry of ``slot``, which has capacity for ``room`` more jobs."""
        before = self._seats.get(slot.name)
        after = Seat(len(slot.running), slot.index, slot.name, room) if room else None
        if before == after:
            return
        if before is not None:
            del self._order[bisect.bisect_left(self._order, before)]
            del self._seats[slot.name]
            self.room -= before.room
        if after is not None:
            bisect.insort(self._order, after)
            self._seats[slot.name] = after
            self.room += room


class Seating:
    """Assigns the jobs of one turn to slots, least loaded first: jobs spread over the GPUs before they share one."""

    def __init__(self, free: FreeSlots, closed: Container[str]) -> None:
        """Choose from ``free``, which must not change meanwhile, except the slots in ``closed``, which may grow."""
        self._closed = closed
        self._untouched = iter(free)
        self._first = next(self._untouched, None)
        self._used: list[Seat] = []
        """A heap of the slots that were assigned jobs and have capacity for more."""

    def take(self) -> str | None:
        """Return the slot for one more job; ``None`` when none has free capacity."""
        while self._used and self._used[0].name in self._closed:
            heapq.heappop(self._used)
        while self._first is not None and self._first.name in self._closed:
            self._first = next(self._untouched, None)
        if self._used and (self._first is None or self._used[0] < self._first):
            seat = heapq.heappop(self._used)
        elif self._first is not None:
            seat, self._first = self._first, next(self._untouched, None)
        else:
            return None
        if seat.room > 1:
            heapq.heappush(self._used, Seat(seat.load + 1, seat.number, seat.name, seat.room - 1))
        return seat.name
