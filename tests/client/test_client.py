"""The client: which address a URL means, what it asks, and what it says when there is no answer or a bad one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.client.address import Address
from supervisor.client.client import Client
from supervisor.errors import ClientError, UnreachableError, UsageError
from supervisor.job import JobStatus
from supervisor.protocol.answers import Accepted, Health
from supervisor.protocol.views import (
    GpuView,
    JobCounts,
    LogLine,
    RunningJobView,
    Snapshot,
    Stats,
    WorkerCounts,
    WorkerView,
)

SNAPSHOT = Snapshot(
    at=1_790_000_000_000,
    version="0.1.0",
    endpoint_id="e",
    handler="h.py",
    pid=1,
    url=None,
    draining=False,
    jobs=JobCounts(completed=3, in_queue=2),
    workers=(WorkerView("gpu0-1", "gpu0", (0, "MIG-x"), "busy", 7, 1, 3, 0, 0, ("a",), 812),),
    gpus=(GpuView(0, "GPU-x", "NVIDIA H200", slots=("gpu0",), memory_used_mib=812),),
    running=(
        RunningJobView("a", "gpu0", 1_790_000_000_000, 1, msgspec.Raw(b'{"percent":62}')),
        RunningJobView("b", "gpu0", 1_790_000_000_000, 1),
    ),
    ended=(),
    log=(LogLine(1_790_000_000_000, "a line"),),
    stats=Stats(1.5, 3, 3, 0.5),
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", Address("http://127.0.0.1:8000", "127.0.0.1", 8000)),
        ("http://h:1/", Address("http://h:1/", "h", 1)),
        ("http://h", Address("http://h", "h", 80)),
        ("https://h", Address("https://h", "h", 443, tls=True)),
        ("localhost:8000", Address("http://localhost:8000", "localhost", 8000)),
        ("http://h:1/v2/my_handler", Address("http://h:1/v2/my_handler", "h", 1, prefix="/v2/my_handler")),
        ("http://h:1/v2/my_handler/", Address("http://h:1/v2/my_handler/", "h", 1, prefix="/v2/my_handler")),
        ("http://h:1/v2", Address("http://h:1/v2", "h", 1)),
        ("http://h:1/behind/proxy/v2/", Address("http://h:1/behind/proxy/v2/", "h", 1, prefix="/behind/proxy")),
        ("http://h:1/v2/a b", Address("http://h:1/v2/a b", "h", 1, prefix="/v2/a%20b")),
        ("http://[::1]:8000", Address("http://[::1]:8000", "::1", 8000)),
        ("unix:///run/s.sock", Address("unix:///run/s.sock", "localhost", 0, socket="/run/s.sock")),
        ("unix:///a%20b.sock", Address("unix:///a%20b.sock", "localhost", 0, socket="/a b.sock")),
    ],
)
def test_urls(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["", "ftp://h", "http://", "http://h:x", "http://h:99999", "unix://relative", "http://[x"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match=r"URL|socket"):
        Client(url)


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_snapshot_comes_back_as_it_was(over: str, answers: Any, request: pytest.FixtureRequest) -> None:
    answers.body = msgspec.json.encode(SNAPSHOT)
    client = Client(request.getfixturevalue(over))
    assert client.snapshot() == SNAPSHOT
    assert client.snapshot().running[0].progress == msgspec.Raw(b'{"percent":62}')
    method, path, headers, _ = answers.heard.get(timeout=20)
    assert (method, path) == ("GET", "/snapshot")
    assert headers["Host"].startswith("127.0.0.1:" if over == "tcp" else "localhost")
    assert "Authorization" not in headers


def test_what_it_asks(answers: Any, tcp: str) -> None:
    client = Client(f"{tcp}/v2/my_handler", api_key="a key")
    answers.body = b'{"slot": "gpu0.1", "status": "refreshing"}'
    assert client.order("gpu0.1", "refresh").status == "refreshing"
    method, path, headers, body = answers.heard.get(timeout=20)
    assert (method, path, body) == ("POST", "/v2/my_handler/workers/gpu0.1/refresh", b"")
    assert headers["Authorization"] == "Bearer a key"
    answers.body = b'{"id": "a/b", "status": "CANCELLED"}'
    assert client.cancel("a/b") == Accepted("a/b", JobStatus.CANCELLED)
    assert answers.heard.get(timeout=20)[1] == "/v2/my_handler/cancel/a%2Fb"
    answers.body = msgspec.json.encode(Health(JobCounts(completed=1), WorkerCounts(idle=2)))
    assert client.ask("GET", "/health", Health).workers.idle == 2
    answers.body = b'{"id": "x", "status": "IN_QUEUE"}'
    client.ask("POST", "/run", Accepted, b'{"input": 1}')
    *_, headers, body = list(answers.heard.queue)[-1]
    assert (headers["Content-Type"], body) == ("application/json", b'{"input": 1}')


def test_a_body_that_goes_on_can_be_read_line_by_line(answers: Any, unix: str) -> None:
    answers.body = b"one\ntwo\n"
    with Client(unix).open("GET", "/logs/x") as response:
        assert list(response) == [b"one\n", b"two\n"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            401,
            b'{"error": "missing or invalid API key"}',
            "wants a key: give the right one with --api-key or SUPERVISE_API_KEY",
        ),
        (404, b'{"error": "no job \'x\'"}', "no job 'x' (HTTP 404)"),
        (404, b"<html>", "knows no /snapshot; is it a supervisor"),
        (503, b'{"error": "draining"}', "draining (HTTP 503)"),
        (502, b"", "Bad Gateway (HTTP 502)"),
        (302, b"", "Found (HTTP 302)"),
        (299, b"{}", "answered something unexpected"),
        (200, b"not json", "answered something unexpected"),
        (200, b"\xff", "answered something unexpected"),
    ],
)
def test_an_answer_that_is_none(answers: Any, tcp: str, status: int, body: bytes, words: str) -> None:
    answers.status, answers.body = status, body
    with pytest.raises(ClientError) as raised:
        Client(tcp).snapshot()
    assert words in str(raised.value)
    assert tcp in str(raised.value)
    assert not isinstance(raised.value, UnreachableError)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as stale:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        stale.bind(str(tmp_path / "stale.sock"))
        urls = (
            f"http://127.0.0.1:{taken.getsockname()[1]}",
            f"unix://{tmp_path}/stale.sock",
            f"unix://{tmp_path}/no.sock",
        )
        for url in urls:
            with pytest.raises(UnreachableError) as raised:
                Client(url).snapshot()
            assert f"no supervisor answers at {url}; start one with: supervise HANDLER" in str(raised.value)


def test_no_answer_in_time(answers: Any, unix: str) -> None:
    answers.hold.clear()
    with pytest.raises(ClientError, match=r"did not answer within 0\.05 s") as raised:
        Client(unix, timeout=0.05).snapshot()
    assert not isinstance(raised.value, UnreachableError)


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"]
)
def test_something_else_answers(answers: Any, tcp: str, raw: bytes) -> None:
    answers.raw = raw
    with pytest.raises(ClientError, match=r"does not speak HTTP as a supervisor does|cannot talk to"):
        Client(tcp).snapshot()


def test_a_host_that_does_not_exist() -> None:
    for url in ("http://no-such-host.invalid", f"http://{'x' * 300}"):
        with pytest.raises(ClientError, match="cannot talk to"):
            Client(url).snapshot()


def test_a_key_that_cannot_be_sent() -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        Client("http://h", api_key="one\r\nX-Other: two")
