"""The job store: every job in one SQLite file, written in batches and read between them; used by the supervisor process.

What ``commit`` reported as done survives ``kill -9``; with durability ``full`` also a power cut. The file is this process's alone
for as long as it is open. ``Store.open(MEMORY)`` gives one without a file, for tests.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from supervisor.cause import read_job_cause
from supervisor.errors import StoreError, TransitionError
from supervisor.job import Job, JobStatus
from supervisor.store.committer import Committer, Deliver, Done
from supervisor.store.failures import explain
from supervisor.store.opening import Connections, Durability, connect
from supervisor.store.outbox import Outbox
from supervisor.store.retention import Retention, Work
from supervisor.store.sql import QUERIES
from supervisor.store.writes import Move, Write

_Row = tuple[Any, ...]


class Counts(msgspec.Struct, frozen=True):
    """How many jobs the store holds in each state, and how often those went back to the queue."""

    jobs: Mapping[JobStatus, int]
    retried: int


class Store:
    """The jobs at ``path``, and in ``outbox`` the webhooks; ``retention`` deletes what is old. Reads show what is durable; all is
    called from one thread."""

    def __init__(self, connections: Connections, path: Path, deliver: Deliver | None) -> None:
        """Use ``open`` instead."""
        self._db, self._reader = connections
        self.path = path
        self._cursor = self._db.cursor()
        self.outbox = Outbox(self._rows)
        self.retention = Retention(self._cursor, self._rows, self._transact)
        self._jobs = dict.fromkeys(JobStatus, 0)
        self._retried = 0
        self._in_flight = False
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._closed = False
        # Two connections: to end a transaction takes as long as the disk does.
        self._committer = Committer(self._end, deliver) if deliver and self._db is not self._reader else None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        durability: Durability = "normal",
        deliver: Deliver | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Store:
        """Open the store at ``path`` for this process alone, or make it (readable by its owner alone).

        Durability ``full`` needs ``deliver``, by which a thread has functions called in this one: a loop's
        ``call_soon_threadsafe``. ``note`` is told in words what a person should know: a store of an older version is brought to
        this one, which may take a while; other users may read it.

        Raises:
            LockedError: another supervisor has it open.
            StoreVersionError: a newer version of this program wrote it; it was not touched.
            StoreError: it cannot be used; the message names the file and says what to do.
        """
        if durability == "full" and deliver is None:
            raise ValueError("durability full needs deliver")
        store = cls(connect(path, durability, note), path, deliver)
        try:
            store._count()
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Move the log into the file and let go of the store. Closing it again does nothing.

        A commit that is under way is waited for; what was not begun is not, and ``done`` of neither is called any more.
        """
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        if self._committer is not None:
            self._committer.close()
        self._reader.close()
        self._db.close()  # the last to close moves the log into the file; one that cannot be moved is read next time

    # --- writing ---------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Write], done: Done) -> None:
        """Apply ``batch`` in order, all of it or nothing, then call ``done``: with ``None`` once it is durable, or why not.

        A ``TransitionError`` says that a job was not in the state that a write starts from; any other ``StoreError`` that the
        disk is full or failing. The store can be used after both. ``done`` is called before this returns; with durability
        ``full`` it is called by ``deliver``, except to say at once why nothing was written, and reads show nothing before.
        """
        if not batch:
            done(None)
            return
        self._transact(lambda: [write.apply(self._cursor) for write in batch], done)

    def _transact(self, work: Work, done: Done) -> None:
        """Do ``work`` in a transaction of its own, behind those that were given before."""
        if self._in_flight or self._waiting:
            self._waiting.append((work, done))
        else:
            self._start(work, done)

    def _start(self, work: Work, done: Done) -> None:
        moves = self._begin(work)
        if isinstance(moves, StoreError):
            done(moves)
        elif self._committer is None:
            self._ended(moves, done, self._end())
        else:
            self._in_flight = True
            self._committer.commit(lambda error: self._landed(moves, done, error))

    def _begin(self, work: Work) -> Sequence[Move] | StoreError:
        """Begin a transaction and do ``work`` in it; what it moved, or why it was rolled back."""
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
            return work()
        except TransitionError as error:
            refusal: StoreError = error
        except sqlite3.Error as error:
            refusal = explain(error, self.path)
        except BaseException:
            self._roll_back()
            raise
        self._roll_back()
        return refusal

    def _end(self) -> StoreError | None:
        """End the transaction; why it was rolled back instead. In the committer's thread, where there is one."""
        try:
            self._cursor.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            return explain(error, self.path)
        return None

    def _roll_back(self) -> None:
        """End the transaction if one is open: after a full disk or an I/O error there may be none."""
        # What led here is reported by the caller; should this fail as well, the next BEGIN says so.
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.rollback()

    def _landed(self, moves: Sequence[Move], done: Done, error: StoreError | None) -> None:
        """The committer has ended a transaction: begin the next, and say so."""
        if self._closed:
            return
        self._in_flight = False
        try:
            self._ended(moves, done, error)
        finally:
            while self._waiting and not self._in_flight:
                self._start(*self._waiting.popleft())

    def _ended(self, moves: Sequence[Move], done: Done, error: StoreError | None) -> None:
        """A transaction has ended: keep the counts in step with what is on disk."""
        if error is None:
            jobs = self._jobs
            for before, after, retried in moves:
                if before is not None:
                    jobs[before] -= 1
                if after is not None:
                    jobs[after] += 1
                self._retried += retried
        done(error)

    def set_owner(self, owner: str) -> None:
        """Write that the store belongs to the handler ``owner``; durable when this returns. To be called before any commit.

        Raises:
            StoreError: the disk is full or failing; the store belongs to whom it did.
        """
        with self._explained():
            self._db.execute(QUERIES["set_owner"], (os.fsencode(owner),))

    # --- reading ---------------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of the file that hold something; freed ones are used again before it grows."""
        ((bytes_used,),) = self._rows("used")
        return int(bytes_used)

    @property
    def owner(self) -> str | None:
        """The name of the handler that the store belongs to; ``None``: nobody's."""
        rows = self._rows("owner")
        return os.fsdecode(rows[0][0]) if rows else None

    @property
    def next_seq(self) -> int:
        """A number above that of every job that is or was in the store."""
        ((seq,),) = self._rows("next_seq")
        return int(seq)

    def get(self, job_id: str) -> Job | None:
        """The job with this id."""
        return self._job("get", job_id)

    def facts(self, job_id: str) -> Job | None:
        """The job with this id without ``input`` and ``output``, which may be large."""
        return self._job("facts", job_id)

    def queued(self, low_priority: bool, after_seq: int, limit: int) -> list[Job]:
        """At most ``limit`` queued jobs of this priority behind number ``after_seq``, oldest first; large inputs are left out."""
        return [_job(row) for row in self._rows("queued", low_priority, after_seq, limit)]

    def running(self) -> list[Job]:
        """Every job in progress, without its ``input``."""
        return [_job(row) for row in self._rows("running")]

    def with_s3_config(self) -> list[str]:
        """The ids of the jobs that have not ended and whose ``s3Config`` lies in a file."""
        return [job_id for (job_id,) in self._rows("with_s3_config")]

    def newest_ended(self, limit: int) -> list[Job]:
        """At most ``limit`` jobs that ended, the newest end first, without ``input`` and ``output``."""
        return [_job(row) for row in self._rows("newest_ended", limit)]

    def page(self, below: int, floor: int, status: JobStatus | None, limit: int) -> list[Job]:
        """At most ``limit`` jobs (in ``status``) with a number below ``below`` and not below ``floor``, the newest first,
        without ``input`` and ``output``."""
        word = status.value if status is not None else None
        return [_job(row) for row in self._rows("page", below, floor, word, word, limit)]

    def expired(self, now_ms: int, limit: int) -> list[str]:
        """The ids of at most ``limit`` jobs that have not ended and should have by ``now_ms``."""
        return [job_id for (job_id,) in self._rows("expired", now_ms, limit)]

    def next_expiry(self) -> int | None:
        """When the first of the jobs that have not ended times out (milliseconds since 1970)."""
        ((at,),) = self._rows("next_expiry")
        return at if at is None else int(at)

    def chunks(
        self, seq: int, start: int = 0, limit: int = -1, *, enough: int | None = None, retries: int | None = None
    ) -> list[tuple[int, bytes]]:
        """The chunks of the job's newest attempt from index ``start`` on: index and JSON, in order. At most ``limit``, and none
        behind that with which they have ``enough`` bytes; with ``retries`` none of a job that went back to the queue since."""
        found: list[_Row] = []
        size = 0
        with self._explained(), contextlib.closing(self._reader.cursor()) as cursor:
            for row in cursor.execute(QUERIES["chunks"], (seq, start, retries, retries, limit)):
                found.append(row)
                size += len(row[1])
                if enough is not None and size >= enough:
                    break
        return found

    def log(self, seq: int, start: int, limit: int = -1) -> list[tuple[int, bytes]]:
        """What the job printed, in at most ``limit`` pieces from the one with byte ``start`` on: offset and text of each."""
        return self._rows("log", seq, seq, start, limit)

    def log_end(self, seq: int) -> int:
        """How many bytes of what the job printed are in the store."""
        rows = self._rows("log_end", seq)
        return int(rows[0][0]) if rows else 0

    def counts(self) -> Counts:
        """How many jobs there are now; kept in memory, so it costs nothing."""
        return Counts(dict(self._jobs), self._retried)

    def queued_counts(self) -> tuple[int, int]:
        """How many jobs wait: ordinary ones, and those of low priority."""
        counts: dict[int, int] = dict(self._rows("queued_counts"))
        return counts.get(0, 0), counts.get(1, 0)

    def _count(self) -> None:
        """Count the jobs by reading the file, once."""
        for status, number in self._rows("counts"):
            self._jobs[JobStatus(status)] = number
        ((self._retried,),) = self._rows("retried")

    def _job(self, query: str, key: str) -> Job | None:
        rows = self._rows(query, key)
        return _job(rows[0]) if rows else None

    def _rows(self, query: str, *parameters: object) -> list[_Row]:
        with self._explained():
            return self._reader.execute(QUERIES[query], parameters).fetchall()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises ``StoreError`` for SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.path) from error


def _job(row: _Row) -> Job:
    """The job in a row of number, id, status, input, output and ``{facts}``."""
    (
        seq,
        job_id,
        status,
        job_input,
        output,
        created_ms,
        extras,
        has_s3_config,
        low_priority,
        *others,
        streamed,
        cause,
    ) = row
    cause = None if cause is None else read_job_cause(cause)
    optional = (extras, has_s3_config != 0, low_priority != 0, *others, streamed != 0, cause, output)
    return Job(seq, job_id, JobStatus(status), job_input, created_ms, *optional)
