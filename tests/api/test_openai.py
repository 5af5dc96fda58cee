from __future__ import annotations

import concurrent.futures
import http.client
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api.openai import errors
from supervisor.cause import Signalled, TtlPassed, WorkerLost
from supervisor.errors import RequestError
from supervisor.job import Job, JobStatus
from supervisor.protocol.wording import words

if TYPE_CHECKING:
    from conftest import Answer, Site

CHAT = "/v2/echo/openai/v1/chat/completions"
ENDED: dict[str, Any] = {"started_ms": 1_700_000_000_005, "ended_ms": 1_700_000_000_012, "worker_id": "gpu0-1"}
COMPLETED: dict[str, Any] = {**ENDED, "status": JobStatus.COMPLETED}


class Asked:
    """A request whose job is under way."""

    def __init__(self, site: Site, path: str, body: object, headers: dict[str, str] | None = None) -> None:
        self._site = site
        self._connection = site.connect()
        data = None if body is None else json.dumps(body)
        others = site.engine.waiting
        self._connection.request("GET" if body is None else "POST", path, data, headers or {})
        site.until(lambda: site.engine.waiting > others + 1)
        self.job: str = site.engine.submitted[-1].id

    def chunks(self, *values: object) -> None:
        self._site.call(self._site.engine.add_chunks, self.job, *(encoded(value) for value in values))

    def change(self, **changes: Any) -> None:
        self._site.call(self._site.engine.change, self.job, **changes)

    def answer(self) -> Answer:
        return self._site.read(self._connection)

    def begun(self) -> http.client.HTTPResponse:
        """The answer once it has begun."""
        return self._connection.getresponse()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def ask(site: Site) -> Iterator[Callable[..., Asked]]:
    asked: list[Asked] = []

    def make(body: object, path: str = CHAT, headers: dict[str, str] | None = None) -> Asked:
        asked.append(Asked(site, path, body, headers))
        return asked[-1]

    yield make
    for each in asked:
        each.close()


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- the way in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "given"),
    [
        ("/openai/v1/models", None, '{"openai_route":"/v1/models"}'),
        ("/v2/echo/openai/v1/models/a/b?limit=1", None, '{"openai_route":"/v1/models/a/b"}'),
        ("/openai/v1/x%22%C3%BC", None, '{"openai_route":"/v1/x\\"ü"}'),
        (CHAT, {"a": "ü"}, '{"openai_route":"/v1/chat/completions","openai_input":{"a": "\\u00fc"}}'),
        (CHAT, {"stream": None}, '{"openai_route":"/v1/chat/completions","openai_input":{"stream": null}}'),
    ],
)
def test_job(site: Site, ask: Callable[..., Asked], path: str, body: object, given: str) -> None:
    asked = ask(body, path)
    [request] = site.engine.submitted
    assert request.input.decode() == given
    assert request.generated
    asked.change(output=b'[{"id":"c"}]', **COMPLETED)
    answer = asked.answer()
    assert (answer.status, answer.body) == (200, b'{"id":"c"}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == asked.job


def test_post_without_a_body(make_site: Callable[..., Site]) -> None:
    answer = make_site(auto=True).ask("POST", "/openai/v1/responses/a/cancel")
    assert answer.json == {"openai_route": "/v1/responses/a/cancel", "openai_input": {}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "must be a JSON object"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": tru}', "invalid JSON"),
        (b"--boundary\r\n", "invalid JSON"),
        (b'{},"webhook":"http://a"', "invalid JSON"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"stream": "yes"}', "stream: expected true or false"),
    ],
)
def test_bodies_refused(site: Site, body: bytes, said: str) -> None:
    answer = site.ask("POST", CHAT, body)
    assert answer.status == 400
    assert said in answer.json["error"]["message"]
    assert {**answer.json["error"], "message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert not site.engine.submitted


@pytest.mark.parametrize(
    ("options", "method", "path", "refuse", "status", "kind"),
    [
        ({"api_key": ("k",)}, "GET", "/openai/v1/models", None, 401, "authentication_error"),
        ({"max_body": 10}, "POST", CHAT, None, 413, "invalid_request_error"),
        ({}, "GET", "/openai/v2/models", None, 404, "not_found_error"),
        ({}, "GET", "/v2/other/openai/v1/models", None, 404, "not_found_error"),
        ({}, "DELETE", "/openai/v1/models/a", None, 405, "invalid_request_error"),
        ({}, "POST", CHAT, RequestError(429, "full", 1), 429, "rate_limit_error"),
        ({}, "POST", CHAT, RequestError(503, "draining", 5), 503, "server_error"),
        ({}, "POST", CHAT, KeyError("bug"), 500, "server_error"),
    ],
)
def test_refusals(
    make_site: Callable[..., Site],
    options: dict[str, Any],
    method: str,
    path: str,
    refuse: Exception | None,
    status: int,
    kind: str,
) -> None:
    site = make_site(**options)
    site.engine.refuse = refuse
    answer = site.ask(method, path, {"model": "longer than that"} if method == "POST" else None)
    assert answer.status == status
    assert list(answer.json["error"]) == ["message", "type", "param", "code"]
    assert answer.json["error"]["type"] == kind
    assert ("retry-after" in answer.headers) == (status in (429, 503))


# --- one result ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "chunks", "body", "content_type"),
    [
        ({"id": "a"}, [], b'{"id":"a"}', "application/json"),
        ([], [{"id": "a"}], b'{"id":"a"}', "application/json"),
        ([], [{"a": 1}, {"a": 2}], b'[{"a":1},{"a":2}]', "application/json"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}], b'[{"a":1},{"a":2}]', "application/json"),
        ([], ["x"] * 600, b"x" * 600, "text/plain; charset=utf-8"),
        (['{"a":', '"ü"}'], ['{"a":', '"ü"}'], '{"a":"ü"}'.encode(), "application/json"),
        (["Grüße, ", "12"], [], "Grüße, 12".encode(), "text/plain; charset=utf-8"),
        ("12", [], b"12", "text/plain; charset=utf-8"),
        ({"object": "response", "error": {"message": "no", "code": 400}}, [], None, "application/json"),
        (None, [], b"null", "application/json"),
    ],
)
def test_results(ask: Callable[..., Asked], output: object, chunks: list[Any], body: bytes, content_type: str) -> None:
    asked = ask({"model": "m"})
    asked.chunks(*chunks)
    asked.change(output=encoded(output), **COMPLETED)
    answer = asked.answer()
    assert answer.status == 200
    assert answer.body == (encoded(output) if body is None else body)
    assert answer.headers["content-type"] == content_type


