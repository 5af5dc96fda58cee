"""Following a job: server-sent events that are resumed, a supervisor that is away for a while, lists that come by pages."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from supervisor.client import client as module
from supervisor.client.client import Client
from supervisor.errors import ClientError, RefusedError, UnreachableError, UsageError
from supervisor.job import JobStatus
from supervisor.protocol.sse import EventParser, ServerSentEvent

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
END = b'event: end\ndata: {"status":"COMPLETED"}\n\n'


def chunked(*parts: bytes) -> bytes:
    """An answer in chunks whose last word is missing: the connection broke."""
    head = HEAD.replace(b"Connection", b"Transfer-Encoding: chunked\r\nConnection")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def job(status: str) -> bytes:
    return answer(b'{"id":"j","status":"%b","delayTime":1,"retries":0}' % status.encode())


class Scripted:
    """A server that gives each connection the next of its answers, and is gone after the last."""

    def __init__(self, host: str, answers: Sequence[bytes]) -> None:
        self.heard: list[str] = []
        self._answers = answers
        self._listener = socket.create_server((host, 0))
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with self._listener:
            for text in self._answers:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as reader:
                    head = "".join(line.decode() for line in iter(reader.readline, b"\r\n"))
                    length = re.search(r"^Content-Length: (\d+)", head, re.MULTILINE)
                    reader.read(int(length[1]) if length else 0)  # who closes with something unread resets
                    self.heard.append(head)
                    connection.sendall(text)


Script = Callable[..., contextlib.AbstractContextManager[Scripted]]


@pytest.fixture
def scripted(own_host: str) -> Script:
    """``scripted(*answers)``: a server for a with-statement."""

    @contextlib.contextmanager
    def serve(*answers: bytes) -> Iterator[Scripted]:
        server = Scripted(own_host, answers)
        yield server
        server.thread.join(20)
        assert not server.thread.is_alive(), "not all was asked for"

    return serve


class Clock:
    """Time that passes only for who sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The client's."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


# --- server-sent events -------------------------------------------------------------------------------------------------

