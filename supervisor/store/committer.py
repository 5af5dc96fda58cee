"""The thread that commits transactions where a commit waits for the disk (``--durability full``); in the supervisor process.

The loop's thread writes the rows, which never waits, and this one commits. It runs one statement per batch, so the two threads
do not compete for the interpreter over each row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from supervisor.errors import StoreError

Done = Callable[["StoreError | None"], None]
Deliver = Callable[[Callable[[], None]], Any]
"""Schedules a call in the thread that uses the store, such as ``loop.call_soon_threadsafe``."""


class Committer:
    """Commits one transaction after another."""

    def __init__(self, end: Callable[[], StoreError | None], deliver: Deliver) -> None:
        """Start the thread. In it, ``end`` ends the open transaction and returns why that failed, if it did."""
        self._end = end
        self._deliver = deliver
        self._orders: SimpleQueue[Done | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="supervise-store", daemon=True)
        self._thread.start()

    def commit(self, done: Done) -> None:
        """End the transaction, then call ``done`` by ``deliver``. Until then only this thread may use the connection."""
        self._orders.put(done)

    def close(self) -> None:
        """Wait for the transaction in progress and stop the thread. Its ``done`` may never be called."""
        self._closing = True
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (done := self._orders.get()) is not None:
            error = self._end()
            if not self._closing:  # the loop may be closed already
                self._deliver(partial(done, error))
