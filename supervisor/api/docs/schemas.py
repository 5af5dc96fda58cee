"""The JSON of the API as types, for its description alone: ``protocol`` makes what is sent and checks what comes.

Runs in the supervisor, once, when the description is first asked for. The docstrings are read by clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from supervisor.job import JobStatus

ID_PATTERN = "^[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,127}$"
"""What ``protocol.requests`` takes for an id."""

REFS = "#/components/schemas/{name}"

Milliseconds = Annotated[int, Meta(ge=0)]


class Policy(msgspec.Struct, rename="camel"):
    """Limits of one job. Times are milliseconds; the server's own limits hold where there is none."""

    execution_timeout: Annotated[
        Union[Annotated[int, Meta(gt=0)], None], Meta(description="How long one start of it may last.")
    ] = None
    ttl: Annotated[
        Union[Annotated[int, Meta(gt=0)], None],
        Meta(description="How long after its arrival it may still be queued or run."),
    ] = None
    low_priority: Annotated[Union[bool, None], Meta(description="It waits until no other job does.")] = None


class NewJob(msgspec.Struct):
    """A job to run. Other fields than these are ignored."""

    input: Annotated[Any, Meta(description='Any JSON value; what the handler finds in `job["input"]`.')]
    id: Annotated[
        Union[Annotated[str, Meta(pattern=ID_PATTERN)], None],
        Meta(description="A name of your own. The same one twice means the same job, which runs once."),
    ] = None
    webhook: Annotated[
        Union[Annotated[str, Meta(pattern=r"^https?://\S+$")], None],
        Meta(description="Where to POST the job's status when it has ended."),
    ] = None
    policy: Union[Policy, None] = None
    s3Config: Annotated[  # noqa: N815 - the name in the request
        Union[dict[str, Any], None], Meta(description="Reaches the handler alone; no answer ever shows it.")
    ] = None


class Accepted(msgspec.Struct):
    """A job and the state that it is in."""

    id: str
    status: JobStatus


class Job(msgspec.Struct, rename="camel"):
    """The status of a job."""

    id: str
    status: JobStatus
    delay_time: Annotated[Milliseconds, Meta(description="Milliseconds in the queue.")]
    retries: Annotated[int, Meta(ge=0, description="How often it went back to the queue.")]
    execution_time: Annotated[
        Union[Milliseconds, UnsetType], Meta(description="Milliseconds in the worker; once it has ended.")
    ] = UNSET
    worker_id: Annotated[
        Union[str, UnsetType], Meta(description="The worker that runs or ran it; empty if it ended without a start.")
    ] = UNSET
    output: Annotated[
        Union[Any, UnsetType], Meta(description="What the handler returned; its newest progress while it runs.")
    ] = UNSET
    error: Annotated[Union[str, UnsetType], Meta(description="Why it failed; of an exception, JSON as text.")] = UNSET


class Chunk(msgspec.Struct):
    """One value that the handler has yielded."""

    output: Any


class Stream(msgspec.Struct):
    """Some chunks of a job."""

    status: JobStatus
    stream: list[Chunk]


class Requests(msgspec.Struct):
    """Some jobs, the newest first, without input and output; `next` is the `after` of the page that follows."""

    requests: list[Job]
    next: Union[str, None]


class Purged(msgspec.Struct):
    """How many queued jobs were cancelled."""

    removed: Annotated[int, Meta(ge=0)]
    status: str


class SlotOrder(msgspec.Struct):
    """What was begun in a slot."""

    slot: str
    status: str


class Ok(msgspec.Struct):
    """All is well."""

    status: str


class Error(msgspec.Struct):
    """Why a request was refused."""

    error: str


class OpenAIRequest(msgspec.Struct):
    """A request body of OpenAI's API. It goes to the handler as it is."""

    stream: Annotated[Union[bool, None], Meta(description="Answer with server-sent events as they come.")] = None


class OpenAIProblem(msgspec.Struct):
    """What went wrong, in the words of OpenAI's API."""

    message: str
    type: str
    param: Union[str, None]
    code: Union[str, int, None]


class OpenAIError(msgspec.Struct):
    """OpenAI's error object."""

    error: OpenAIProblem


def components(types: Sequence[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """JSON Schemas (2020-12) of ``types`` in their order, and those of the structs in them by name.

    What is answered is encoded whole, so all fields of an answer are there but those that may be left out (``UNSET``).
    """
    schemas, named = msgspec.json.schema_components(types, ref_template=REFS)
    for struct in _structs(types):
        schema = named[struct.__name__]
        if struct not in (NewJob, Policy, OpenAIRequest):
            fields = msgspec.structs.fields(struct)
            schema["required"] = [field.encode_name for field in fields if field.default is not UNSET]
        for name in schema["properties"].values():
            name.pop("default", None)
    return schemas, dict(sorted(named.items()))


def _structs(types: Sequence[Any]) -> set[type[msgspec.Struct]]:
    """All structs in ``types``."""
    found: set[type[msgspec.Struct]] = set()
    waiting = list(types)
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in found:
                found.add(kind)
                waiting += [field.type for field in msgspec.structs.fields(kind)]
        else:
            waiting += get_args(kind)
    return found
