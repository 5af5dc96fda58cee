"""The writes to the store: one frozen record for each change of a job, applied in the supervisor process.

The SQL of each requires the state that the job must be in; another state is a ``TransitionError``. ``seq`` is the job's number,
times are milliseconds since 1970.
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
"""Size in bytes from which an input is kept outside its job's row, which each step of the job rewrites. Measured over a job's
life: 8 KB inside the row cost a third more, 50 KB twice as much; below about a page the second table does not pay."""

Move = tuple[Union[JobStatus, None], Union[JobStatus, None], int]
"""A job's old state (``None``: it is new), its new one (``None``: it was deleted; both ``None``: unchanged), and the change in
the number of requeues and retries."""


class Write(msgspec.Struct, frozen=True):
    """One change: ``statement`` names a query with the fields as parameters, ``move`` is the job's change of state. If no row
    changes, ``refusal`` is the error; without one that is allowed."""

    statement: ClassVar[str]
    refusal: ClassVar[str] = ""
    move: ClassVar[Move] = (None, None, 0)

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, inside the transaction of the batch; return the job's move.

        Raises:
            TransitionError: the job is not in a state that allows it.
            sqlite3.IntegrityError: a constraint forbids it, such as a duplicate id.
        """
        changed = cursor.execute(QUERIES[self.statement], msgspec.structs.asdict(self)).rowcount
        if self.refusal and not changed:
            raise TransitionError(self.refusal.format(self))
        return self.move


class Insert(Write, frozen=True):
    """A new job: ``IN_QUEUE``, or with ``started_ms`` and ``worker_id`` ``IN_PROGRESS`` in its first attempt at once.

    ``seq`` and ``request.id`` must be new. ``request.s3_config`` itself is not written, only that there is one.
    """

    seq: int
    request: JobRequest
    created_ms: int
    started_ms: int | None = None
    worker_id: str | None = None
    timeout_ms: int | None = None
    expires_ms: int | None = None

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, as ``Write.apply`` does."""
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


class StartJob(Write, frozen=True):
    """``IN_QUEUE`` → ``IN_PROGRESS``, one attempt more. Data of older attempts was deleted when the job was queued again."""

    statement = "start"
    refusal = "job number {0.seq} cannot start: it is not IN_QUEUE"
    move = (IN_QUEUE, IN_PROGRESS, 0)

    seq: int
    started_ms: int
    worker_id: str


class End(Write, frozen=True):
    """``IN_PROGRESS`` or ``IN_QUEUE`` → the terminal state of ``outcome``. Chunks are kept."""

    seq: int
    outcome: Outcome
    ended_ms: int

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, as ``Write.apply`` does."""
        outcome = self.outcome
        cause = None if outcome.cause is None else msgspec.json.encode(outcome.cause).decode()
        row = (outcome.status.value, outcome.output, outcome.error, cause, self.ended_ms, self.seq)
        if cursor.execute(QUERIES["end_running"], row).rowcount:
            return IN_PROGRESS, outcome.status, 0
        if cursor.execute(QUERIES["end_queued"], row).rowcount:
            return IN_QUEUE, outcome.status, 0
        raise TransitionError(f"job number {self.seq} cannot end: it is neither IN_PROGRESS nor IN_QUEUE")


class Requeue(Write, frozen=True):
    """``IN_PROGRESS`` → ``IN_QUEUE`` at its old place, without chunks; without ``charged`` the attempt does not count."""

    statement = "requeue"
    refusal = "job number {0.seq} cannot be requeued: it is not IN_PROGRESS"
    move = (IN_PROGRESS, IN_QUEUE, 1)

    seq: int
    charged: bool


class Retry(Write, frozen=True):
    """``FAILED`` or ``TIMED_OUT`` → ``IN_QUEUE`` as if new, without output, error, chunks, log and attempts."""

    seq: int
    created_ms: int
    expires_ms: int | None = None

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, as ``Write.apply`` does."""
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
    """Marks the first ``taken`` chunks of the job's newest attempt as handed out, in any state of the job."""

    statement = "take_chunks"
    refusal = "job number {0.seq} has no {0.taken} chunks to take"

    seq: int
    taken: int


class ShowChunks(Write, frozen=True):
    """Marks chunks of the job's newest attempt as seen but not handed out; a deleted job is no error."""

    statement = "show_chunks"

    seq: int


class AddLog(Write, frozen=True):
    """A piece of a job's log, at byte offset ``at``."""

    statement = "add_log"

    seq: int
    at: int
    text: bytes


class AddWebhook(Write, frozen=True):
    """A webhook to deliver: ``id`` is its own, ``body`` is posted to ``url``."""

    id: str
    job: str
    url: str
    due_ms: int
    body: bytes

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, as ``Write.apply`` does."""
        receiver = receiver_of(self.url)
        cursor.execute(QUERIES["add_webhook"], (self.id, self.job, self.url, receiver, self.due_ms, len(self.body)))
        cursor.execute(QUERIES["add_webhook_body"], (self.id, self.body))
        return self.move


class PutOffWebhook(Write, frozen=True):
    """Counts a failed try of a webhook; the next is at ``due_ms``."""

    statement = "put_off_webhook"

    id: str
    due_ms: int


class DropWebhook(Write, frozen=True):
    """Removes a webhook that was acknowledged or given up."""

    statement = "drop_webhook"

    id: str


class Probe(Write, frozen=True):
    """A write without effect, to test whether the store can be written."""

    statement = "probe"


class DeleteJob(Write, frozen=True):
    """Deletes an ended job with its chunks; its id may be used again. An unfinished one is kept, and is no error."""

    seq: int

    def apply(self, cursor: sqlite3.Cursor) -> Move:
        """Write it, as ``Write.apply`` does."""
        row = cursor.execute(QUERIES["delete_job"], (self.seq,)).fetchone()
        return (JobStatus(row[0]), None, -row[1]) if row is not None else self.move
