"""The thread that ends transactions where each waits for the disk (``--durability full``); in the supervisor process.

The loop's thread writes into the transaction, which waits for nothing, and this one ends it. So the thread runs one statement a
batch: the two of them never compete for the interpreter over each row.
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
"""Has a function called in the thread that reads and commits, such as ``loop.call_soon_threadsafe``."""


class Committer:
    """Ends one transaction after another."""

    def __init__(self, end: Callable[[], StoreError | None], deliver: Deliver) -> None:
        """``end`` ends the transaction that is open and says why that failed, in the thread of this committer."""
        self._end = end
        self._deliver = deliver
        self._orders: SimpleQueue[Done | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="supervise-store", daemon=True)
        self._thread.start()

    def commit(self, done: Done) -> None:
        """End the transaction, then have ``done`` called by ``deliver``. Until then the connection is this thread's alone."""
        self._orders.put(done)

    def close(self) -> None:
        """Wait for the transaction that is being ended. What is not delivered yet may never be."""
        self._closing = True
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (done := self._orders.get()) is not None:
            error = self._end()
            if not self._closing:  # there may be no loop any more to deliver to
                self._deliver(partial(done, error))
