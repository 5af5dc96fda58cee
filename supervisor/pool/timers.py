"""When something that has a deadline is due: a heap, so that no turn looks at all of them. In the supervisor."""

from __future__ import annotations

import heapq


class Timers:
    """One deadline (monotonic seconds) a name at most."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """May have more than ``_at``: what was changed or cleared since is passed over."""

    def set(self, name: str, at: float | None) -> None:
        """Have ``name`` due at ``at``, and at no other time; ``None``: at none."""
        if at is None:
            self._at.pop(name, None)
        elif self._at.get(name) != at:
            self._at[name] = at
            heapq.heappush(self._heap, (at, name))
            if len(self._heap) > 2 * len(self._at) + 100:
                self._heap = sorted((at, name) for name, at in self._at.items())

    def next(self) -> float | None:
        """Return when the next one is due."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[str]:
        """Return the names that are due at ``now``, the earliest first; each stays due until it is set anew."""
        due = []
        while (at := self.next()) is not None and at <= now:
            due.append(heapq.heappop(self._heap))
        for entry in due:
            heapq.heappush(self._heap, entry)
        return list(dict.fromkeys(name for _, name in due))
