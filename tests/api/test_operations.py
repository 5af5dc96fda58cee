from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.errors import RequestError, StoreError
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Site

PREFIXES = ["", "/v2/echo"]
RAN: dict[str, Any] = {"started_ms": 1_700_000_000_005, "ended_ms": 1_700_000_000_012, "worker_id": "gpu0-1"}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_run(site: Site, prefix: str) -> None:
    answer = site.ask("POST", f"{prefix}/run", {"input": {"n": 1}})
    [request] = site.engine.submitted
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"id": request.id, "status": "IN_QUEUE"}
    assert request.input == b'{"n": 1}'


@pytest.mark.parametrize("prefix", PREFIXES)
def test_runsync(make_site: Callable[..., Site], prefix: str) -> None:
    answer = make_site(auto=True).ask("POST", f"{prefix}/runsync?wait=5000", b'{"input": {"n":  1}}')
    assert answer.status == 200
    assert b'"output":{"n":  1}' in answer.body
    assert {**answer.json, "id": ""} == {
        "id": "",
        "status": "COMPLETED",
        "delayTime": 5,
        "executionTime": 7,
        "workerId": "gpu0-1",
        "output": {"n": 1},
        "retries": 0,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/runsync"), ("GET", "/status-sync/a"), ("POST", "/status-sync/a"), ("GET", "/v2/echo/status-sync/a")],
)
def test_waiting_for_the_end(site: Site, method: str, path: str) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(site.ask, method, path, {"input": 1, "id": "a"} if path == "/runsync" else None)
        site.until(lambda: site.engine.waiting > 1)
        assert not asked.done()
        site.call(site.engine.change, "a", status=JobStatus.FAILED, error="no", **RAN)
        assert asked.result().json["error"] == "no"


def test_the_wait_is_clamped_from_below(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.engine.newest_progress["a"] = b'{"step": 1}'
    answer = site.ask("GET", "/status-sync/a?wait=-99999999999999999999")
    assert (answer.status, answer.json["status"], answer.json["output"]) == (200, "IN_PROGRESS", {"step": 1})


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3", "1_000", "%205", "0x10", "%D9%A3"])
@pytest.mark.parametrize("path", ["/runsync", "/status-sync/a", "/stream/a"])
def test_a_wait_that_is_no_integer(site: Site, path: str, text: str) -> None:
    site.call(site.engine.change, "a")
    answer = site.ask("POST", f"{path}?other=1&wait={text}", {"input": 1})
    assert answer.status == 400
    assert answer.error.startswith("wait: expected milliseconds as an integer")
    assert not site.engine.submitted


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_status(site: Site, prefix: str, method: str) -> None:
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED, output=b"[1,  2]", **RAN)
    answer = site.ask(method, f"{prefix}/status/a")
    assert answer.status == 200
    assert b'"output":[1,  2]' in answer.body


def test_progress_is_shown_while_the_job_runs(site: Site) -> None:
    site.engine.newest_progress["a"] = b"42"
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    assert site.ask("GET", "/status/a").json["output"] == 42
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED, **RAN)
    assert "output" not in site.ask("GET", "/status/a").json


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status/no"),
        ("POST", "/status-sync/no"),
        ("GET", "/stream/no"),
        ("POST", "/cancel/no"),
        ("POST", "/retry/no"),
    ],
)
def test_unknown_jobs(site: Site, method: str, path: str) -> None:
    answer = site.ask(method, path)
    assert answer.status == 404
    assert "job 'no' not found" in answer.error


def test_the_same_key_is_the_same_job(site: Site) -> None:
    asked = [
        site.ask("POST", "/run", {"input": n}, {"Idempotency-Key": key}) for n, key in ((1, "k"), (2, "k"), (3, "j"))
    ]
    ids = [answer.json["id"] for answer in asked]
    assert ids[0] == ids[1] != ids[2]
    assert len(site.engine.jobs) == 2


def test_cancel(site: Site) -> None:
    site.call(site.engine.change, "a")
    for body in (None, b"{}", b"anything"):
        assert site.ask("POST", "/cancel/a", body).json == {"id": "a", "status": "CANCELLED"}
    site.call(site.engine.change, "b", status=JobStatus.FAILED)
    assert site.ask("POST", "/v2/echo/cancel/b").json == {"id": "b", "status": "FAILED"}


def test_retry(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.TIMED_OUT, error="too long", **RAN)
    assert site.ask("POST", "/v2/echo/retry/a").json == {"id": "a", "status": "IN_QUEUE"}
    status = site.ask("GET", "/status/a").json
    assert (status["status"], status["retries"], "error" in status) == ("IN_QUEUE", 1, False)
    again = site.ask("POST", "/retry/a")
    assert (again.status, again.error) == (409, "job a is IN_QUEUE")


