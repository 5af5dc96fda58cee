"""Deletes jobs whose retention is over or for which there is no space, in small pieces between turns; in the supervisor."""

from __future__ import annotations

from supervisor.engine.shared import Shared
from supervisor.errors import StoreError
from supervisor.notice import Task, TaskFailed

PIECE = 200
"""Jobs deleted between two turns; small, so that no turn is delayed."""

EVERY_S = 1.0
"""Interval of checks: results of 100 MiB can come every second, and a check costs 50 µs."""

SOON_S = 0.01
"""Interval while there is more to delete."""


class Retention:
    """Applies ``--retention`` and ``--max-store``. ``next`` is when ``tidy`` is due again, in monotonic seconds."""

    def __init__(self, shared: Shared) -> None:
        self.next = 0.0
        self._shared = shared

    def tidy(self, now: float) -> None:
        """Delete a piece of the expired jobs, if it is time to."""
        if now < self.next:
            return
        settings, store, wake = self._shared.settings, self._shared.store, self._shared.turns.wake
        before = self._shared.clock.wall_ms() - int(settings.retention * 1000)
        try:
            # The deletion may wait for the disk, with no turn meanwhile; `wake` schedules the next.
            deleted = store.retention.delete(before, PIECE, wake)
            if deleted < PIECE and settings.max_store and store.used > settings.max_store:
                deleted = store.retention.delete_oldest(PIECE, wake)
        except StoreError as error:
            self._shared.notify(TaskFailed(Task.REMOVE_OLD_JOBS, str(error)))
            deleted = 0
        self.next = now + (SOON_S if deleted else EVERY_S)
