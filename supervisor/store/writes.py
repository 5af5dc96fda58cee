"""What can be written to the store: one frozen record for each change of a job, applied in the supervisor process.

Each knows the one state of the job that it starts from and says so in its SQL; a job in another state is a
``TransitionError``. ``seq`` names the job, times are milliseconds since 1970.
"""

from __future__ import annotations

import sqlite3
from typing import Protocol, Union

import msgspec

from supervisor.errors import TransitionError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.outbox import receiver_of
from supervisor.store.sql import Queries

LARGE_INPUT = 2048
"""Bytes from which an input lies outside its job's row, which is written anew at each step of the job. Measured for a
whole life: 8 KB inside the row cost a third more, 50 KB twice as much; below about a page the second table does not pay."""

Move = tuple[Union[JobStatus, None], Union[JobStatus, None], int]
"""The state that a job left (``None``: it is new), the one it came to (``None``: it is gone; both: it stayed), and how
many times more jobs went back to the queue by that."""

_STAYED: Move = (None, None, 0)


class Execute(Protocol):
    """``sqlite3.Cursor.execute``, inside the transaction of the batch."""

    def __call__(self, sql: str, parameters: tuple[object, ...], /) -> sqlite3.Cursor:
        """Run one statement."""


class Insert(msgspec.Struct, frozen=True):
    """A new job: ``IN_QUEUE``, or with ``started_ms`` and ``worker_id`` ``IN_PROGRESS`` in its first attempt at once.

    ``seq`` and ``request.id`` must be new. Of ``request.s3_config`` only whether there is one is written.
    """

    seq: int
    request: JobRequest
    created_ms: int
    started_ms: int | None = None
    worker_id: str | None = None
    timeout_ms: int | None = None
    expires_ms: int | None = None

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it.

        Raises:
            sqlite3.IntegrityError: a job with this ``seq`` or id is there already.
        """
        request = self.request
        small = len(request.input) < LARGE_INPUT
        row = (
            self.seq,
            request.id,
            request.low_priority,
            request.s3_config is not None,
            self.created_ms,
            self.timeout_ms,
            self.expires_ms,
            request.extras,
            request.input if small else None,
        )
        if not small:
            execute(sql.insert_input, (self.seq, request.input))
        if self.started_ms is None:
            execute(sql.insert_queued, row)
            return None, JobStatus.IN_QUEUE, 0
        execute(sql.insert_started, (*row, self.started_ms, self.worker_id))
        return None, JobStatus.IN_PROGRESS, 0


class Start(msgspec.Struct, frozen=True):
    """``IN_QUEUE`` → ``IN_PROGRESS``, one attempt more. What an older attempt left went when the job was queued again."""

    seq: int
    started_ms: int
    worker_id: str

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError``."""
        if not execute(sql.start, (self.started_ms, self.worker_id, self.seq)).rowcount:
            raise TransitionError(f"job number {self.seq} cannot start: it is not IN_QUEUE")
        return JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS, 0


class End(msgspec.Struct, frozen=True):
    """``IN_PROGRESS`` or ``IN_QUEUE`` → the terminal state of ``outcome``. Chunks stay."""

    seq: int
    outcome: Outcome
    ended_ms: int

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError`` (``sqlite3.IntegrityError`` where the outcome itself is illegal)."""
        outcome = self.outcome
        cause = None if outcome.cause is None else msgspec.json.encode(outcome.cause).decode()
        row = (outcome.status.value, outcome.output, outcome.error, cause, self.ended_ms, self.seq)
        if execute(sql.end_running, row).rowcount:
            return JobStatus.IN_PROGRESS, outcome.status, 0
        if execute(sql.end_queued, row).rowcount:
            return JobStatus.IN_QUEUE, outcome.status, 0
        raise TransitionError(f"job number {self.seq} cannot end: it is neither IN_PROGRESS nor IN_QUEUE")


class Requeue(msgspec.Struct, frozen=True):
    """``IN_PROGRESS`` → ``IN_QUEUE`` at its old place, chunks dropped; without ``charged`` the attempt does not count."""

    seq: int
    charged: bool

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError``."""
        if not execute(sql.requeue, (not self.charged, self.seq)).rowcount:
            raise TransitionError(f"job number {self.seq} cannot be put back: it is not IN_PROGRESS")
        return JobStatus.IN_PROGRESS, JobStatus.IN_QUEUE, 1