EVENTS = (
    b': ping\n\nid: 0\ndata: {"a":1}\n\nretry: 1000\n\ndata: one\ndata:two\ndata\n\n'
    b"unknown: x\nid: 7\nevent: end\ndata: \xc3\xa9\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_come_whole_however_they_are_cut(size: int) -> None:
    parser = EventParser()
    pieces = [EVENTS[at : at + size] for at in range(0, len(EVENTS), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == [
        ServerSentEvent(b'{"a":1}', "", "0"),
        ServerSentEvent(b"one\ntwo\n", "", None),
        ServerSentEvent("é".encode(), "end", "7"),
    ]


@pytest.mark.parametrize("framed", [lambda *parts: HEAD + b"".join(parts), chunked])
def test_a_stream_that_breaks_is_resumed_behind_its_last_event(scripted: Script, framed: object) -> None:
    assert callable(framed)
    first = framed(b"retry: 1000\n\n", b'id: 0\ndata: {"output":1}\n\n', b'id: 1\ndata: {"out')
    second = framed(b'id: 1\ndata: {"output":2}\n\n', END)
    with scripted(first, answer(b"", "503 Service Unavailable"), second) as server:
        chunks = list(Client(server.url).chunks("a/b"))
    assert chunks == [b'{"output":1}', b'{"output":2}']
    assert all(heard.startswith("GET /stream/a%2Fb HTTP") for heard in server.heard)
    assert all("Accept: text/event-stream\r\n" in heard for heard in server.heard)
    assert ["Last-Event-ID: 0\r\n" in heard for heard in server.heard] == [False, True, True]


def test_a_log_is_followed_to_its_end(scripted: Script) -> None:
    with scripted(HEAD + b"id: 8\ndata: one\ndata: two\n\n", HEAD + END) as server:
        assert list(Client(server.url).follow_log("j")) == [b"one\ntwo\n"]
    assert server.heard[1].startswith("GET /logs/j?follow=1 ")


def test_what_fails_at_once_is_said_at_once(scripted: Script, clock: Clock) -> None:
    with scripted(answer(b'{"error": "no job"}', "404 Not Found")) as server, pytest.raises(RefusedError) as raised:
        list(Client(server.url).chunks("j"))
    assert raised.value.status == 404
    with pytest.raises(UnreachableError):
        list(Client(server.url).chunks("j"))
    with scripted(HEAD) as server, pytest.raises(ClientError, match="broke off"):
        list(Client(server.url).chunks("j"))
    assert clock.now == 0


def test_a_job_that_was_forgotten_meanwhile(scripted: Script) -> None:
    with scripted(HEAD + b"retry: 1\n\n", answer(b"{}", "404 Not Found")) as server, pytest.raises(RefusedError):
        list(Client(server.url).chunks("j"))


def test_a_supervisor_that_does_not_come_back(scripted: Script, clock: Clock) -> None:
    with scripted(HEAD + b'id: 0\ndata: {"output":1}\n\n') as server:
        chunks = Client(server.url).chunks("j")
        assert next(chunks) == b'{"output":1}'
        with pytest.raises(UnreachableError):
            next(chunks)
    assert clock.now == module.PATIENCE_S


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_job_is_watched_to_its_end_over_a_break(scripted: Script) -> None:
    answers = [job("IN_QUEUE"), job("IN_PROGRESS"), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", job("COMPLETED")]
    with scripted(*answers) as server:
        views = list(Client(server.url).watch("j", 2))
    assert [view.status.value for view in views] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert bytes(views[-1].text) == answers[-1].partition(b"\r\n\r\n")[2]
    assert [heard.split()[1] for heard in server.heard] == ["/status/j", *["/status-sync/j?wait=2000"] * 3]


def test_a_job_whose_supervisor_does_not_come_back(scripted: Script, clock: Clock) -> None:
    with scripted(job("IN_QUEUE")) as server, pytest.raises(UnreachableError):
        list(Client(server.url, timeout=20).watch("j", 1))
    assert clock.now == 1 + 20 + module.PATIENCE_S


# --- lists and orders -------------------------------------------------------------------------------------------------


def test_jobs_come_by_pages(scripted: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    item = b'{"id":"%d","status":"FAILED","delayTime":0,"executionTime":1,"workerId":"","error":"x","retries":0}'
    first = answer(b'{"requests":[%b,%b],"next":"1"}' % (item % 0, item % 1))
    last = answer(b'{"requests":[%b],"next":"2"}' % (item % 2))
    with scripted(first, last) as server:
        views = list(Client(server.url).jobs(JobStatus.FAILED, 3))
    assert [view.id for view in views] == ["0", "1", "2"]
    assert bytes(views[2].text) == item % 2
    paths = [heard.split()[1] for heard in server.heard]
    assert paths == ["/requests?status=FAILED&limit=2&after=", "/requests?status=FAILED&limit=1&after=1"]
    with scripted(answer(b'{"requests":[],"next":null}')) as server:
        assert list(Client(server.url).jobs()) == []


def test_a_list_of_something_else(scripted: Script) -> None:
    with scripted(answer(b'{"requests":[{}],"next":null}')) as server, pytest.raises(ClientError, match="unexpected"):
        list(Client(server.url).jobs())


def test_what_it_asks(scripted: Script) -> None:
    state = answer(b'{"id":"j","status":"IN_QUEUE"}')
    with scripted(state, state, answer(b'{"slot":"gpu0","status":"paused"}'), answer(b"one\ntwo")) as server:
        client = Client(server.url)
        assert client.submit(b'{"input":1}', "a key").id == "j"
        assert client.retry("j").status is JobStatus.IN_QUEUE
        assert client.order("gpu0", "pause").status == "paused"
        assert list(client.log("j")) == [b"one\n", b"two"]
    assert "Idempotency-Key: a key\r\n" in server.heard[0]
    paths = [heard.partition(" HTTP")[0] for heard in server.heard]
    assert paths == ["POST /run", "POST /retry/j", "POST /workers/gpu0/pause", "GET /logs/j"]
    with pytest.raises(UsageError, match="printable"):
        client.submit(b"{}", "a\nkey")