@pytest.mark.parametrize("output", [None, b"[]"])
@pytest.mark.parametrize("stream", [False, True])
def test_no_result(ask: Callable[..., Asked], stream: bool, output: bytes | None) -> None:
    asked = ask({"stream": stream})
    asked.change(output=output, **COMPLETED)
    answer = asked.answer()
    assert answer.status == 500
    assert "without a result" in answer.json["error"]["message"]


RAISED = {"error_type": "<class 'ValueError'>", "error_message": "no such thing", "error_traceback": "secret/path.py"}
NOT_FOUND = {"message": "no m", "type": "NotFoundError", "param": "model", "code": 404}
ERROR = encoded({"error": NOT_FOUND}).decode()
LOST = WorkerLost("gpu0", 41, Signalled(9), ("the server answered with HTTP 404", json.dumps(NOT_FOUND)))

FAILURES: list[tuple[str, dict[str, Any]]] = [
    (json.dumps(NOT_FOUND), {"status": 404, **NOT_FOUND}),
    (json.dumps({"error": NOT_FOUND}), {"status": 404, **NOT_FOUND}),
    (json.dumps({"object": "error", **NOT_FOUND}), {"status": 404, **NOT_FOUND}),
    ('{"message": "a", "code": "429"}', {"status": 429, "type": "rate_limit_error", "code": "429"}),
    ('{"message": "a", "code": "model_not_found"}', {"status": 404, "code": "model_not_found"}),
    ('{"message": "a", "type": "BadRequestError"}', {"status": 400, "type": "BadRequestError"}),
    ('{"message": "a", "code": 200}', {"status": 500, "type": "server_error", "code": 200, "final": True}),
    ('{"message": "a", "code": 600}', {"status": 500, "final": True}),
    ('{"message": "a", "code": true, "param": []}', {"status": 500, "param": None}),
    ('vLLM returned HTTP 400: {"error": {}}', {"status": 400, "type": "invalid_request_error"}),
    ("Request to /v1/models failed with status 404", {"status": 404, "type": "not_found_error"}),
    ("it took 404 s", {"status": 500, "message": "it took 404 s", "type": "server_error", "final": True}),
    (json.dumps(RAISED), {"status": 500, "message": "ValueError: no such thing", "final": True}),
    ("{}", {"status": 500, "message": "{}"}),
    ("[1]", {"status": 500, "message": "[1]"}),
    ('{"error": ' * 400 + "1" + "}" * 400, {"status": 500}),
    ("", {"status": 500, "message": "the job failed"}),
]


