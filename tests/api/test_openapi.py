"""The description against the table, the parsers and the answers that it describes; `tests/e2e` holds it to a running server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from supervisor.api import operations
from supervisor.api.docs import describe, schemas
from supervisor.api.docs.about import About
from supervisor.api.docs.openapi import Access, document
from supervisor.api.operations import ROUTES
from supervisor.config.resolve import make_settings
from supervisor.job import Job, JobStatus
from supervisor.protocol import requests, responses

if TYPE_CHECKING:
    from conftest import Site

SETTINGS = make_settings("echo:handler", endpoint_id="echo", store="unused.db")
TABLE = About(ROUTES, SimpleNamespace(settings=SETTINGS)).routes  # type: ignore[arg-type]  # no more is asked of it
OPEN, KEYED = Access(keys=False), Access(keys=True)


def described(access: Access = OPEN) -> Any:
    return document(TABLE, "echo", access)


def each_operation(access: Access = OPEN) -> list[tuple[str, str, Any]]:
    return [
        (path, method, operation)
        for path, item in described(access)["paths"].items()
        for method, operation in item.items()
        if method != "servers"
    ]


def test_every_route_is_described_and_nothing_else_is() -> None:
    assert set(describe.OPERATIONS) == {route.path for route in TABLE}
    paths = {(path, method.upper()) for path, method, _ in each_operation()}
    assert paths == {(route.path, method) for route in TABLE for method in route.methods}


@pytest.mark.parametrize("access", [OPEN, KEYED, Access(keys=False, guarded=False)])
def test_it_is_openapi(access: Access) -> None:
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="the validator of OpenAPI documents is not installed"
    )
    validator.validate(described(access))


def test_it_is_always_the_same() -> None:
    assert json.dumps(described()) == json.dumps(described())


def test_names_are_used_once_and_links_lead_to_them() -> None:
    names = [operation["operationId"] for _, _, operation in each_operation()]
    assert len(names) == len(set(names))
    by_name = {operation["operationId"]: operation for _, _, operation in each_operation()}
    for _, _, operation in each_operation():
        for link in operation["responses"]["200"].get("links", {}).values():
            target = by_name[link["operationId"]]
            assert set(link["parameters"]) == {each["name"] for each in target["parameters"] if each["in"] == "path"}


def test_keys_are_part_of_it_where_there_are_some() -> None:
    assert "security" not in described()
    assert "securitySchemes" not in described()["components"]
    assert described(KEYED)["security"] == [{"bearer": []}]
    for path, _, operation in each_operation(KEYED):
        is_open = path in ("/livez", "/readyz")
        assert (operation.get("security") == []) is is_open
        assert ("401" in operation["responses"]) is not is_open
        assert "403" not in operation["responses"]
    for path, _, operation in each_operation():
        assert ("403" in operation["responses"]) is (path not in ("/livez", "/readyz"))
        assert "401" not in operation["responses"]


def test_what_takes_a_body_says_so() -> None:
    for route in TABLE:
        assert route.body is (describe.OPERATIONS[route.path].body is not None), route.path
    for path, method, operation in each_operation():
        if "requestBody" in operation:
            assert method == "post"
            assert {"400", "413"} <= set(operation["responses"]), path


def test_refusals_have_the_headers_that_go_with_them() -> None:
    for _, _, operation in each_operation(KEYED):
        for status, response in operation["responses"].items():
            assert ("retry-after" in response.get("headers", {})) is (status in ("429", "503"))
            assert ("www-authenticate" in response.get("headers", {})) is (status == "401")


def test_numbers_are_those_of_the_code() -> None:
    job, stream = operations._JOB_WAIT_MS, operations._STREAM_WAIT_MS
    page = (operations._PAGE, operations._MIN_PAGE, operations._MAX_PAGE)
    for path, name, (default, low, high) in (
        ("/runsync", "wait", job),
        ("/status-sync/{id}", "wait", job),
        ("/stream/{id}", "wait", stream),
        ("/requests", "limit", page),
    ):
        (found,) = (each for each in describe.OPERATIONS[path].parameters if each.name == name)
        assert found.schema["default"] == default
        assert found.text.endswith(f": {low} to {high}.")


def test_a_request_that_it_describes_is_accepted() -> None:
    assert f"^{requests._ID.pattern}$" == schemas.ID_PATTERN
    for path in ("/run", "/runsync"):
        requests.job_request(json.dumps(describe.OPERATIONS[path].example).encode())
    known = {field.encode_name for field in msgspec.structs.fields(schemas.NewJob)}
    assert known == {field.encode_name for field in msgspec.structs.fields(requests._Body)}
    known = {field.encode_name for field in msgspec.structs.fields(schemas.Policy)}
    assert known == {field.encode_name for field in msgspec.structs.fields(requests._Policy)}
    requests.openai_request("models", json.dumps(describe.OPERATIONS["/openai/v1/{route}"].example).encode())


def job(status: JobStatus, **fields: Any) -> Job:
    return Job(1, "a", status, b"1", 1_000, **fields)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        *((responses.status_body(job(status)), schemas.Job) for status in JobStatus),
        (
            responses.status_body(
                job(JobStatus.FAILED, output=b"null", error="x", started_ms=1_001, ended_ms=1_002, worker_id="gpu0-1")
            ),
            schemas.Job,
        ),
        (responses.status_body(job(JobStatus.IN_PROGRESS, started_ms=1_001, worker_id="w"), b"[1]"), schemas.Job),
        (responses.accepted_body(job(JobStatus.IN_QUEUE)), schemas.Accepted),
        (responses.state_body(job(JobStatus.CANCELLED)), schemas.Accepted),
        (responses.stream_body(job(JobStatus.IN_PROGRESS), [b"1", b"null"]), schemas.Stream),
        (responses.requests_body([job(JobStatus.IN_QUEUE)], None), schemas.Requests),
        (responses.requests_body([], "7"), schemas.Requests),
    ],
    ids=itertools.count(),  # by their bodies they would have another name in each run: some say how late it is
)
def test_answers_are_as_described(body: bytes, kind: type[msgspec.Struct]) -> None:
    msgspec.json.decode(body, type=kind)
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert set(json.loads(body)) <= known


def test_fields_that_an_answer_always_has_are_required() -> None:
    named = described()["components"]["schemas"]
    assert named["Job"]["required"] == ["id", "status", "delayTime", "retries"]
    assert set(named["WorkerView"]["required"]) == set(named["WorkerView"]["properties"])
    assert named["NewJob"]["required"] == ["input"]
    assert "required" not in named["Policy"] or named["Policy"]["required"] == []


def test_it_is_served_at_the_root(site: Site) -> None:
    answer = site.ask("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == described()
    assert site.ask("GET", "/openapi.json").body == answer.body
    head = site.ask("HEAD", "/openapi.json")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(answer.body)))
    assert site.ask("POST", "/openapi.json").status == 405
    assert site.ask("GET", "/v2/echo/openapi.json").status == 404


def test_a_key_is_needed_where_there_are_keys(make_site: Callable[..., Site]) -> None:
    site = make_site(api_key=("secret",))
    for path in ("/openapi.json", "/docs", "/metrics"):
        assert site.ask("GET", path).status == 401
    answer = site.ask("GET", "/openapi.json", headers={"authorization": "Bearer secret"})
    assert answer.json == described(KEYED)
    assert b"secret" not in answer.body
