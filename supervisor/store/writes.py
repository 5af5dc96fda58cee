"""What can be written to the store: one frozen record for each change of a job, applied in the supervisor process.

Each knows the state of the job that it starts from and says so in its SQL; a job in another state is a ``TransitionError``.
``seq`` names the job, times are milliseconds since 1970.
"""

from __future__ import annotations

import sqlite3
from typing import ClassVar, Union

import msgspec

from supervisor.errors import TransitionError
from supervisor.job import IN_PROGRESS, IN_QUEUE, RETRYABLE, JobRequest, JobStatus, Outcome
from supervisor.store.outbox import receiver_of
from supervisor.store.sql import QUERIES

LARGE_INPUT = 2048
"""Bytes from which an input lies outside its job's row, which is written anew at each step of the job. Measured for a
whole life: 8 KB inside the row cost a third more, 50 KB twice as much; below about a page the second table does not pay."""

Move = tuple[Union[JobStatus, None], Union[JobStatus, None], int]
"""The state that a job left (``None``: it is new), the one it came to (``None``: it is gone; both: it stayed), and how
many times more jobs went back to the queue by that."""


class Write(msgspec.Struct, frozen=True):
    """One change: ``statement``, the name of a query, has the fields for parameters, and ``move`` is what it does to the job's
    state. Where it changes nothing ``refusal`` is the error; without one that is none."""

    statement: ClassVar[str]
    refusal: ClassVar[str] = ""
    move: ClassVar[Move] = (None, None, 0)

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, inside the transaction of the batch.

        Raises:
            TransitionError: the job is not in a state that allows it.
            sqlite3.IntegrityError: the tables refuse it, such as an id that a job has already.
        """
        changed = cursor.execute(QUERIES[self.statement], msgspec.structs.asdict(self)).rowcount
        if self.refusal and not changed:
            raise TransitionError(self.refusal.format(self))
        return self.move


class Insert(Write, frozen=True):
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

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """As ``Write.apply``."""
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
            cursor.execute(QUERIES["insert_input"], (self.seq, request.input))
        if self.started_ms is None:
            cursor.execute(QUERIES["insert_queued"], row)
            return None, IN_QUEUE, 0
        cursor.execute(QUERIES["insert_started"], (*row, self.started_ms, self.worker_id))
        return None, IN_PROGRESS, 0


class Start(Write, frozen=True):
    """``IN_QUEUE`` → ``IN_PROGRESS``, one attempt more. What an older attempt left went when the job was queued again."""

    statement = "start"
    refusal = "job number {0.seq} cannot start: it is not IN_QUEUE"
    move = (IN_QUEUE, IN_PROGRESS, 0)

    seq: int
    started_ms: int
    worker_id: str


class End(Write, frozen=True):
    """``IN_PROGRESS`` or ``IN_QUEUE`` → the terminal state of ``outcome``. Chunks stay."""

    seq: int
    outcome: Outcome
    ended_ms: int

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """As ``Write.apply``."""
        outcome = self.outcome
        cause = None if outcome.cause is None else msgspec.json.encode(outcome.cause).decode()
        row = (outcome.status.value, outcome.output, outcome.error, cause, self.ended_ms, self.seq)
        if cursor.execute(QUERIES["end_running"], row).rowcount:
            return IN_PROGRESS, outcome.status, 0
        if cursor.execute(QUERIES["end_queued"], row).rowcount:
            return IN_QUEUE, outcome.status, 0
        raise TransitionError(f"job number {self.seq} cannot end: it is neither IN_PROGRESS nor IN_QUEUE")


class Requeue(Write, frozen=True):
    """``IN_PROGRESS`` → ``IN_QUEUE`` at its old place, chunks dropped; without ``charged`` the attempt does not count."""

    statement = "requeue"
    refusal = "job number {0.seq} cannot be put back: it is not IN_PROGRESS"
    move = (IN_PROGRESS, IN_QUEUE, 1)

    seq: int
    charged: bool


class Retry(Write, frozen=True):
    """``FAILED`` or ``TIMED_OUT`` → ``IN_QUEUE`` as if new: output, error, chunks, log and attempts are gone."""

    seq: int
    created_ms: int
    expires_ms: int | None = None

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """As ``Write.apply``."""
        for before in RETRYABLE:
            if cursor.execute(QUERIES["retry"], (self.created_ms, self.expires_ms, self.seq, before.value)).rowcount:
                return before, IN_QUEUE, 1
        raise TransitionError(f"job number {self.seq} cannot be retried: it is neither FAILED nor TIMED_OUT")


class AddChunk(Write, frozen=True):
    """The next chunk (JSON) of a running job. ``index`` counts from 0 in each attempt, without a gap."""

    statement = "add_chunk"
    refusal = "chunk {0.index} does not follow: job number {0.seq} is not in attempt {0.attempt}, or this is not its next chunk"

    seq: int
    attempt: int
    index: int
    value: bytes


class TakeChunks(Write, frozen=True):
    """The first ``taken`` chunks of the job's newest attempt are handed out, in any state of the job."""

    statement = "take_chunks"
    refusal = "job number {0.seq} has no {0.taken} chunks to take"

    seq: int
    taken: int


class ShowChunks(Write, frozen=True):
    """Somebody is shown chunks of the job's newest attempt, which stay for others; a job that is gone is no error."""

    statement = "show_chunks"

    seq: int


class AddLog(Write, frozen=True):
    """What a job printed, behind the ``at`` bytes before it."""

    statement = "add_log"

    seq: int
    at: int
    text: bytes


class AddWebhook(Write, frozen=True):
    """A webhook to be delivered: ``id`` is its own, ``body`` what is posted to ``url``."""

    id: str
    job: str
    url: str
    due_ms: int
    body: bytes

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """As ``Write.apply``."""
        receiver = receiver_of(self.url)
        cursor.execute(QUERIES["add_webhook"], (self.id, self.job, self.url, receiver, self.due_ms, len(self.body)))
        cursor.execute(QUERIES["add_webhook_body"], (self.id, self.body))
        return self.move


class PutOffWebhook(Write, frozen=True):
    """A webhook was tried in vain and is tried again at ``due_ms``."""

    statement = "put_off_webhook"

    id: str
    due_ms: int


class DropWebhook(Write, frozen=True):
    """A webhook was acknowledged or given up."""

    statement = "drop_webhook"

    id: str


class Probe(Write, frozen=True):
    """Changes nothing, by a write: does the disk take one?"""

    statement = "probe"


class Forget(Write, frozen=True):
    """A job that has ended is gone, with its chunks; its id may be used again. One that has not ended stays, and is no error."""

    seq: int

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """As ``Write.apply``."""
        row = cursor.execute(QUERIES["forget"], (self.seq,)).fetchone()
        return (JobStatus(row[0]), None, -row[1]) if row is not None else self.move