@pytest.mark.parametrize(("error", "expected"), FAILURES)
def test_failures(error: str, expected: dict[str, Any]) -> None:
    failure = errors.of_job(Job(0, "a", JobStatus.FAILED, b"null", 0, error=error))
    assert {name: getattr(failure, name) for name in expected} == expected
    assert list(json.loads(failure.body)["error"]) == ["message", "type", "param", "code"]


@pytest.mark.parametrize(
    ("end", "status", "message", "asks_again"),
    [
        ({"status": JobStatus.FAILED, "error": json.dumps(NOT_FOUND)}, 404, "no m", True),
        ({"status": JobStatus.FAILED, "cause": LOST}, 500, words(LOST), False),
        ({"status": JobStatus.TIMED_OUT, "cause": TtlPassed()}, 504, words(TtlPassed()), False),
        ({"status": JobStatus.CANCELLED}, 499, "the job was cancelled", False),
        ({"status": JobStatus.COMPLETED, "output": encoded({"object": "error", **NOT_FOUND})}, 404, "no m", True),
        ({"status": JobStatus.COMPLETED, "output": encoded([json.dumps({"error": NOT_FOUND})])}, 404, "no m", True),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_job_that_fails(
    ask: Callable[..., Asked], stream: bool, end: dict[str, Any], status: int, message: str, asks_again: bool
) -> None:
    asked = ask({"stream": stream})
    asked.change(**{**ENDED, **end})
    answer = asked.answer()
    assert (answer.status, answer.json["error"]["message"]) == (status, message)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == asked.job
    assert answer.headers.get("x-should-retry") == (None if asks_again else "false")


# --- streams ------------------------------------------------------------------------------------------------------------------

STREAMS: list[tuple[list[Any], str]] = [
    (["data: 1\n\n", "data: [DONE]\n\n"], "data: 1\n\ndata: [DONE]\n\n"),
    (["da", "ta: ü", "\n", "\ndata: 🚢\n\nda", "ta: [DONE]\n\n"], "data: ü\n\ndata: 🚢\n\ndata: [DONE]\n\n"),
    (["event: a\r\n", "data: 1\r\n\r\n"], "event: a\r\ndata: 1\r\n\r\n"),
    (["Hello", " world"], "Hello world"),
    ([{"a": "ü\n"}, {"b": 2}], 'data: {"a":"ü\\n"}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'),
    ([[{"a": 1}, {"b": 2}], [{"c": 3}]], 'data: {"a":1}\n\ndata: {"b":2}\n\ndata: {"c":3}\n\ndata: [DONE]\n\n'),
    ([["data: 1\n\n", "data: 2\n\n"]], "data: 1\n\ndata: 2\n\n"),
    (["data: 1", {"a": 1}], 'data: 1\n\ndata: {"a":1}\n\ndata: [DONE]\n\n'),
    (["data: 1\n", {"a": 1}], 'data: 1\n\ndata: {"a":1}\n\ndata: [DONE]\n\n'),
    ([{"a": 1}, "data: [DONE]\n\n"], 'data: {"a":1}\n\ndata: [DONE]\n\n'),
    ([{"a": 1}, {"object": "error", **NOT_FOUND}], f'data: {{"a":1}}\n\ndata: {ERROR}\n\ndata: [DONE]\n\n'),
    ([f"data: {number}\n\n" for number in range(600)], "".join(f"data: {number}\n\n" for number in range(600))),
]


@pytest.mark.parametrize(("chunks", "text"), STREAMS)
def test_streams(ask: Callable[..., Asked], chunks: list[Any], text: str) -> None:
    asked = ask({"stream": True})
    asked.chunks(*chunks)
    asked.change(output=b"[]", **COMPLETED)
    answer = asked.answer()
    assert answer.status == 200
    assert answer.body.decode() == text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-request-id"] == asked.job
    assert answer.headers["cache-control"] == "no-store"


def test_chunks_come_as_they_come(site: Site, ask: Callable[..., Asked]) -> None:
    asked = ask({"stream": True})
    asked.chunks("data: 1\n\nda")
    response = asked.begun()
    assert response.read1() == b"data: 1\n\n"
    asked.chunks("ta: 2\n\n")
    assert response.read1() == b"data: 2\n\n"
    asked.change(output=b"[]", **COMPLETED)
    assert response.read() == b""
    assert not site.engine.abandoned


@pytest.mark.parametrize(
    ("chunk", "before"),
    [
        ({"a": 1}, 'data: {"a":1}\n\n'),
        ("data: 1\n\n", "data: 1\n\n"),
        ("data: 1\n\ndata: {half of", "data: 1\n\n"),
        ("event: a\ndata: {half of", "event: a\n\n"),
    ],
)
def test_stream_that_breaks_off(ask: Callable[..., Asked], chunk: object, before: str) -> None:
    """What follows the error is an event of its own, and what it interrupts is none."""
    asked = ask({"stream": True})
    asked.chunks(chunk)
    asked.change(status=JobStatus.FAILED, error=json.dumps(NOT_FOUND), **ENDED)
    assert asked.answer().body.decode() == f"{before}data: {ERROR}\n\n"


@pytest.mark.parametrize("change", [{"retries": 1}, None])
def test_stream_of_a_job_that_began_anew_or_is_no_more(
    site: Site, ask: Callable[..., Asked], change: dict[str, Any] | None
) -> None:
    asked = ask({"stream": True})
    asked.chunks("data: 1\n\n")
    response = asked.begun()
    assert response.read1() == b"data: 1\n\n"
    if change is None:
        site.call(site.engine.forget, asked.job)
    else:
        asked.change(**change)
        asked.chunks("data: of another attempt\n\n")
    text = response.read().decode()
    assert json.loads(text.removeprefix("data: "))["error"]["type"] == "server_error"
    assert site.engine.abandoned == [asked.job]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"id": "a"}, 'data: {"id":"a"}\n\ndata: [DONE]\n\n'),
        (["data: 1\n\n", "data: [DONE]\n\n"], "data: 1\n\ndata: [DONE]\n\n"),
        ("data: 1\n\n", "data: 1\n\n"),
    ],
)
def test_handler_that_does_not_stream(ask: Callable[..., Asked], output: object, text: str) -> None:
    asked = ask({"stream": True})
    asked.change(output=encoded(output), **COMPLETED)
    assert asked.answer().body.decode() == text


