"""`/openapi.json`: the API's description (OpenAPI 3.1), made from the route table and what ``describe`` says; in the supervisor.

OpenAPI: https://spec.openapis.org/oas/v3.1.1.html. The same table and settings always give the same document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from supervisor import __version__
from supervisor.api.docs import schemas
from supervisor.api.docs.describe import (
    IN_PATH,
    INTRODUCTION,
    JSON,
    KEYS,
    OPERATIONS,
    REFUSALS,
    TAGS,
    Operation,
    Parameter,
)
from supervisor.api.routes import Route

Json = dict[str, Any]

_BRACES = re.compile(r"\{(\w+)\}")
_BEARER = "bearer"


class Access:
    """Who may ask, as far as clients see it."""

    def __init__(self, *, keys: bool, guarded: bool = True) -> None:
        """``keys``: one is needed. ``guarded``: without keys, `Host` and `Origin` are looked at."""
        self.keys = keys
        self.refusals = () if not guarded else (401,) if keys else (403,)


def document(routes: Sequence[Route], endpoint_id: str, access: Access) -> Json:
    """The description of ``routes``, each of which ``describe`` must know."""
    types = _Types(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        item = paths.setdefault(route.path, {"servers": [_server("/")]} if route.root_only else {})
        for method in route.methods:
            item[method.lower()] = _operation(route, method, types, access)
    made: Json = {
        "openapi": "3.1.0",
        "info": {"title": f"supervise: {endpoint_id}", "version": __version__, "description": INTRODUCTION},
        "servers": [
            _server("/", "Every operation."),
            _server(f"/v2/{quote(endpoint_id)}", "Where RunPod's clients look for them."),
        ],
        "tags": [{"name": tag.value, "description": text} for tag, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": types.named},
    }
    if access.keys:
        made["components"]["securitySchemes"] = {
            _BEARER: {"type": "http", "scheme": _BEARER, "description": KEYS},
        }
        made["security"] = [{_BEARER: []}]
    return made


class _Types:
    """The schemas of all types that the routes' descriptions name."""

    def __init__(self, routes: Iterable[Route]) -> None:
        operations = [OPERATIONS[route.path] for route in routes]
        bodies = [operation.body for operation in operations if operation.body is not None]
        answers = [kind for operation in operations for kind in operation.answer.content.values() if kind is not None]
        types = [*bodies, *answers, schemas.Error, schemas.OpenAIError]
        made, self.named = schemas.components(types)
        self._schemas = list(zip(types, made, strict=True))

    def of(self, kind: Any) -> Json:
        """The schema of a type."""
        return next(schema for known, schema in self._schemas if known == kind)


def _operation(route: Route, method: str, types: _Types, access: Access) -> Json:
    words = OPERATIONS[route.path]
    first = method == route.methods[0]
    made: Json = {
        "operationId": words.id if first else f"{words.id}{method.title()}",
        "tags": [words.tag.value],
        "summary": route.summary,
        "description": words.text,
    }
    parameters = [_in_path(name, words) for name in _BRACES.findall(route.path)]
    parameters += [_parameter(parameter) for parameter in words.parameters]
    if parameters:
        made["parameters"] = parameters
    if words.body is not None and method == "POST":
        made["requestBody"] = {
            "required": words.needs_body,
            "content": {JSON: {"schema": types.of(words.body), "example": words.example}},
        }
    made["responses"] = _responses(route, words, types, access, with_body=method != "HEAD")
    if access.keys and route.open:
        made["security"] = []
    return made


def _in_path(name: str, words: Operation) -> Json:
    made: Json = {
        "name": name,
        "in": "path",
        "required": True,
        "description": IN_PATH[name],
        "schema": {"type": "string", "minLength": 1},
    }
    if name in words.params:
        made["example"] = words.params[name]
    return made


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.text,
        "schema": parameter.schema,
    }


def _responses(route: Route, words: Operation, types: _Types, access: Access, *, with_body: bool) -> Json:
    answer = words.answer
    good: Json = {"description": answer.text}
    if answer.headers:
        good["headers"] = {name: _header(text) for name, text in answer.headers.items()}
    if with_body:
        kinds = answer.content.items()
        good["content"] = {kind: {} if body is None else {"schema": types.of(body)} for kind, body in kinds}
        if answer.links:
            good["links"] = {OPERATIONS[path].id: _link(path, where) for path, where in answer.links.items()}
    made: Json = {"200": good}
    error = types.of(schemas.OpenAIError if words.openai else schemas.Error)
    for status in sorted({*words.refusals, *(() if route.open else access.refusals)}):
        made[str(status)] = _refusal(status, error if with_body else None, openai=words.openai)
    if words.openai:
        content = {JSON: {"schema": error}}
        made["4XX"] = {"description": "The status that the handler's error means.", "content": content}
        made["5XX"] = {
            "description": "As 4XX; 500 for a job that failed, 504 for one that timed out.",
            "content": content,
        }
    return made


def _refusal(status: int, error: Json | None, *, openai: bool) -> Json:
    made: Json = {"description": REFUSALS[status]}
    if error is not None:
        made["content"] = {JSON: {"schema": error}}
    if status == 401:
        made["headers"] = {"www-authenticate": _header("`Bearer`", required=True)}
    elif status in (429, 503):
        # One that a handler passes on from elsewhere has none.
        made["headers"] = {"retry-after": _header("Seconds to wait.", required=not openai, kind="integer")}
    return made


def _link(path: str, where: str) -> Json:
    return {
        "operationId": OPERATIONS[path].id,
        "parameters": dict.fromkeys(_BRACES.findall(path), f"$response.body#{where}"),
    }


def _header(text: str, *, required: bool = False, kind: str = "string") -> Json:
    made: Json = {"description": text, "schema": {"type": kind}}
    return {**made, "required": True} if required else made


def _server(url: str, text: str | None = None) -> Json:
    return {"url": url} if text is None else {"url": url, "description": text}
