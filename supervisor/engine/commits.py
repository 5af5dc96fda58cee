"""Puts each turn's transaction on disk for the engine, and tries again while the disk refuses; in the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from supervisor.errors import StoreError, TransitionError
from supervisor.store.store import Store
from supervisor.store.writes import Probe, Write

RETRY_S = 0.5
"""How often a commit that the disk refused is tried again."""


class Commits:
    """One transaction at a time. ``refusal`` is why the present one is not on disk yet, while the disk refuses it."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[], None],
        refused: Callable[[StoreError], None],
        stalled: Callable[[StoreError | None], None],
    ) -> None:
        """Call ``done`` after each commit, ``refused`` when the disk did not take one, and ``stalled`` when that begins (why) and
        ends. ``refused`` may take out of the batch what need not be written."""
        self.refusal: StoreError | None = None
        self.pending = False
        self._store = store
        self._loop = loop
        self._done = done
        self._refused = refused
        self._stalled = stalled
        self._retry: asyncio.TimerHandle | None = None

    def write(self, batch: list[Write]) -> None:
        """Commit ``batch``; until that is done, ``pending``, there may be no other."""
        if self._retry is not None:  # it would end what this begins
            self._retry.cancel()
        self.pending = True
        self._store.commit(batch, lambda error: self._committed(batch, error))

    def close(self) -> None:
        """Try no more."""
        if self._retry is not None:
            self._retry.cancel()

    def _committed(self, batch: list[Write], error: StoreError | None) -> None:
        """What the store says.

        Raises:
            TransitionError: the batch is wrong itself; no retry mends a fault of this program.
        """
        if isinstance(error, TransitionError):
            raise error
        before, self.refusal = self.refusal, error
        if (error is None) is not (before is None):
            self._stalled(error)
        if error is not None:
            self._refused(error)
            self._retry = self._loop.call_later(RETRY_S, self.write, batch or [Probe()])
            if batch:
                return  # what has happened has happened: nothing goes on before it is on disk
        self.pending = False
        self._done()
