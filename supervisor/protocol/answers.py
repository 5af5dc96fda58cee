"""The answers of the API as types: the supervisor writes them, clients read them, and the API's description shows them.

``views`` has those that show what is at one moment. The docstrings are read by clients. A field that may be ``None`` stands in an
answer as ``null``, but in one with ``omit_defaults``: there it is left out.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from supervisor.job import JobStatus
from supervisor.protocol.views import JobCounts, WorkerCounts

Milliseconds = Annotated[int, Meta(ge=0)]


class Accepted(msgspec.Struct, frozen=True):
    """A job and the state that it is in."""

    id: str
    status: JobStatus


class JobAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The status of a job."""

    id: str
    status: JobStatus
    delay_time: Annotated[Milliseconds, Meta(description="Milliseconds in the queue.")]
    execution_time: Annotated[
        Milliseconds | None, Meta(description="Milliseconds in the worker; once it has ended.")
    ] = None
    worker_id: Annotated[
        str | None, Meta(description="The worker that runs or ran it; empty if it ended without a start.")
    ] = None
    output: Annotated[
        msgspec.Raw | UnsetType, Meta(description="What the handler returned; its newest progress while it runs.")
    ] = UNSET
    error: Annotated[str | None, Meta(description="Why it failed; of an exception, JSON as text.")] = None
    retries: Annotated[int, Meta(ge=0, description="How often it went back to the queue.")]


class ChunkAnswer(msgspec.Struct, frozen=True):
    """One value that the handler has yielded."""

    output: msgspec.Raw


class Stream(msgspec.Struct, frozen=True):
    """Some chunks of a job, or all as events."""

    status: JobStatus
    stream: tuple[ChunkAnswer, ...]


class Requests(msgspec.Struct, frozen=True):
    """Some jobs, the newest first, without input and output; `next` is the `after` of the page that follows."""

    requests: tuple[JobAnswer, ...]
    next: str | None


class Purged(msgspec.Struct, frozen=True):
    """How many queued jobs were cancelled."""

    removed: Annotated[int, Meta(ge=0)]
    status: str = "completed"


class SlotOrder(msgspec.Struct, frozen=True):
    """What was begun in a slot; it is done when the slot's state says so."""

    slot: str
    status: str


class Health(msgspec.Struct, frozen=True):
    """Jobs and workers, counted."""

    jobs: JobCounts
    workers: WorkerCounts


class Ok(msgspec.Struct, frozen=True):
    """All is well."""

    status: str = "ok"


class Error(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    error: str


class OpenAIProblem(msgspec.Struct, frozen=True):
    """What went wrong, in the words of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class OpenAIError(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    error: OpenAIProblem