@pytest.mark.parametrize("body", [None, b"{}"])
def test_purge_queue(site: Site, body: bytes | None) -> None:
    for name, status in {"a": "IN_QUEUE", "b": "IN_PROGRESS", "c": "IN_QUEUE", "d": "FAILED"}.items():
        site.call(site.engine.change, name, status=JobStatus(status))
    assert site.ask("POST", "/v2/echo/purge-queue", body).json == {"removed": 2, "status": "completed"}
    assert site.ask("POST", "/purge-queue", body).json == {"removed": 0, "status": "completed"}
    assert site.ask("GET", "/status/c").json["status"] == "CANCELLED"
    assert site.ask("GET", "/status/b").json["status"] == "IN_PROGRESS"


PAGES = [
    ("", "edcba", None),
    ("?limit=2", "ed", "d"),
    ("?limit=2&after=d", "cb", "b"),
    ("?limit=2&after=b", "a", None),
    ("?limit=5", "edcba", None),
    ("?limit=0", "e", "e"),
    ("?limit=-99999999999999999999", "e", "e"),
    ("?limit=99999999999999999999", "edcba", None),
    ("?status=&limit=&after=", "edcba", None),
    ("?status=COMPLETED", "ec", None),
    ("?status=COMPLETED&limit=1", "e", "e"),
    ("?status=TIMED_OUT", "", None),
]


@pytest.mark.parametrize(("query", "ids", "following"), PAGES)
def test_requests(site: Site, query: str, ids: str, following: str | None) -> None:
    states = {"a": "IN_QUEUE", "b": "FAILED", "c": "COMPLETED", "d": "IN_PROGRESS", "e": "COMPLETED"}
    for name, status in states.items():
        site.call(site.engine.change, name, status=JobStatus(status), started_ms=RAN["started_ms"])
    site.engine.newest_progress["d"] = b'"not in a list"'
    answer = site.ask("GET", f"/v2/echo/requests{query}").json
    assert list(answer) == ["requests", "next"]
    assert ("".join(job["id"] for job in answer["requests"]), answer["next"]) == (ids, following)
    assert not any("input" in job or "output" in job for job in answer["requests"])
    assert all(site.ask("GET", f"/status/{job['id']}").json["status"] == job["status"] for job in answer["requests"])


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        (
            "?status=running",
            400,
            "status: no 'running'; there are: IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED, TIMED_OUT",
        ),
        ("?limit=many", 400, "limit: expected an integer, got 'many'"),
        ("?after=no", 404, "after: no job 'no'"),
    ],
)
def test_requests_that_cannot_be_listed(site: Site, query: str, status: int, said: str) -> None:
    answer = site.ask("GET", f"/requests{query}")
    assert (answer.status, answer.error) == (status, said)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_stream(site: Site, method: str) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.add_chunks, "a", b"1", b'"two"')
    first = site.ask(method, "/stream/a?wait=60000")
    assert first.json == {"status": "IN_PROGRESS", "stream": [{"output": 1}, {"output": "two"}]}
    assert site.ask(method, "/stream/a?wait=0").json == {"status": "IN_PROGRESS", "stream": []}
    site.call(site.engine.add_chunks, "a", b"3")
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED, **RAN)
    assert site.ask(method, "/v2/echo/stream/a").json == {"status": "COMPLETED", "stream": [{"output": 3}]}
    assert site.ask(method, "/stream/a").json == {"status": "COMPLETED", "stream": []}
    site.until(lambda: site.engine.settled == ["confirmed"] * 4)


