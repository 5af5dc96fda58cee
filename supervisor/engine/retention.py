"""Forgets jobs whose retention is over or for which there is no room, in small pieces between turns; in the supervisor."""

from __future__ import annotations

from collections.abc import Callable

from supervisor.config.settings import Settings
from supervisor.errors import StoreError
from supervisor.notice import Task, TaskFailed
from supervisor.store.store import Store

PIECE = 200
"""Jobs forgotten between two turns, so that no turn is delayed."""

EVERY_S = 1.0
"""How often they are looked for: results of 100 MiB can come every second, and looking costs 50 µs."""

SOON_S = 0.01
"""When there is more to forget."""


class Retention:
    """Keeps the store as small as ``--retention`` and ``--max-store`` ask. ``next`` is when it wants to be called again, in
    monotonic seconds."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        wall_ms: Callable[[], int],
        notify: Callable[[TaskFailed], None],
        gone: Callable[[], None],
    ) -> None:
        """Tidy ``store``; ``notify`` of what cannot be done, and call ``gone`` when jobs were forgotten, which may take the disk
        a moment."""
        self.next = 0.0
        self._settings = settings
        self._store = store
        self._wall_ms = wall_ms
        self._notify = notify
        self._gone = gone

    def tidy(self, now: float) -> None:
        """Forget some jobs, if it is time to."""
        if now < self.next:
            return
        before = self._wall_ms() - int(self._settings.retention * 1000)
        try:
            forgotten = self._store.retention.forget(before, PIECE, self._gone)
            if forgotten < PIECE and self._settings.max_store and self._store.used > self._settings.max_store:
                forgotten = self._store.retention.forget_oldest(PIECE, self._gone)
        except StoreError as error:
            self._notify(TaskFailed(Task.REMOVE_OLD_JOBS, str(error)))
            forgotten = 0
        self.next = now + (SOON_S if forgotten else EVERY_S)