@pytest.mark.parametrize(
    "first",
    [f"data: {ERROR}\n\ndata: [DONE]\n\n", json.dumps({"object": "error", **NOT_FOUND})],
)
def test_error_as_the_first_event(ask: Callable[..., Asked], first: str) -> None:
    asked = ask({"stream": True})
    asked.chunks(first)
    answer = asked.answer()
    assert (answer.status, answer.json) == (404, {"error": NOT_FOUND})


# --- a client that leaves, and a server that stops ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "chunks", "headers"),
    [
        ({}, [], {}),
        ({"stream": True}, [], {}),
        ({"stream": True}, ["data: 1\n\n"], {}),
        ({"stream": True}, ["data: 1\n\n"], {"idempotency-key": "mine"}),
        ({}, [], {"idempotency-key": "mine"}),
    ],
)
def test_client_that_leaves(
    site: Site, ask: Callable[..., Asked], body: object, chunks: list[str], headers: dict[str, str]
) -> None:
    asked = ask(body, headers=headers)
    asked.chunks(*chunks)
    response = asked.begun() if chunks else None
    if response is not None:
        assert response.read1() == b"data: 1\n\n"
        response.close()
    asked.close()
    if headers:
        asked.change(output=b'{"id":"a"}', **COMPLETED)
        site.until(lambda: site.engine.waiting == 1)
        assert not site.engine.abandoned
        again = site.ask("POST", CHAT, {}, headers)
        assert again.headers["x-request-id"] == asked.job
    else:
        site.until(lambda: site.engine.abandoned == [asked.job])
        assert not site.logged


def test_server_that_stops(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(site.ask, "POST", CHAT, {})
        site.until(lambda: site.engine.waiting > 1)
        job = site.engine.submitted[-1].id
        streaming = Asked(site, CHAT, {"stream": True})
        streaming.chunks("data: 1\n\n")
        response = streaming.begun()
        assert response.read1() == b"data: 1\n\n"
        site.do(site.server.stop(0.1))
        answer = waiting.result()
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        streaming.close()
    assert sorted(site.engine.abandoned) == sorted([job, streaming.job])