def test_a_stream_waits_for_its_first_chunk(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(site.ask, "GET", "/stream/a")
        site.until(lambda: site.engine.waiting > 1)
        site.call(site.engine.add_chunks, "a", b"1")
        assert asked.result().json == {"status": "IN_PROGRESS", "stream": [{"output": 1}]}


def test_health(site: Site) -> None:
    for path in ("/health", "/v2/echo/health"):
        assert site.ask("GET", path).json == {
            "jobs": {"completed": 3, "failed": 1, "inProgress": 1, "inQueue": 2, "retried": 1},
            "workers": {"idle": 0, "initializing": 0, "ready": 1, "running": 1, "throttled": 0, "unhealthy": 0},
        }


def test_workers_gpus_and_snapshot(site: Site) -> None:
    [worker] = site.ask("GET", "/workers").json
    assert (worker["slot"], worker["gpuMemoryMiB"], worker["lastRefresh"]) == ("gpu0", None, None)
    assert site.ask("GET", "/v2/echo/gpus").json == []
    assert site.ask("GET", "/snapshot").json["workers"] == [worker]


def test_refresh(site: Site) -> None:
    assert site.ask("POST", "/v2/echo/workers/gpu0/refresh").json == {"slot": "gpu0", "status": "refreshing"}
    assert site.ask("POST", "/workers/gpu0/refresh").status == 409
    unknown = site.ask("POST", "/workers/gpu9/refresh")
    assert (unknown.status, unknown.error) == (404, "no slot 'gpu9'; there are: gpu0")


def test_pause_and_resume(site: Site) -> None:
    assert site.ask("POST", "/workers/gpu0/pause").json == {"slot": "gpu0", "status": "paused"}
    assert site.ask("POST", "/v2/echo/workers/gpu0/resume").json == {"slot": "gpu0", "status": "resumed"}
    assert site.engine.by_hand == ["pause gpu0", "resume gpu0"]
    for word in ("pause", "resume"):
        assert site.ask("POST", f"/workers/gpu9/{word}").status == 404
        assert site.ask("GET", f"/workers/gpu0/{word}").status == 405


def test_stats(site: Site) -> None:
    answer = site.ask("GET", "/v2/echo/stats").json
    assert (answer["uptimeS"], answer["submitted"], answer["jobsPerS"], answer["delayP99"]) == (1.0, 6, 0.5, None)
    assert answer == site.ask("GET", "/snapshot").json["stats"]


def test_probes(site: Site) -> None:
    assert site.ask("HEAD", "/livez").status == 200
    assert site.ask("GET", "/readyz").status == 200
    site.engine.ready = False
    waits = site.ask("GET", "/readyz")
    assert (waits.status, waits.headers["retry-after"], waits.error) == (503, "1", "no worker is ready yet")
    site.engine.draining = True
    assert site.ask("GET", "/readyz").error == "draining"
    assert site.ask("GET", "/livez").status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/run", "POST"),
        ("DELETE", "/status/a", "GET, POST"),
        ("PUT", "/v2/echo/health", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("HEAD", "/stream/a", "GET, POST"),
        ("GET", "/workers/gpu0/refresh", "POST"),
        ("GET", "/purge-queue", "POST"),
        ("POST", "/requests", "GET"),
        ("DELETE", "/logs/a", "GET"),
    ],
)
def test_wrong_methods(site: Site, method: str, path: str, allow: str) -> None:
    answer = site.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    assert method == "HEAD" or answer.error


def test_options_without_cors(site: Site) -> None:
    answer = site.ask("OPTIONS", "/run")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "POST", b"")
    assert site.ask("OPTIONS", "/nowhere").status == 404


def test_unknown_paths(site: Site) -> None:
    answer = site.ask("POST", "/v2/echo/runsyn", {"input": 1})
    assert answer.status == 404
    assert "did you mean /run" in answer.error
    assert "no endpoint 'other'" in site.ask("POST", "/v2/other/run", {"input": 1}).error


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (RequestError(503, "draining", retry_after=7), 503, "7"),
        (RequestError(503, "draining"), 503, "5"),
        (RequestError(429, "the queue is full", retry_after=1), 429, "1"),
        (RequestError(413, "too large"), 413, None),
        (StoreError("the disk is full"), 503, "5"),
    ],
)
def test_what_the_engine_refuses(site: Site, error: Exception, status: int, retry_after: str | None) -> None:
    site.engine.refuse = error
    for path in ("/run", "/runsync"):
        answer = site.ask("POST", path, {"input": 1})
        assert (answer.status, answer.error, answer.headers.get("retry-after")) == (status, str(error), retry_after)
    assert not site.logged


def test_a_bug_ends_one_request_only(site: Site) -> None:
    site.engine.refuse = ZeroDivisionError("secret detail")
    answer = site.ask("POST", "/run", {"input": 1})
    assert answer.status == 500
    assert "secret" not in answer.error
    [logged] = site.logged
    assert logged.startswith("POST /run failed\nTraceback")
    assert "ZeroDivisionError: secret detail" in logged
    site.engine.refuse = None
    assert site.ask("POST", "/run", {"input": 1}).status == 200


def test_many_requests_on_one_connection(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    connection = site.connect()
    for n in range(50):
        body = b"{" if n % 5 == 0 else json.dumps({"input": n}).encode()
        connection.request("POST", "/runsync", body)
        answer = site.read(connection)
        assert answer.status == (400 if n % 5 == 0 else 200)
        assert n % 5 == 0 or answer.json["output"] == n
        connection.request("GET", "/nowhere")
        assert site.read(connection).status == 404
    connection.close()
