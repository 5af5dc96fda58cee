"""Deletes jobs that ended long ago, or the oldest to make room, in small pieces; used by the supervisor process."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.errors import StoreError
from supervisor.store.committer import Done
from supervisor.store.writes import Forget, Move

FORGET_BYTES = 2**20
"""A piece of forgetting ends once it has freed this much: the pages of a large value are read one by one to be freed."""

_END_OF_TIME = 2**62

Work = Callable[[], Sequence[Move]]
"""What is done in one transaction; it returns what moved."""


class Retention:
    """Forgets jobs, one piece at a time; while it is ``forgetting`` reads still show those. Called from the store's thread."""

    def __init__(
        self,
        cursor: sqlite3.Cursor,
        rows: Callable[..., list[tuple[Any, ...]]],
        transact: Callable[[Work, Done], None],
    ) -> None:
        """``Store.retention`` is the one to use: ``cursor`` writes, ``rows`` reads, ``transact`` does work in a transaction."""
        self._cursor = cursor
        self._rows = rows
        self._transact = transact
        self.forgetting = False
        self._failure: StoreError | None = None

    def forget(self, ended_before_ms: int, limit: int, gone: Callable[[], None] = lambda: None) -> int:
        """Delete jobs that ended before that time, oldest end first, with all they left: at most ``limit``, and fewer where they
        are large. How many they are; 0 when none is left. With durability ``full`` they are gone a moment later: until ``gone``
        is called nothing may be written that starts from a job as reads show it.

        Raises:
            StoreError: nothing was deleted; with durability ``full`` by the call before.
        """
        seqs = [seq for (seq,) in self._rows("oldest_ended", ended_before_ms, limit)]
        moves: list[Move] = []

        def work() -> Sequence[Move]:
            moves.extend(self._delete(seqs))
            return moves

        if seqs and not self.forgetting:
            self.forgetting = True
            self._transact(work, lambda error: self._forgot(error, gone))
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return len(moves) or len(seqs)  # those, when their turn has yet to come

    def forget_oldest(self, limit: int, gone: Callable[[], None] = lambda: None) -> int:
        """As ``forget``, whenever they ended: to make room.

        Raises:
            StoreError: nothing was deleted; with durability ``full`` by the call before.
        """
        return self.forget(_END_OF_TIME, limit, gone)

    def _delete(self, seqs: Sequence[int]) -> list[Move]:
        """Delete these jobs, or as many of them as free ``FORGET_BYTES``."""
        moves = []
        enough = self._pragma("freelist_count") + FORGET_BYTES // self._pragma("page_size")
        for seq in seqs:
            moves.append(Forget(seq).apply(self._cursor))
            if self._pragma("freelist_count") >= enough:
                break
        return moves

    def _forgot(self, error: StoreError | None, gone: Callable[[], None]) -> None:
        self.forgetting = False
        self._failure = error
        gone()

    def _pragma(self, name: str) -> int:
        (value,) = self._cursor.execute(f"PRAGMA {name}").fetchone()
        return int(value)
