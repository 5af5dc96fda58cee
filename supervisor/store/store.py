"""The job store: every job in one SQLite file, written in batches and read between them; in the supervisor process.

Committed data survives ``kill -9``; with durability ``full`` also a power cut. This process has the file exclusively while it is
open. ``Store.open(MEMORY)`` gives a store without a file, for tests.
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
from supervisor.store.retention import JobPruner, Work
from supervisor.store.sql import QUERIES
from supervisor.store.writes import Move, Write

_Row = tuple[Any, ...]


class Counts(msgspec.Struct, frozen=True):
    """Number of jobs in each state, and how often these jobs were requeued or retried."""

    jobs: Mapping[JobStatus, int]
    retried: int


class Store:
    """The jobs at ``path``, with the webhooks in ``outbox``; ``retention`` deletes old jobs. Reads show durable data only. Call
    all methods in one thread."""

    def __init__(self, connections: Connections, path: Path, deliver: Deliver | None) -> None:
        """Use ``open`` instead."""
        self._db, self._reader = connections
        self.path = path
        self._cursor = self._db.cursor()
        self.outbox = Outbox(self._rows)
        self.retention = JobPruner(self._cursor, self._rows, self._transact)
        self._jobs = dict.fromkeys(JobStatus, 0)
        self._retried = 0
        self._in_flight = False
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._closed = False
        # Two connections: a commit takes as long as the disk does.
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
        """Open the store at ``path`` exclusively, or create it (readable by its owner alone).

        Durability ``full`` needs ``deliver``, which schedules calls in this thread from another: a loop's
        ``call_soon_threadsafe``. ``note`` gets messages for the user: an older store is migrated, which may take a while; other
        users may read it.

        Raises:
            LockedError: another supervisor has it open.
            StoreVersionError: a newer version of this program wrote it; it was not changed.
            StoreError: it cannot be used; the message names the file and the remedy.
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
        """Checkpoint the log and close the store. Closing it again does nothing.

        A commit in progress is waited for; later ones are dropped. ``done`` is called for neither.
        """
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        if self._committer is not None:
            self._committer.close()
        self._reader.close()
        self._db.close()  # the last one checkpoints the log; if that fails, the next start reads the log

    # --- writing ---------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Write], done: Done) -> None:
        """Apply ``batch`` in order, all of it or nothing, then call ``done``: with ``None`` once it is durable, or the error.

        A ``TransitionError`` means that a job was not in the state that a write requires; any other ``StoreError`` that the disk
        is full or failing. The store can be used after both. ``done`` is called before this returns; with durability ``full`` it
        is called by ``deliver``, unless the transaction was rolled back at once, and reads show nothing of the batch before.
        """
        if not batch:
            done(None)
            return
        self._transact(lambda: [write.apply(self._cursor) for write in batch], done)

    def _transact(self, work: Work, done: Done) -> None:
        """Do ``work`` in a transaction of its own, after those already waiting."""
        if self._in_flight or self._waiting:
            self._waiting.append((work, done))
        else:
            self._start(work, done)

    def _start(self, work: Work, done: Done) -> None:
        moves = self._begin(work)
        if isinstance(moves, StoreError):
            done(moves)
        elif self._committer is None:
            self._finish(moves, done, self._end())
        else:
            self._in_flight = True
            self._committer.commit(lambda error: self._committed(moves, done, error))

    def _begin(self, work: Work) -> Sequence[Move] | StoreError:
        """Begin a transaction and do ``work`` in it; return its moves, or the error for which it was rolled back."""
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
        """Commit; return the error if it was rolled back instead. Runs in the committer's thread, if there is one."""
        try:
            self._cursor.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            return explain(error, self.path)
        return None

    def _roll_back(self) -> None:
        """End the transaction if one is open: after a full disk or an I/O error there may be none."""
        # The caller reports the cause; if this fails as well, the next BEGIN reports that.
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.rollback()

    def _committed(self, moves: Sequence[Move], done: Done, error: StoreError | None) -> None:
        """Finish a transaction of the committer, then begin the next."""
        if self._closed:
            return
        self._in_flight = False
        try:
            self._finish(moves, done, error)
        finally:
            while self._waiting and not self._in_flight:
                self._start(*self._waiting.popleft())

    def _finish(self, moves: Sequence[Move], done: Done, error: StoreError | None) -> None:
        """Update the counts after a commit, then call ``done``."""
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
        """Make the handler ``owner`` the store's owner; durable when this returns. Call it before any commit.

        Raises:
            StoreError: the disk is full or failing; the owner is not changed.
        """
        with self._explained():
            self._db.execute(QUERIES["set_owner"], (os.fsencode(owner),))

    # --- reading ---------------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of the file in use; freed ones are used again before it grows."""
        ((bytes_used,),) = self._rows("used")
        return int(bytes_used)

    @property
    def owner(self) -> str | None:
        """Name of the handler that owns the store, if any."""
        rows = self._rows("owner")
        return os.fsdecode(rows[0][0]) if rows else None

    @property
    def next_seq(self) -> int:
        """Number above that of every job that is or was in the store."""
        ((seq,),) = self._rows("next_seq")
        return int(seq)

    def get(self, job_id: str) -> Job | None:
        """Return the job with this id, if any."""
        return self._job("get", job_id)

    def facts(self, job_id: str) -> Job | None:
        """Return the job with this id, if any, without ``input`` and ``output``, which may be large."""
        return self._job("facts", job_id)

    def queued(self, low_priority: bool, after_seq: int, limit: int) -> list[Job]:
        """List at most ``limit`` queued jobs of this priority behind number ``after_seq``, oldest first, without large inputs."""
        return [_job(row) for row in self._rows("queued", low_priority, after_seq, limit)]

    def running(self) -> list[Job]:
        """List every job in progress, without its ``input``."""
        return [_job(row) for row in self._rows("running")]

    def with_s3_config(self) -> list[str]:
        """List the ids of unfinished jobs with an ``s3Config``."""
        return [job_id for (job_id,) in self._rows("with_s3_config")]

    def newest_ended(self, limit: int) -> list[Job]:
        """List at most ``limit`` ended jobs, the newest end first, without ``input`` and ``output``."""
        return [_job(row) for row in self._rows("newest_ended", limit)]

    def page(self, below: int, floor: int, status: JobStatus | None, limit: int) -> list[Job]:
        """List at most ``limit`` jobs (in ``status``) with ``floor`` <= number < ``below``, the newest first, without ``input``
        and ``output``."""
        word = status.value if status is not None else None
        return [_job(row) for row in self._rows("page", below, floor, word, word, limit)]

    def expired(self, now_ms: int, limit: int) -> list[str]:
        """List the ids of at most ``limit`` unfinished jobs that expired by ``now_ms``."""
        return [job_id for (job_id,) in self._rows("expired", now_ms, limit)]

    def next_expiry(self) -> int | None:
        """Return the earliest expiry of unfinished jobs (milliseconds since 1970), if any."""
        ((at,),) = self._rows("next_expiry")
        return at if at is None else int(at)

    def chunks(
        self, seq: int, start: int = 0, limit: int = -1, *, enough: int | None = None, retries: int | None = None
    ) -> list[tuple[int, bytes]]:
        """Read the chunks of the job's newest attempt from index ``start`` on: index and JSON, in order.

        Return at most ``limit``, and stop once they have ``enough`` bytes. With ``retries``, return none if the job was requeued
        or retried since.
        """
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
        """Read at most ``limit`` pieces of the job's log, from the one with byte ``start`` on: offset and text of each."""
        return self._rows("log", seq, seq, start, limit)

    def log_end(self, seq: int) -> int:
        """Return the length of the job's stored log in bytes."""
        rows = self._rows("log_end", seq)
        return int(rows[0][0]) if rows else 0

    def counts(self) -> Counts:
        """Return the job counts, from memory."""
        return Counts(dict(self._jobs), self._retried)

    def queued_counts(self) -> tuple[int, int]:
        """Count the queued jobs: ordinary ones, and those of low priority."""
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
        """Raise ``StoreError`` for SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.path) from error


def _job(row: _Row) -> Job:
    """Make a job from a row of number, id, status, input, output and ``{facts}``."""
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
