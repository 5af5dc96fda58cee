"""Deadlines in a heap, so that a turn does not check all of them. In the supervisor."""

from __future__ import annotations

import heapq


class Timers:
    """At most one deadline (monotonic seconds) for each name."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """May hold outdated entries, which are skipped: ``_at`` is authoritative."""

    def set(self, name: str, at: float | None) -> None:
        """Set the deadline of ``name``; ``None`` clears it."""
        if at is None:
            self._at.pop(name, None)
        elif self._at.get(name) != at:
            self._at[name] = at
            heapq.heappush(self._heap, (at, name))
            if len(self._heap) > 2 * len(self._at) + 100:
                self._heap = sorted((at, name) for name, at in self._at.items())

    def next(self) -> float | None:
        """Return the next deadline."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[str]:
        """Return the names due at ``now``, earliest first; each stays due until it is set again."""
        due = []
        while (at := self.next()) is not None and at <= now:
            due.append(heapq.heappop(self._heap))
        for entry in due:
            heapq.heappush(self._heap, entry)
        return list(dict.fromkeys(name for _, name in due))
