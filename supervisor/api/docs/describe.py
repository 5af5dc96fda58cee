"""What each operation takes and answers, in words and types: what the route table cannot say by itself; in the supervisor.

``openapi`` puts the two together. A test holds them to each other, another one the whole to a running server.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from supervisor.api.docs import schemas
from supervisor.protocol.responses import Health
from supervisor.protocol.views import GpuView, Snapshot, Stats, WorkerView

JSON, TEXT, HTML, EVENTS = "application/json", "text/plain", "text/html", "text/event-stream"

INTRODUCTION = """\
Runs serverless handlers on this machine's GPUs. A job is one request for the handler; it ends in exactly one of `COMPLETED`, \
`FAILED`, `CANCELLED` and `TIMED_OUT`.

- Every operation answers at the root and under `/v2/{endpoint_id}`, probes and descriptions at the root alone. RunPod's and \
OpenAI's clients work unchanged.
- Errors are `{"error": "…"}` and say what is wrong and where; those under `/openai/` are OpenAI's error objects.
- A path takes only the methods that are described here: any other is answered 405 with `Allow`, `OPTIONS` with `Allow` alone. \
What is no HTTP is answered 400, headers of more than 64 KiB 431.
- Numbers outside a range are moved to its nearest end. Fields that are not described are ignored.\
"""

KEYS = "Send one of the server's keys as `Authorization: Bearer KEY`, or as `Authorization: KEY`."


class Tag(str, enum.Enum):
    """The groups of operations, in the order in which they are shown."""

    JOBS = "Jobs"
    OPENAI = "OpenAI"
    MACHINE = "Workers and GPUs"
    SERVER = "Server"


TAGS = {
    Tag.JOBS: "Submit jobs, follow them and take their results.",
    Tag.OPENAI: "For handlers that serve a model as a server of OpenAI's API does.",
    Tag.MACHINE: "What runs where, and doing something about it by hand.",
    Tag.SERVER: "Probes, metrics, and this description.",
}


class Parameter(msgspec.Struct, frozen=True):
    """A field of the query, or a header."""

    name: str
    schema: dict[str, Any]
    text: str
    where: str = "query"


class Answer(msgspec.Struct, frozen=True):
    """A 200: what it means, and by content type the type of the body (``None``: no schema of OpenAPI 3.1 describes it).

    ``links``: in which operations, by their paths, what stands in the path's braces is found where in this answer.
    """

    text: str
    content: dict[str, Any]
    headers: dict[str, str] = {}
    links: dict[str, str] = {}


class Operation(msgspec.Struct, frozen=True):
    """One operation, whatever its methods. ``refusals`` are its statuses besides 200 and those of every operation.

    ``body`` is the type of its request body, ``needs_body``: it cannot do without one; ``example``: such a body.
    ``params`` gives an example of what stands in the path's braces. ``openai``: its errors are OpenAI's, of any status.
    """

    id: str
    tag: Tag
    text: str
    answer: Answer
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()
    body: Any = None
    needs_body: bool = True
    example: Any = None
    params: dict[str, str] = {}
    openai: bool = False


#: What stands in the braces of a path.
IN_PATH = {
    "id": "The job's id.",
    "slot": "The slot's name, such as `gpu0`, `gpu0.1`, `gpu2+3` or `cpu0`.",
    "route": "What follows `/v1/` in OpenAI's API; may have slashes.",
}

#: What the statuses of refusals mean.
REFUSALS = {
    400: "The request is wrong; the error says what and where.",
    401: "A key is needed, or the one that was sent is none of this server's.",
    403: "The request comes from a foreign web page (`Origin`), or by a name that is not this machine's (`Host`).",
    404: "There is no such job, slot or page; a job is forgotten some time after its end (`--retention`).",
    409: "Its state does not allow that; the error says which it is.",
    413: "The body is too large (`--max-body`).",
    429: "The queue is full (`--max-queue`).",
    503: "Not now: the server is shutting down or not ready, or its disk refuses.",
}

SEEN = {"cache-control": "`no-store`", "x-accel-buffering": "`no`: nginx is not to hold it back."}

_INTEGER = {"type": "integer"}
_TEXT = {"type": "string"}
_FROM = {"type": "integer", "minimum": 0}
_FLAG = {"type": "string", "enum": ["0", "1", "false", "true"], "default": "0"}

_JOB_WAIT = Parameter(
    "wait", {**_INTEGER, "default": 90_000}, "How many milliseconds to wait for its end: 1000 to 300000."
)
_STREAM_WAIT = Parameter(
    "wait", {**_INTEGER, "default": 5_000}, "How many milliseconds to wait for the first chunk: 0 to 300000."
)
_LAST_EVENT = Parameter("Last-Event-ID", _FROM, "The `id` of the last event seen: resume behind it.", "header")
_IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1},
    "The same key twice means the same job. An `id` in the body goes before it.",
    "header",
)

_SUBMIT = (400, 413, 429, 503)
_OF_A_JOB = ("/status/{id}", "/status-sync/{id}", "/stream/{id}", "/logs/{id}", "/cancel/{id}", "/retry/{id}")
_OF_A_SLOT = ("/workers/{slot}/refresh", "/workers/{slot}/pause", "/workers/{slot}/resume")
_JOB = Answer("The job.", {JSON: schemas.Job}, links=dict.fromkeys(_OF_A_JOB, "/id"))
_ACCEPTED = Answer("The job is on disk.", {JSON: schemas.Accepted}, links=dict.fromkeys(_OF_A_JOB, "/id"))
_ORDER = Answer("It was begun; it is done when the slot's state says so.", {JSON: schemas.SlotOrder})
_PROMPT = {"input": {"prompt": "a lighthouse"}}
_CHAT = {"model": "my-model", "messages": [{"role": "user", "content": "Hello"}], "stream": False}

OPERATIONS: dict[str, Operation] = {
    "/run": Operation(
        "run",
        Tag.JOBS,
        "Answers at once. What was answered is on disk: the job survives the server.",
        _ACCEPTED,
        (_IDEMPOTENCY,),
        _SUBMIT,
        schemas.NewJob,
        example=_PROMPT,
    ),
    "/runsync": Operation(
        "runsync",
        Tag.JOBS,
        "Answers with the job's status when it has ended, or after `wait` as it is then. The job goes on if the client leaves.",
        _JOB,
        (_JOB_WAIT, _IDEMPOTENCY),
        _SUBMIT,
        schemas.NewJob,
        example=_PROMPT,
    ),
    "/status/{id}": Operation(
        "status",
        Tag.JOBS,
        "`output` is the newest progress while the job runs, and what the handler returned once it has ended.",
        _JOB,
        refusals=(404, 503),
    ),
    "/status-sync/{id}": Operation(
        "statusSync",
        Tag.JOBS,
        "As `/status`, once the job has ended or after `wait`.",
        _JOB,
        (_JOB_WAIT,),
        (400, 404, 503),
    ),
    "/stream/{id}": Operation(
        "stream",
        Tag.JOBS,
        "As JSON: the chunks that no other answer has handed out, after waiting for the first. An answer that could not be "
        "sent uses up none. When the status is final and the list is empty, that was all.\n\n"
        "With `after`: those from that number on, which uses up none. With `Accept: text/event-stream`: all of them as they "
        'come, each an event with its number as `id` and `{"output": …}` as data; then an event `end` with '
        '`{"status": …}`.',
        Answer("Some chunks, or all as events.", {JSON: schemas.Stream, EVENTS: None}),
        (
            _STREAM_WAIT,
            Parameter("after", _FROM, "Number of the first chunk wanted, from 0 on."),
            _LAST_EVENT,
        ),
        (400, 404, 503),
    ),
    "/cancel/{id}": Operation(
        "cancel",
        Tag.JOBS,
        "A queued job never starts; a running one is stopped, if need be with its worker. One that has ended keeps its "
        "state, which is answered.",
        Answer("The job's state now.", {JSON: schemas.Accepted}),
        refusals=(404, 503),
    ),
    "/retry/{id}": Operation(
        "retry",
        Tag.JOBS,
        "Only one that is `FAILED` or `TIMED_OUT`: under the same id, its old output gone.",
        _ACCEPTED,
        refusals=(404, 409, 429, 503),
    ),
    "/purge-queue": Operation(
        "purgeQueue",
        Tag.JOBS,
        "Jobs that run go on. Those removed are `CANCELLED`.",
        Answer("The queue was emptied.", {JSON: schemas.Purged}),
        refusals=(503,),
    ),
    "/requests": Operation(
        "requests",
        Tag.JOBS,
        "The newest first, without input and output, a page at a time.",
        Answer("A page of jobs.", {JSON: schemas.Requests}),
        (
            Parameter("status", {"$ref": schemas.REFS.format(name="JobStatus")}, "Only jobs in this state."),
            Parameter("limit", {**_INTEGER, "default": 100}, "How many at most: 1 to 1000."),
            Parameter("after", _TEXT, "The `next` of the page before, or a job's id: older ones than that."),
        ),
        (400, 404, 503),
    ),
    "/logs/{id}": Operation(
        "logs",
        Tag.JOBS,
        "Complete once the job has ended. With `follow=1`: server-sent events as it prints, resumable by their `id`, then an "
        'event `end` with `{"status": …}`.',
        Answer("What it printed.", {TEXT: str, EVENTS: None}, SEEN),
        (Parameter("follow", _FLAG, "Whether to go on as it prints."), _LAST_EVENT),
        (400, 404, 503),
    ),
    "/health": Operation(
        "health",
        Tag.MACHINE,
        "The counts of RunPod's endpoints. `failed` counts jobs that timed out too; `retried` those that went back to the queue. "
        "`idle` counts spare slots too, `ready` does not.",
        Answer("Counts.", {JSON: Health}),
    ),
    "/workers": Operation(
        "workers",
        Tag.MACHINE,
        "A slot is the place on the GPUs that one worker after another occupies; `generation` counts them. One that is `parked` "
        "and `spare` starts when jobs wait; any other that is `parked` was paused.",
        Answer("The slots.", {JSON: list[WorkerView]}, links=dict.fromkeys(_OF_A_SLOT, "/0/slot")),
    ),
    "/workers/{slot}/refresh": Operation(
        "refreshWorker",
        Tag.MACHINE,
        "After the jobs that it runs, its worker is ended, its GPU memory is seen to be free, and a fresh one is started. "
        "Overrides a slot's `held`, `broken` and `backoff`.",
        _ORDER,
        refusals=(404, 409, 503),
        params={"slot": "gpu0"},
    ),
    "/workers/{slot}/pause": Operation(
        "pauseSlot",
        Tag.MACHINE,
        "After the jobs that its worker runs; the GPU is free then.",
        _ORDER,
        refusals=(404, 409, 503),
        params={"slot": "gpu0"},
    ),
    "/workers/{slot}/resume": Operation(
        "resumeSlot",
        Tag.MACHINE,
        "Starts a worker in it; while `--max-workers` are in service, it becomes `spare`.",
        _ORDER,
        refusals=(404, 409, 503),
        params={"slot": "gpu0"},
    ),
    "/gpus": Operation(
        "gpus",
        Tag.MACHINE,
        "With the processes on them, ours and others', where NVML may show them.",
        Answer("The GPUs in use.", {JSON: list[GpuView]}),
    ),
    "/stats": Operation(
        "stats",
        Tag.MACHINE,
        "Rates and percentiles (milliseconds) are those of the last minute.",
        Answer("Rates and percentiles.", {JSON: Stats}),
    ),
    "/snapshot": Operation(
        "snapshot",
        Tag.MACHINE,
        "What `supervise top` draws. May change with the version.",
        Answer("All of it, at one moment.", {JSON: Snapshot}),
    ),
    "/openai/v1/{route}": Operation(
        "openai",
        Tag.OPENAI,
        'The handler gets a job with the input `{"openai_route": "/v1/…", "openai_input": body}`, and what it makes of it is '
        "the answer: the one result, or with `stream` the text of its chunks as they come. Errors are OpenAI's, with the "
        "status that the handler's error means. `x-request-id` is the job's id.",
        Answer("What the handler answered.", {JSON: Any, TEXT: str, EVENTS: None}, {"x-request-id": "The job's id."}),
        (_IDEMPOTENCY,),
        (400, 413, 429, 503),
        schemas.OpenAIRequest,
        needs_body=False,
        example=_CHAT,
        params={"route": "chat/completions"},
        openai=True,
    ),
    "/livez": Operation("livez", Tag.SERVER, "No key is asked for.", Answer("It lives.", {JSON: schemas.Ok})),
    "/readyz": Operation(
        "readyz",
        Tag.SERVER,
        "503 until a first worker is ready, and while the server drains. No key is asked for.",
        Answer("A job that is sent now starts soon.", {JSON: schemas.Ok}),
        refusals=(503,),
    ),
    "/metrics": Operation(
        "metrics",
        Tag.SERVER,
        "Prometheus' text format. Let it send the key as `authorization: {credentials: KEY}`.",
        Answer("Every metric.", {TEXT: str}),
    ),
    "/openapi.json": Operation("openapi", Tag.SERVER, "OpenAPI 3.1.", Answer("This document.", {JSON: dict[str, Any]})),
    "/docs": Operation("docs", Tag.SERVER, "One page, complete in itself.", Answer("A page for people.", {HTML: str})),
}
