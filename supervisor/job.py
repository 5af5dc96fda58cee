"""What a job is, and the states it goes through; imported by every process.

A job's ``input``, ``output``, chunks and progress are JSON text in bytes that this program carries and does not parse.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from supervisor.cause import JobCause


class JobStatus(str, enum.Enum):
    """The states of a job, in the words of RunPod's API."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """Whether a job in this state has ended."""
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)


IN_QUEUE, IN_PROGRESS = JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS
"""For code that looks at them several times for each job: up to Python 3.11 the member of an enum is looked up slowly."""

RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})
"""Those in which a job may be run once more. (All steps between states: ``transitions`` in the tables of the store.)"""

HOST_KILL_STARTS = 3
"""Most starts of a job that a killed supervisor, template or host had under way."""


class JobRequest(msgspec.Struct, frozen=True):
    """What a client asked for, checked at the door.

    ``input`` is one JSON value. ``extras`` is a JSON object with those of ``webhook`` and ``policy`` that the request had, or
    ``None``; ``s3_config`` is the JSON object of ``s3Config`` alone, because it is a secret and lies in a file of its own.
    ``generated`` says that the id was made for this request alone, so that no job can have it yet. ``timeout_ms`` and ``ttl_ms``
    are those of ``policy``: how long a start may last, and the job from its arrival on.
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
    """One job as the store has it. Times are milliseconds since 1970 (wall clock).

    ``seq`` is the order of arrival. ``attempts`` counts its starts, on disk before each start; ``retries`` counts how often it
    went back to the queue, and so numbers its starts. ``started_ms`` is the newest start. ``output``, ``error`` and ``cause`` (as
    in ``Outcome``) are set once it ended; ``chunks`` and ``chunks_taken`` say how many stream chunks there are of the newest
    attempt and how many were handed out for good, and ``streamed`` that somebody was shown one. ``timeout_ms``: how long a start
    may last. ``expires_ms``: when the job times out.
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
        """A copy with ``changes``."""
        return msgspec.structs.replace(self, **changes)


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: a terminal ``status`` with the ``output`` (JSON) that it left.

    ``error`` is the handler's own text; where this program ended the job there is a ``cause`` in its place, and no output.
    """

    status: JobStatus
    output: bytes | None = None
    error: str | None = None
    cause: JobCause | None = None


def delay_ms(job: Job, now_ms: int | None = None) -> int:
    """How long the job waited for its newest start, or for its end without one; one that waits still does so until ``now_ms``.

    A clock set back gives 0, never less.
    """
    until = None if job.status is JobStatus.IN_QUEUE else job.started_ms or job.ended_ms
    return max(0, (until or now_ms or job.created_ms) - job.created_ms)


def execution_ms(job: Job) -> int:
    """How long the job ran; 0 while it runs, and when it never started."""
    if job.started_ms is None or job.ended_ms is None:
        return 0
    return max(0, job.ended_ms - job.started_ms)
