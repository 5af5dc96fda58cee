"""Deletes jobs that ended long ago, or the oldest to free space, in small pieces; in the supervisor process."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.errors import StoreError
from supervisor.store.committer import Done
from supervisor.store.writes import DeleteJob, Move

PIECE_BYTES = 2**20
"""Bytes after which a piece of deletions ends: the pages of a large value are read one by one to be freed."""

_END_OF_TIME = 2**62

Work = Callable[[], Sequence[Move]]
"""The writes of one transaction; returns the jobs' moves."""


class JobPruner:
    """Deletes jobs, one piece at a time; while it is ``deleting``, reads still show them. Call it in the store's thread."""

    def __init__(
        self,
        cursor: sqlite3.Cursor,
        rows: Callable[..., list[tuple[Any, ...]]],
        transact: Callable[[Work, Done], None],
    ) -> None:
        """Write by ``cursor``, read by ``rows``; ``transact`` does work in a transaction. Use ``Store.retention`` instead."""
        self._cursor = cursor
        self._rows = rows
        self._transact = transact
        self.deleting = False
        self._failure: StoreError | None = None

    def delete(self, ended_before_ms: int, limit: int, on_deleted: Callable[[], None] = lambda: None) -> int:
        """Delete jobs that ended before that time, oldest end first, with all their data; at most ``limit``, fewer large ones.

        Return their number; 0 when none is left. With durability ``full`` the deletion completes later: until ``on_deleted`` is
        called, do not write anything that depends on a job as reads show it.

        Raises:
            StoreError: nothing was deleted; with durability ``full`` by the previous call.
        """
        seqs = [seq for (seq,) in self._rows("oldest_ended", ended_before_ms, limit)]
        moves: list[Move] = []

        def work() -> Sequence[Move]:
            moves.extend(self._delete(seqs))
            return moves

        if seqs and not self.deleting:
            self.deleting = True
            self._transact(work, lambda error: self._deleted(error, on_deleted))
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return len(moves) or len(seqs)  # the latter, when their transaction is yet to begin

    def delete_oldest(self, limit: int, on_deleted: Callable[[], None] = lambda: None) -> int:
        """Delete the oldest ended jobs, as ``delete`` does, to free space."""
        return self.delete(_END_OF_TIME, limit, on_deleted)

    def _delete(self, seqs: Sequence[int]) -> list[Move]:
        """Delete these jobs, or as many of them as free ``PIECE_BYTES``."""
        moves = []
        enough = self._pragma("freelist_count") + PIECE_BYTES // self._pragma("page_size")
        for seq in seqs:
            moves.append(DeleteJob(seq).apply(self._cursor))
            if self._pragma("freelist_count") >= enough:
                break
        return moves

    def _deleted(self, error: StoreError | None, on_deleted: Callable[[], None]) -> None:
        self.deleting = False
        self._failure = error
        on_deleted()

    def _pragma(self, name: str) -> int:
        (value,) = self._cursor.execute(f"PRAGMA {name}").fetchone()
        return int(value)
