"""The job store: every job in one SQLite file, written in batches and read between them; used by the supervisor process.

What ``commit`` reported as done survives ``kill -9``; with durability ``full`` also a power cut. One connection, exclusive
to this process for as long as it is open. ``Store.open(MEMORY)`` gives one without a file, for tests.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from supervisor.errors import StoreError, TransitionError
from supervisor.job import Job, JobStatus
from supervisor.store.failures import explain
from supervisor.store.opening import Durability, connect
from supervisor.store.sql import Queries, read_queries
from supervisor.store.writes import Move, Write

_Row = tuple[Any, ...]


class Counts(msgspec.Struct, frozen=True):
    """How many jobs the store holds in each state, and how often those went back to the queue."""

    jobs: Mapping[JobStatus, int]
    retried: int


class Store:
    """The jobs. Reads show what is committed; they and ``commit`` are called from one thread."""

    def __init__(self, db: sqlite3.Connection, path: Path, queries: Queries) -> None:
        """Use ``open`` instead."""
        self._db = db
        self._path = path
        self._sql = queries
        self._cursor = db.cursor()
        self._jobs = dict.fromkeys(JobStatus, 0)
        self._retried = 0

    @classmethod
    def open(cls, path: Path, *, durability: Durability = "normal") -> Store:
        """Open the store at ``path`` for this process alone, or make it (readable by its owner alone).

        Raises:
            LockedError: another supervisor has it open.
            StoreVersionError: a newer version of this program wrote it; it was not touched.
            StoreError: it cannot be used; the message names the file and says what to do.
        """
        db = connect(path, durability)
        try:
            store = cls(db, path, read_queries())
            store._count()
        except BaseException:
            db.close()
            raise
        return store

    def __enter__(self) -> Store:
        """Close it when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def path(self) -> Path:
        """Where the store lies."""
        return self._path

    def close(self) -> None:
        """Move the log into the file and let go of the store. Closing it again does nothing."""
        self._db.close()  # as the only connection it checkpoints first; a log that cannot be moved stays and is read next time

    # --- writing ---------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Write], done: Callable[[StoreError | None], None]) -> None:
        """Apply ``batch`` in order, all of it or nothing, then call ``done``: with ``None`` once it is durable, or why not.

        A ``TransitionError`` says that a job was not in the state that a write starts from; any other ``StoreError`` that the
        disk is full or failing. The store can be used after both. Now ``done`` is called before this returns; later, for
        durability ``full``, it may be called afterwards and from another thread.
        """
        done(self._apply(batch))

    def _apply(self, batch: Sequence[Write]) -> StoreError | None:
        if not batch:
            return None
        execute, sql = self._cursor.execute, self._sql
        try:
            execute("BEGIN IMMEDIATE")
            moves = [write.apply(execute, sql) for write in batch]
            execute("COMMIT")
        except TransitionError as error:
            return error
        except sqlite3.Error as error:
            return explain(error, self._path)
        finally:
            self._roll_back()
        self._follow(moves)
        return None

    def _roll_back(self) -> None:
        """End the transaction if one is open: after a commit, a full disk or an I/O error there may be none."""
        # What led here is reported by the caller; should this fail as well, the next BEGIN says so.
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.rollback()

    def _follow(self, moves: Sequence[Move]) -> None:
        """Keep the counts in step with what was committed."""
        jobs = self._jobs
        for before, after in moves:
            if before is not None:
                jobs[before] -= 1
                self._retried += after is JobStatus.IN_QUEUE
            if after is not None:
                jobs[after] += 1

    def forget(self, ended_before_ms: int, limit: int) -> int:
        """Delete at most ``limit`` jobs that ended before that time, oldest end first, with their chunks; how many they were.

        Raises:
            StoreError: nothing was deleted.
        """
        gone = self._rows(self._sql.forget, ended_before_ms, limit)
        for status, retries in gone:
            self._jobs[JobStatus(status)] -= 1
            self._retried -= retries
        return len(gone)

    # --- reading ---------------------------------------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """A number above that of every job that is or was in the store."""
        ((seq,),) = self._rows(self._sql.next_seq)
        return int(seq)

    def get(self, job_id: str, *, with_input: bool = True) -> Job | None:
        """The job with this id. Without ``with_input`` its ``input`` is empty, which spares reading a large one."""
        return self._job(self._sql.get if with_input else self._sql.get_without_input, job_id)

    def by_seq(self, seq: int) -> Job | None:
        """The job with this number."""
        return self._job(self._sql.by_seq, seq)

    def queued(self, low_priority: bool, after_seq: int, limit: int) -> list[Job]:
        """At most ``limit`` queued jobs of this priority behind number ``after_seq``, oldest first; large inputs are left out."""
        return [_job(row) for row in self._rows(self._sql.queued, low_priority, after_seq, limit)]

    def running(self) -> list[Job]:
        """Every job in progress, without its ``input``."""
        return [_job(row) for row in self._rows(self._sql.running)]

    def with_s3_config(self) -> list[str]:
        """The ids of the jobs that have not ended and whose ``s3Config`` lies in a file."""
        return [job_id for (job_id,) in self._rows(self._sql.with_s3_config)]

    def newest_ended(self, limit: int) -> list[Job]:
        """At most ``limit`` jobs that ended, the newest end first, without ``input`` and ``output``."""
        return [_job(row) for row in self._rows(self._sql.newest_ended, limit)]

    def chunks(self, seq: int, start: int = 0) -> list[tuple[int, bytes]]:
        """The chunks of the job's newest attempt from index ``start`` on: index and JSON, in order."""
        return self._rows(self._sql.chunks, seq, start)

    def counts(self) -> Counts:
        """How many jobs there are now; kept in memory, so it costs nothing."""
        return Counts(dict(self._jobs), self._retried)

    def queued_counts(self) -> tuple[int, int]:
        """How many jobs wait: ordinary ones, and those of low priority."""
        counts: dict[int, int] = dict(self._rows(self._sql.queued_counts))
        return counts.get(0, 0), counts.get(1, 0)

    def _count(self) -> None:
        """Count the jobs by reading the file, once."""
        for status, number in self._rows(self._sql.counts):
            self._jobs[JobStatus(status)] = number
        ((self._retried,),) = self._rows(self._sql.retried)

    def _job(self, query: str, key: str | int) -> Job | None:
        rows = self._rows(query, key)
        return _job(rows[0]) if rows else None

    def _rows(self, query: str, *parameters: object) -> list[_Row]:
        try:
            return self._db.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise explain(error, self._path) from error


def _job(row: _Row) -> Job:
    """The job in a row of ``{facts}``, input and output."""
    (
        seq,
        job_id,
        status,
        created_ms,
        extras,
        has_s3_config,
        low_priority,
        attempts,
        retries,
        started_ms,
        ended_ms,
        worker_id,
        error,
        chunks,
        chunks_taken,
        job_input,
        output,
    ) = row
    return Job(
        seq,
        job_id,
        JobStatus(status),
        job_input,
        created_ms,
        extras,
        has_s3_config != 0,
        low_priority != 0,
        attempts,
        retries,
        started_ms,
        ended_ms,
        worker_id,
        output,
        error,
        chunks,
        chunks_taken,
    )