class Retry(msgspec.Struct, frozen=True):
    """``FAILED`` or ``TIMED_OUT`` → ``IN_QUEUE`` as if new: output, error, chunks, log and attempts are gone."""

    seq: int
    created_ms: int
    expires_ms: int | None = None

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError``."""
        for before in (JobStatus.FAILED, JobStatus.TIMED_OUT):
            if execute(sql.retry, (self.created_ms, self.expires_ms, self.seq, before.value)).rowcount:
                execute(sql.clear_log, (self.seq,))
                return before, JobStatus.IN_QUEUE, 1
        raise TransitionError(f"job number {self.seq} cannot be retried: it is neither FAILED nor TIMED_OUT")


class AddChunk(msgspec.Struct, frozen=True):
    """The next chunk (JSON) of a running job. ``index`` counts from 0 in each attempt, without a gap."""

    seq: int
    attempt: int
    index: int
    value: bytes

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError``: the job is not in this attempt, or this is not its next chunk."""
        if not execute(sql.add_chunk, (self.index, self.value, self.seq, self.attempt, self.index)).rowcount:
            raise TransitionError(
                f"chunk {self.index} does not follow: job number {self.seq} is not in attempt {self.attempt}, "
                "or this is not its next chunk"
            )
        return _STAYED


class TakeChunks(msgspec.Struct, frozen=True):
    """The first ``taken`` chunks of the job's newest attempt are handed out, in any state of the job."""

    seq: int
    taken: int

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it, or raise ``TransitionError``: the job is gone or has fewer chunks."""
        if not execute(sql.take_chunks, (self.taken, self.seq, self.taken)).rowcount:
            raise TransitionError(f"job number {self.seq} has no {self.taken} chunks to take")
        return _STAYED


class ShowChunks(msgspec.Struct, frozen=True):
    """Somebody is shown chunks of the job's newest attempt, which stay for others."""

    seq: int

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it; a job that is gone is no error."""
        execute(sql.show_chunks, (self.seq,))
        return _STAYED


class AddLog(msgspec.Struct, frozen=True):
    """What a job printed, behind the ``at`` bytes before it."""

    seq: int
    at: int
    text: bytes

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it."""
        execute(sql.add_log, (self.seq, self.at, self.text))
        return _STAYED


class AddWebhook(msgspec.Struct, frozen=True):
    """A webhook to be delivered: ``id`` is its own, ``body`` what is posted to ``url``."""

    id: str
    job: str
    url: str
    due_ms: int
    body: bytes

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it."""
        receiver = receiver_of(self.url)
        execute(sql.add_webhook, (self.id, self.job, self.url, receiver, self.due_ms, len(self.body)))
        execute(sql.add_webhook_body, (self.id, self.body))
        return _STAYED


class PutOffWebhook(msgspec.Struct, frozen=True):
    """A webhook was tried in vain and is tried again at ``due_ms``."""

    id: str
    due_ms: int

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it."""
        execute(sql.put_off_webhook, (self.due_ms, self.id))
        return _STAYED


class DropWebhook(msgspec.Struct, frozen=True):
    """A webhook was acknowledged or given up."""

    id: str

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it."""
        execute(sql.drop_webhook, (self.id,))
        execute(sql.drop_webhook_body, (self.id,))
        return _STAYED


class Probe(msgspec.Struct, frozen=True):
    """Changes nothing, by a write: does the disk take one?"""

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it."""
        execute(sql.probe, ())
        return _STAYED


class Forget(msgspec.Struct, frozen=True):
    """A job that has ended is gone, with its chunks; its id may be used again. One that is gone already is no error."""

    seq: int

    def apply(self, execute: Execute, sql: Queries) -> Move:
        """Write it; a job that has not ended stays."""
        row = execute(sql.forget, (self.seq,)).fetchone()
        return (JobStatus(row[0]), None, -row[1]) if row is not None else _STAYED


Write = Union[
    Insert,
    Start,
    End,
    Requeue,
    Retry,
    AddChunk,
    TakeChunks,
    ShowChunks,
    AddLog,
    AddWebhook,
    PutOffWebhook,
    DropWebhook,
    Probe,
    Forget,
]
