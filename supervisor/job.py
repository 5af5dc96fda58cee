"""Jobs and their states; imported by every process.

A job's ``input``, ``output``, chunks and progress are JSON as bytes, which this program passes on without parsing.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from supervisor.cause import JobCause


class JobStatus(str, enum.Enum):
    """The states of a job, named as in RunPod's API."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """True if a job in this state has ended."""
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)


IN_QUEUE, IN_PROGRESS = JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS
"""For hot paths: up to Python 3.11 access to the member of an enum is slow."""

RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})
"""States in which a job may be retried. (All transitions: the table ``transitions`` in the store's schema.)"""

HOST_KILL_STARTS = 3
"""Maximum number of starts of a job that ran when the supervisor, the template or the host was killed."""


class JobRequest(msgspec.Struct, frozen=True):
    """A validated request for a job.

    ``input`` is one JSON value. ``extras`` is a JSON object with the request's ``webhook`` and ``policy``, or ``None``;
    ``s3_config`` is the JSON object of ``s3Config``, kept apart because it is a secret and gets a file of its own. ``generated``:
    the id is new, so no job can have it yet. ``timeout_ms`` (of one start) and ``ttl_ms`` (from submission on) are from
    ``policy``.
    """

    id: str
    input: bytes
    extras: bytes | None = None
    s3_config: bytes | None = None
    low_priority: bool = False
    generated: bool = False
    timeout_ms: int | None = None
    ttl_ms: int | None = None


class Job(msgspec.Struct, frozen=True):
    """A job as stored. Times are milliseconds since 1970 (wall clock).

    ``seq`` is the order of arrival. ``attempts`` counts the starts, on disk before each start; ``retries`` counts the returns to
    the queue, and so numbers the starts. ``started_ms`` is the newest start. ``output``, ``error`` and ``cause`` (as in
    ``Outcome``) are set at the job's end. ``chunks`` is the number of stream chunks of the newest attempt, ``chunks_taken`` of
    those handed out for good; ``streamed``: a client has seen one. ``timeout_ms``: limit of one start. ``expires_ms``: when the
    job times out.
    """

    seq: int
    id: str
    status: JobStatus
    input: bytes
    created_ms: int
    extras: bytes | None = None
    has_s3_config: bool = False
    low_priority: bool = False
    attempts: int = 0
    retries: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None
    worker_id: str | None = None
    error: str | None = None
    chunks: int = 0
    chunks_taken: int = 0
    timeout_ms: int | None = None
    expires_ms: int | None = None
    streamed: bool = False
    cause: JobCause | None = None
    output: bytes | None = None

    def replace(self, **changes: Any) -> Job:
        """Return a copy with ``changes``."""
        return msgspec.structs.replace(self, **changes)


class Outcome(msgspec.Struct, frozen=True):
    """Result of a job: a terminal ``status`` with its ``output`` (JSON).

    ``error`` is the handler's own text; if this program ended the job, it has a ``cause`` instead, and no output.
    """

    status: JobStatus
    output: bytes | None = None
    error: str | None = None
    cause: JobCause | None = None


def delay_ms(job: Job, now_ms: int | None = None) -> int:
    """Return how long the job waited for its newest start, or for its end without one; a queued job waits until ``now_ms``.

    Never negative: 0 if the clock was set back.
    """
    until = None if job.status is JobStatus.IN_QUEUE else job.started_ms or job.ended_ms
    return max(0, (until or now_ms or job.created_ms) - job.created_ms)


def execution_ms(job: Job) -> int:
    """Return how long the job ran; 0 while it runs, and if it never started."""
    if job.started_ms is None or job.ended_ms is None:
        return 0
    return max(0, job.ended_ms - job.started_ms)
