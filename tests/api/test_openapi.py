"""The description against the table, the parsers and the answers that it describes; `tests/e2e` holds it to a running server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api import operations
from supervisor.api.docs.openapi import EXAMPLES, FORBIDDEN, UNAUTHORIZED, document
from supervisor.api.operations import ROUTES
from supervisor.protocol import requests
from supervisor.protocol.requests import NewJob, OpenAIRequest
from tests import described

if TYPE_CHECKING:
    from conftest import Site


def described_to(guard: int | None = FORBIDDEN) -> Any:
    return document(ROUTES, "echo", guard)


def each_operation(guard: int | None = FORBIDDEN) -> list[tuple[str, str, Any]]:
    return [
        (path, method, operation)
        for path, item in described_to(guard)["paths"].items()
        for method, operation in item.items()
        if method != "servers"
    ]


def test_every_route_is_described_and_nothing_else_is() -> None:
    paths = {(path, method.upper()) for path, method, _ in each_operation()}
    assert paths == {(route.path, method) for route in ROUTES for method in route.methods}
    for _, _, operation in each_operation():
        assert operation["summary"]
        assert operation["description"]


@pytest.mark.parametrize("guard", [UNAUTHORIZED, FORBIDDEN, None])
def test_it_is_openapi(guard: int | None) -> None:
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="the validator of OpenAPI documents is not installed"
    )
    validator.validate(described_to(guard))


def test_it_is_always_the_same() -> None:
    assert json.dumps(described_to()) == json.dumps(described_to())


def test_without_docstrings_it_describes_nothing_else() -> None:
    """``python -OO`` removes ours, but not those of the libraries whose classes ours are made of."""
    code = (
        "import json; from supervisor.api.docs.openapi import document; from supervisor.api.operations import ROUTES; "
        "print(json.dumps(document(ROUTES, 'echo', 403)))"
    )
    ran = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True, timeout=50)
    bare = json.loads(ran.stdout)
    for path, method, operation in each_operation():
        described = bare["paths"][path][method]["responses"]["200"]["description"]
        assert described in ("", operation["responses"]["200"]["description"])


def test_names_are_used_once_and_links_lead_to_them() -> None:
    names = [operation["operationId"] for _, _, operation in each_operation()]
    assert len(names) == len(set(names))
    by_name = {operation["operationId"]: operation for _, _, operation in each_operation()}
    for _, _, operation in each_operation():
        for link in operation["responses"]["200"].get("links", {}).values():
            target = by_name[link["operationId"]]
            assert set(link["parameters"]) == {each["name"] for each in target["parameters"] if each["in"] == "path"}


def test_keys_are_part_of_it_where_there_are_some() -> None:
    assert "security" not in described_to()
    assert "securitySchemes" not in described_to()["components"]
    assert described_to(UNAUTHORIZED)["security"] == [{"bearer": []}]
    for path, _, operation in each_operation(UNAUTHORIZED):
        is_open = path in ("/livez", "/readyz")
        assert (operation.get("security") == []) is is_open
        assert ("401" in operation["responses"]) is not is_open
        assert "403" not in operation["responses"]
    for path, _, operation in each_operation():
        assert ("403" in operation["responses"]) is (path not in ("/livez", "/readyz"))
        assert "401" not in operation["responses"]


def test_what_takes_a_body_says_so() -> None:
    for path, method, operation in each_operation():
        if "requestBody" in operation:
            assert method == "post"
            assert {"400", "413"} <= set(operation["responses"]), path
    assert {path for path, _, each in each_operation() if "requestBody" in each} == {
        route.path for route in ROUTES if route.body is not None
    }


def test_refusals_have_the_headers_that_go_with_them() -> None:
    for _, _, operation in each_operation(UNAUTHORIZED):
        for status, response in operation["responses"].items():
            assert ("retry-after" in response.get("headers", {})) is (status in ("429", "503"))
            assert ("www-authenticate" in response.get("headers", {})) is (status == "401")


def test_numbers_are_those_of_the_code() -> None:
    job, stream, page = operations._JOB_WAIT_MS, operations._STREAM_WAIT_MS, operations._LIMITS
    found = {(path, each["name"]): each for path, _, operation in each_operation() for each in operation["parameters"]}
    for where, (default, low, high) in (
        (("/runsync", "wait"), job),
        (("/status-sync/{id}", "wait"), job),
        (("/stream/{id}", "wait"), stream),
        (("/requests", "limit"), page),
    ):
        assert found[where]["schema"]["default"] == default
        assert found[where]["description"].endswith(f": {low} to {high}.")


def test_a_request_that_it_shows_is_accepted() -> None:
    requests.job_request(json.dumps(EXAMPLES[NewJob]).encode())
    requests.openai_request("models", json.dumps(EXAMPLES[OpenAIRequest]).encode())


def test_fields_that_an_answer_always_has_are_required() -> None:
    named = described_to()["components"]["schemas"]
    assert named["Job"]["required"] == ["id", "status", "delayTime", "retries"]
    assert set(named["WorkerView"]["required"]) == set(named["WorkerView"]["properties"])
    assert named["NewJob"]["required"] == ["input"]
    assert not named["Policy"].get("required")
    assert named["Job"]["properties"]["error"]["type"] == "string"  # never null: runpod's Go client


def test_it_is_served_at_the_root(site: Site) -> None:
    answer = site.ask("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == described_to()
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
    assert answer.json == described_to(UNAUTHORIZED)
    assert b"secret" not in answer.body


# --- what holds the answers of all tests to it ------------------------------------------------------------------------------

KIND = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "status", "headers", "body", "said"),
    [
        ("POST", "/v2/echo/run", 200, KIND, b'{"id":"a","status":"IN_QUEUE"}', None),
        ("POST", "/run", 200, KIND, b'{"id":"a","status":"LOST"}', "status"),
        ("POST", "/run", 200, KIND, b'{"id":"a","status":"IN_QUEUE","more":1}', "more"),
        ("GET", "/status/a", 200, KIND, b'{"id":"a","status":"IN_QUEUE","delayTime":1.5,"retries":0}', "delayTime"),
        ("POST", "/run", 201, KIND, b"{}", "not described"),
        ("GET", "/workers", 409, KIND, b'{"error":"x"}', "not described"),
        ("GET", "/workers", 404, KIND, b'{"error":"x"}', "not described"),
        ("GET", "/v2/other/workers", 404, KIND, b'{"error":"x"}', None),
        ("GET", "/nothing", 404, KIND, b'{"error":1}', "error"),
        ("GET", "/nothing", 200, KIND, b"{}", "not described"),
        ("POST", "/run", 429, KIND, b'{"error":"x"}', "retry-after"),
        ("GET", "/metrics", 200, KIND, b"{}", "is application/json"),
        ("POST", "/openai/v1/a/b", 418, KIND, b'{"error":"x"}', "error"),
        ("HEAD", "/livez", 200, KIND, b"{}", "body"),
    ],
)
def test_answers_are_held_to_it(
    method: str, path: str, status: int, headers: dict[str, str], body: bytes, said: str | None
) -> None:
    fault = described.fault(method, path, status, headers, body)
    assert fault is None if said is None else fault is not None and said in fault
