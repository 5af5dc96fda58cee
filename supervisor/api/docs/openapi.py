"""`/openapi.json`: the OpenAPI 3.1 document, made from the routes and the types of the public JSON; in the supervisor.

OpenAPI: https://spec.openapis.org/oas/v3.1.1.html. The same routes and settings always produce the same document.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from supervisor import __version__
from supervisor.api.openai.errors import speaks_openai
from supervisor.api.routes import JOBS, JSON, MACHINE, OPENAI, SERVER, Route
from supervisor.protocol import answers, views
from supervisor.protocol.requests import NewJob, OpenAIRequest

Json = dict[str, Any]
Schemas = dict[Any, Json]

UNAUTHORIZED, FORBIDDEN = 401, 403

INTRODUCTION = """\
Runs serverless handlers on this machine's GPUs. A job is one request for the handler; it ends in exactly one of `COMPLETED`, \
`FAILED`, `CANCELLED` and `TIMED_OUT`.

- All operations are served at the root and under `/v2/{endpoint_id}`, probes and descriptions at the root only. RunPod's and \
OpenAI's clients work unchanged.
- Errors are `{"error": "…"}` and say what is wrong and where; those under `/openai/` are OpenAI's error objects.
- A path accepts only the methods described here: any other gets 405 with `Allow`, `OPTIONS` gets `Allow` alone. Malformed \
requests get 400, headers of more than 64 KiB 431.
- Numbers outside a range are clamped to it. Unknown fields are ignored.\
"""

KEYS = "Send one of the server's keys as `Authorization: Bearer KEY`, or as `Authorization: KEY`."

TAGS = {
    JOBS: "Submit jobs, follow them and fetch their results.",
    OPENAI: "For handlers that serve a model with OpenAI's API.",
    MACHINE: "Monitor slots and GPUs, and control slots manually.",
    SERVER: "Probes, metrics, and this description.",
}

#: Path parameters.
IN_PATH: dict[str, Json] = {
    "id": {"description": "The job's id."},
    "slot": {"description": "The slot's name, such as `gpu0`, `gpu0.1`, `gpu2+3` or `cpu0`.", "example": "gpu0"},
    "route": {"description": "The path after `/v1/` in OpenAI's API; may have slashes.", "example": "chat/completions"},
}

EXAMPLES = {
    NewJob: {"input": {"prompt": "a lighthouse"}},
    OpenAIRequest: {"model": "my-model", "messages": [{"role": "user", "content": "Hello"}], "stream": False},
}

#: Where a response has the parameter of other paths.
FOUND_IN = {
    answers.JobAnswer: ("id", "/id"),
    answers.Accepted: ("id", "/id"),
    tuple[views.WorkerView, ...]: ("slot", "/0/slot"),
}

HEADERS = {
    "/logs/{id}": {"cache-control": "`no-store`", "x-accel-buffering": "`no`: nginx must not buffer it."},
    "/openai/v1/{route}": {"x-request-id": "The job's id."},
}

REFUSALS = {
    400: "The request is wrong; the error says what and where.",
    401: "The API key is missing or invalid.",
    403: "The request comes from a foreign web page (`Origin`), or by a name that is not this machine's (`Host`).",
    404: "There is no such job, slot or page; a job is deleted some time after its end (`--retention`).",
    409: "The current state does not allow that; the error names it.",
    413: "The body is too large (`--max-body`).",
    429: "The queue is full (`--max-queue`).",
    503: "Service unavailable: shutting down, not ready, too many clients, or the job store is not writable.",
}

_BRACES = re.compile(r"\{(\w+)\}")
#: Clients know these schemas by shorter names than their classes have.
_CLASS = re.compile(rb'\b(Job|Chunk)Answer"')
_REF = "#/components/schemas/{name}"
_RETRY_AFTER: Json = {"description": "Seconds to wait.", "schema": {"type": "integer"}}


def document(routes: Sequence[Route], endpoint_id: str, guard: int | None) -> Json:
    """Describe ``routes``. ``guard``: the status of unauthorized requests; None if all are allowed."""
    requested = [route.body for route in routes if route.body is not None]
    returned = [kind for route in routes for kind in route.answers.values() if kind is not None]
    schemas, named = _schemas([*requested, *returned, answers.Error, answers.OpenAIError])
    paths: dict[str, Json] = {}
    for route in routes:
        item = paths.setdefault(route.path, {"servers": [{"url": "/"}]} if route.root_only else {})
        for method in route.methods:
            item[method.lower()] = _operation(route, method, routes, schemas, guard)
    made: Json = {
        "openapi": "3.1.0",
        "info": {"title": f"supervise: {endpoint_id}", "version": __version__, "description": INTRODUCTION},
        "servers": [
            {"url": "/", "description": "Every operation."},
            {"url": f"/v2/{quote(endpoint_id)}", "description": "Where RunPod's clients look for them."},
        ],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": named},
    }
    if guard == UNAUTHORIZED:
        made["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": KEYS}}
        made["security"] = [{"bearer": []}]
    return made


def _schemas(types: Sequence[Any]) -> tuple[Schemas, Json]:
    """Return the JSON Schemas (2020-12) of ``types``, and those of the structs in them by name."""
    made, named = msgspec.json.schema_components(types, ref_template=_REF)
    for field in [field for schema in named.values() for field in schema.get("properties", {}).values()]:
        field.pop("default", None)
    for name, kind in {**vars(views), **vars(answers)}.items():
        if name not in named or not issubclass(kind, msgspec.Struct):
            continue
        if not kind.__struct_config__.omit_defaults:  # a response has all its fields
            named[name]["required"] = list(named[name]["properties"])
            continue
        for field in named[name]["properties"].values():  # or omits those that would be null
            kinds = [kind for kind in field.pop("anyOf", ()) if kind != {"type": "null"}]
            field.update(kinds[0] if kinds else {})
    made, named = (msgspec.json.decode(_CLASS.sub(rb'\1"', msgspec.json.encode(each))) for each in (made, named))
    return dict(zip(types, made, strict=True)), dict(sorted(named.items()))


def _operation(route: Route, method: str, routes: Iterable[Route], schemas: Schemas, guard: int | None) -> Json:
    summary, _, text = (inspect.getdoc(route.handler) or "").partition("\n\n")
    made: Json = {
        "operationId": route.id if method == route.methods[0] else route.id + method.title(),
        "tags": [route.tag],
        "summary": summary.rstrip("."),
        "description": text,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                **IN_PATH[name],
                "schema": {"type": "string", "minLength": 1},
            }
            for name in _BRACES.findall(route.path)
        ],
    }
    made["parameters"] += [
        {"name": field.name, "in": field.where, "description": field.text, "schema": field.schema}
        for field in route.fields
    ]
    if route.body is not None and method == "POST":
        content = {"schema": schemas[route.body], "example": EXAMPLES[route.body]}
        made["requestBody"] = {"required": route.body is NewJob, "content": {JSON: content}}
    made["responses"] = {"200": _answer(route, summary, routes, schemas), **_refusals(route, schemas, guard)}
    if method == "HEAD":
        for response in made["responses"].values():
            response.pop("content")
            response.pop("links", None)
    if guard == UNAUTHORIZED and route.open:
        made["security"] = []
    return made


def _answer(route: Route, summary: str, routes: Iterable[Route], schemas: Schemas) -> Json:
    kind = route.answers.get(JSON)
    named = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    made: Json = {
        # Under `python -OO` there is none, and ``inspect.getdoc`` would give that of the class above it.
        "description": inspect.cleandoc((named and kind.__doc__) or summary),
        "content": {name: {} if each is None else {"schema": schemas[each]} for name, each in route.answers.items()},
    }
    if route.path in HEADERS:
        headers = HEADERS[route.path].items()
        made["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers}
    if kind in FOUND_IN:
        name, where = FOUND_IN[kind]
        found = {"parameters": {name: f"$response.body#{where}"}}
        made["links"] = {each.id: {"operationId": each.id, **found} for each in routes if f"{{{name}}}" in each.path}
    return made


def _refusals(route: Route, schemas: Schemas, guard: int | None) -> Json:
    statuses = {503, *route.refusals}
    if route.body is not None or route.fields:
        statuses.add(400)
    if route.body is not None:
        statuses.add(413)
    if "{" in route.path and not route.rest:
        statuses.add(404)
    if guard is not None and not route.open:
        statuses.add(guard)
    openai = speaks_openai(route.path)
    content = {JSON: {"schema": schemas[answers.OpenAIError if openai else answers.Error]}}
    made: Json = {str(status): {"description": REFUSALS[status], "content": content} for status in sorted(statuses)}
    for status in {"429", "503"} & set(made):
        # A status that a handler forwards from another server has none.
        made[status]["headers"] = {"retry-after": {**_RETRY_AFTER, "required": not openai}}
    if "401" in made:
        scheme = {"description": "`Bearer`", "required": True, "schema": {"type": "string"}}
        made["401"]["headers"] = {"www-authenticate": scheme}
    if openai:
        made["4XX"] = {"description": "The status that the handler's error means.", "content": content}
        text = "As 4XX; 500 for a job that failed, 504 for one that timed out."
        made["5XX"] = {"description": text, "content": content}
    return made
