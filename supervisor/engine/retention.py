"""Forgets jobs whose retention is over or for which there is no room, in small pieces between turns; in the supervisor."""

from __future__ import annotations

from supervisor.engine.shared import Shared
from supervisor.errors import StoreError
from supervisor.notice import Task, TaskFailed

PIECE = 200
"""Jobs forgotten between two turns, so that no turn is delayed."""

EVERY_S = 1.0
"""How often they are looked for: results of 100 MiB can come every second, and looking costs 50 µs."""

SOON_S = 0.01
"""When there is more to forget."""


class Retention:
    """Keeps the store as small as ``--retention`` and ``--max-store`` ask. ``next`` is when it wants to be called again, in
    monotonic seconds."""

    def __init__(self, shared: Shared) -> None:
        self.next = 0.0
        self._shared = shared

    def tidy(self, now: float) -> None:
        """Forget some jobs, if it is time to."""
        if now < self.next:
            return
        settings, store, wake = self._shared.settings, self._shared.store, self._shared.turns.wake
        before = self._shared.clock.wall_ms() - int(settings.retention * 1000)
        try:
            # It may take the disk a moment, with no turn meanwhile; then there is one.
            forgotten = store.retention.forget(before, PIECE, wake)
            if forgotten < PIECE and settings.max_store and store.used > settings.max_store:
                forgotten = store.retention.forget_oldest(PIECE, wake)
        except StoreError as error:
            self._shared.tell(TaskFailed(Task.REMOVE_OLD_JOBS, str(error)))
            forgotten = 0
        self.next = now + (SOON_S if forgotten else EVERY_S)
