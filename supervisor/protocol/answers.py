"""The API's responses as types: the supervisor encodes them, clients decode them, and the API's description shows them.

``views`` has those of the current state. Clients read the docstrings. A field that is None is ``null`` in a response, or absent
if its type has ``omit_defaults``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from supervisor.job import JobStatus
from supervisor.protocol.views import JobCounts, WorkerCounts

Milliseconds = Annotated[int, Meta(ge=0)]


class Accepted(msgspec.Struct, frozen=True):
    """A job and its state."""

    id: str
    status: JobStatus


class JobAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The status of a job."""

    id: str
    status: JobStatus
    delay_time: Annotated[Milliseconds, Meta(description="Milliseconds in the queue.")]
    execution_time: Annotated[
        Milliseconds | None, Meta(description="Milliseconds in the worker; only once it has ended.")
    ] = None
    worker_id: Annotated[
        str | None, Meta(description="The worker that runs or ran it; empty if it ended without a start.")
    ] = None
    output: Annotated[
        msgspec.Raw | UnsetType, Meta(description="The handler's result; while the job runs, its newest progress.")
    ] = UNSET
    error: Annotated[str | None, Meta(description="Why it failed; for an exception, JSON as text.")] = None
    retries: Annotated[int, Meta(ge=0, description="How often it was requeued.")]


class ChunkAnswer(msgspec.Struct, frozen=True):
    """One value that the handler yielded."""

    output: msgspec.Raw


class Stream(msgspec.Struct, frozen=True):
    """Chunks of a job, as JSON or as events."""

    status: JobStatus
    stream: tuple[ChunkAnswer, ...]


class Requests(msgspec.Struct, frozen=True):
    """A page of jobs, newest first, without input and output; `next` is the `after` of the next page."""

    requests: tuple[JobAnswer, ...]
    next: str | None


class Purged(msgspec.Struct, frozen=True):
    """Number of queued jobs that were cancelled."""

    removed: Annotated[int, Meta(ge=0)]
    status: str = "completed"


class SlotOrder(msgspec.Struct, frozen=True):
    """A command that a slot accepted; watch the slot's state for completion."""

    slot: str
    status: str


class Health(msgspec.Struct, frozen=True):
    """Counts of jobs and workers."""

    jobs: JobCounts
    workers: WorkerCounts


class Ok(msgspec.Struct, frozen=True):
    """The server is alive, or ready."""

    status: str = "ok"


class Error(msgspec.Struct, frozen=True):
    """The reason why a request was rejected."""

    error: str


class OpenAIProblem(msgspec.Struct, frozen=True):
    """An error with the fields of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class OpenAIError(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    error: OpenAIProblem
