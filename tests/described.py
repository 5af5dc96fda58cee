"""Holds answers to the API's own description: their status, headers and content type, and their JSON by its schema."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator

from supervisor.api.docs.openapi import document
from supervisor.api.openai.errors import speaks_openai
from supervisor.api.operations import ROUTES

JSON = "application/json"

ANYWHERE = {500}
"""What only a bug brings about, which some tests have."""

ELSEWHERE = {204, 401, 403, 404, 405}
"""How what is no operation is answered, ``OPTIONS`` among it."""


@functools.cache
def description(guard: int | None = None) -> Any:
    return document(ROUTES, "echo", guard)


@functools.cache
def validator(schema: str) -> Draft202012Validator:
    """For a schema of the description (as JSON), whose structs may have no other fields than it names."""
    components = json.loads(json.dumps(description()["components"]))
    for named in components["schemas"].values():
        if "properties" in named:
            named["additionalProperties"] = False
    return Draft202012Validator({**json.loads(schema), "components": components})


def responses_of(method: str, path: str, guard: int | None) -> Any:
    """What the operation answers by its description; ``None``: there is no such operation."""
    path = unquote(path.partition("?")[0])
    at_endpoint = re.sub("^/v2/[^/]+(?=/)", "", path)
    for template, item in description(guard)["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template).replace(r"\{route\}", ".+"))
        if re.fullmatch(pattern, path if "servers" in item else at_endpoint, re.DOTALL):
            return item.get(method.lower(), {}).get("responses")
    return None


def fault(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes | None) -> str | None:
    """What is not as described in an answer; ``None``: it fits. ``body`` is ``None`` where it did not come to its end."""
    what = f"{method} {path[:200]} {status}"
    responses = responses_of(method, path, status if status in (401, 403) else None)
    known = (responses or {}).get(str(status)) or (responses or {}).get(f"{status // 100}XX")
    if known is None:
        other_endpoint = {404} if path.startswith("/v2/") else set()
        if status not in ANYWHERE | (ELSEWHERE if responses is None else other_endpoint):
            return f"{what}: not described"
        error = "OpenAIError" if speaks_openai(path) else "Error"
        known = {"content": {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}}}
    missing = [name for name, each in known.get("headers", {}).items() if each.get("required") and name not in headers]
    if missing:
        return f"{what}: without {', '.join(missing)}"
    if method == "HEAD" or status == 204:
        return f"{what}: has a body" if body else None
    kind = headers["content-type"].partition(";")[0]
    if kind not in known["content"]:
        return f"{what}: is {kind}"
    schema = known["content"][kind].get("schema")
    if kind != JSON or schema is None or body is None:
        return None
    wrong = next(validator(json.dumps(schema)).iter_errors(json.loads(body)), None)
    return None if wrong is None else f"{what}: {wrong.json_path}: {wrong.message[:300]}"
