"""`/stream` from any place, as JSON and as events, and `/logs`: answers whose length nobody knows when they begin."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api import events
from supervisor.api.http import server
from supervisor.api.http.connection import Connection
from supervisor.engine.streams import READ_CHUNKS
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Site

SSE = {"Accept": "text/event-stream"}
ENDED: dict[str, Any] = {"status": JobStatus.COMPLETED, "started_ms": 1_700_000_000_005, "ended_ms": 1_700_000_000_012}
OUTPUTS = [1, "two", None, {"three": [3]}]


def _fill(site: Site, count: int | None = None, **changes: Any) -> None:
    """A job ``a`` with ``OUTPUTS``, or with the chunks 0, 1, …; it runs if ``changes`` do not say otherwise."""
    site.call(site.engine.change, "a", **{"status": JobStatus.IN_PROGRESS, **changes})
    outputs = OUTPUTS if count is None else range(count)
    site.call(site.engine.add_chunks, "a", *(json.dumps(output).encode() for output in outputs))


def _events(text: bytes) -> list[tuple[str, str, str]]:
    """Name, id and data of each event."""
    found = []
    for block in text.decode().split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        if "data" in fields:
            found.append((fields.get("event", ""), fields.get("id", ""), fields["data"]))
    return found


@contextmanager
def _listening(site: Site, path: str, headers: dict[str, str] = SSE) -> Iterator[http.client.HTTPResponse]:
    """An answer of which the head is there."""
    connection = site.connect()
    try:
        connection.request("GET", path, headers=headers)
        yield connection.getresponse()
    finally:
        connection.close()


def _until(response: http.client.HTTPResponse, line: bytes) -> bytes:
    """What comes up to that line."""
    text = b""
    while not text.endswith(line + b"\n"):
        came = response.readline()
        assert came, f"{line!r} never came: {text!r}"
        text += came
    return text


def _connections(site: Site) -> list[object]:
    return list(site.server._state.connections)


# --- after


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("after", "first"), [("0", 0), ("2", 2), ("03", 3), ("4", 4), ("99999999999999999999", 4)])
def test_reading_from_a_place_on(site: Site, method: str, after: str, first: int) -> None:
    _fill(site, **ENDED)
    for _ in range(2):
        answer = site.ask(method, f"/v2/echo/stream/a?after={after}")
        assert answer.json == {"status": "COMPLETED", "stream": [{"output": output} for output in OUTPUTS[first:]]}
    assert len(site.ask(method, "/stream/a").json["stream"]) == len(OUTPUTS)
    site.until(lambda: site.engine.settled == ["confirmed"])
    assert len(site.ask(method, "/stream/a?after=0").json["stream"]) == len(OUTPUTS)


def test_it_waits_for_the_chunk_at_that_place(site: Site) -> None:
    _fill(site)
    assert site.ask("GET", "/stream/a?after=4&wait=0").json == {"status": "IN_PROGRESS", "stream": []}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(site.ask, "GET", "/stream/a?after=4&wait=60000")
        site.until(lambda: site.engine.waiting > 1)
        site.call(site.engine.add_chunks, "a", b'"five"')
        assert asked.result().json == {"status": "IN_PROGRESS", "stream": [{"output": "five"}]}


@pytest.mark.parametrize("after", ["-1", "x", "", "1.0", "%D9%A3", "+1", "%2B1"])
def test_a_place_that_is_none(site: Site, after: str) -> None:
    _fill(site)
    for headers in ({}, SSE):
        answer = site.ask("GET", f"/stream/a?after={after}", headers=headers)
        assert answer.status == 400
        assert answer.error.startswith("after: expected an integer from 0 on, got ")


@pytest.mark.parametrize("path", ["/stream/a?after=0", "/stream/a"])
@pytest.mark.parametrize("count", [READ_CHUNKS, READ_CHUNKS + 1, 3 * READ_CHUNKS])
def test_a_long_stream_is_read_piece_by_piece(site: Site, count: int, path: str) -> None:
    _fill(site, count, **ENDED)
    answer = site.ask("GET", path)
    assert answer.json == {"status": "COMPLETED", "stream": [{"output": n} for n in range(count)]}
    assert ("content-length" in answer.headers) == (count <= READ_CHUNKS)
    assert max(size for _, size in site.engine.streams.reads) == READ_CHUNKS
    if path == "/stream/a":
        site.until(lambda: site.engine.settled == ["confirmed"])
        assert site.ask("GET", path).json == {"status": "COMPLETED", "stream": []}
    answer = site.ask("GET", f"/stream/a?after={count - 2}")
    assert answer.json["stream"] == [{"output": count - 2}, {"output": count - 1}]


@pytest.mark.parametrize(("path", "method"), [("/stream/a?after=0", "read"), ("/stream/a", "take")])
def test_chunks_of_another_attempt_are_none_of_the_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, method: str
) -> None:
    _fill(site, 2 * READ_CHUNKS, **ENDED)
    look = getattr(site.engine.streams, method)

    async def put_back_after(*given: Any) -> Any:
        chunks = await look(*given)
        site.engine.change("a", retries=1)
        return chunks

    monkeypatch.setattr(site.engine.streams, method, put_back_after)
    assert len(site.ask("GET", path).json["stream"]) == READ_CHUNKS


def test_a_long_answer_that_breaks_off_uses_up_no_chunks(site: Site) -> None:
    site.call(site.engine.change, "a", **ENDED)
    count = 100 * READ_CHUNKS
    site.call(site.engine.add_chunks, "a", *[b'"%b"' % (b"x" * 1000)] * count)
    with site.raw(b"GET /stream/a HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    site.until(lambda: site.engine.settled == ["released"])
    assert sum(size for _, size in site.engine.streams.reads) < count
    assert len(site.ask("GET", "/stream/a").json["stream"]) == count
    site.until(lambda: site.engine.settled == ["released", "confirmed"])
    assert not site.logged


def test_a_long_answer_that_a_stop_cuts_uses_up_no_chunks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_S", 0.05)
    site.call(site.engine.change, "a", **ENDED)
    site.call(site.engine.add_chunks, "a", *[b'"%b"' % (b"x" * 10_000)] * 10_000)
    with site.raw(b"GET /stream/a HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert sock.recv(100)
        site.do(site.server.stop(0.01))
    assert site.engine.settled == ["released"]


# --- events


@pytest.mark.parametrize(
    ("path", "headers", "first"),
    [
        ("/stream/a", {}, 0),
        ("/stream/a?wait=nonsense", {}, 0),
        ("/v2/echo/stream/a?after=2", {}, 2),
        ("/stream/a", {"Last-Event-ID": "0"}, 1),
        ("/stream/a?after=1", {"Last-Event-ID": "2"}, 3),
        ("/stream/a", {"Last-Event-ID": ""}, 0),
        ("/stream/a", {"Last-Event-ID": "99999999999999999999999"}, 4),
    ],
)
def test_events(site: Site, path: str, headers: dict[str, str], first: int) -> None:
    _fill(site, **ENDED)
    answer = site.ask("GET", path, headers={**SSE, **headers})
    assert answer.status == 200
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("text/event-stream", "no-store")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.body.startswith(b"retry: 1000\n\n")
    chunks = [("", str(n), json.dumps({"output": OUTPUTS[n]}, separators=(",", ":"))) for n in range(first, 4)]
    assert [(name, at, data.replace(" ", "")) for name, at, data in _events(answer.body)] == [
        *chunks,
        ("end", "", '{"status":"COMPLETED"}'),
    ]
    assert not site.engine.settled


def test_events_of_a_running_job(site: Site) -> None:
    _fill(site)
    with _listening(site, "/stream/a") as response:
        assert len(_events(_until(response, b'data: {"output":{"three": [3]}}') + b"\n")) == 4
        site.call(site.engine.add_chunks, "a", b"5")
        assert b"id: 4\n" in _until(response, b'data: {"output":5}')
        site.call(site.engine.change, "a", status=JobStatus.FAILED, error="not shown here")
        assert response.read() == b'\nevent: end\ndata: {"status":"FAILED"}\n\n'


def test_events_without_a_chunk(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.CANCELLED)
    assert _events(site.ask("GET", "/stream/a", headers=SSE).body) == [("end", "", '{"status":"CANCELLED"}')]


@pytest.mark.parametrize("text", ["x", "-1", "1 2", "ř"])
def test_a_last_event_that_is_none(site: Site, text: str) -> None:
    _fill(site)
    site.call(site.engine.print, "a", b"line\n")
    for path in ("/stream/a", "/logs/a?follow=1"):
        headers = {**SSE, "Last-Event-ID": text.encode().decode("latin-1")}
        answer = site.ask("GET", path, headers=headers)
        assert answer.status == 400
        assert answer.error.startswith("Last-Event-ID: expected an integer from 0 on")


@pytest.mark.parametrize("path", ["/stream/no", "/stream/no?after=0", "/logs/no", "/logs/no?follow=1"])
def test_streams_of_unknown_jobs(site: Site, path: str) -> None:
    for headers in ({}, SSE):
        answer = site.ask("GET", path, headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
        assert "job 'no' not found" in answer.error


def test_a_job_that_is_forgotten_ends_its_stream(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_S", 0.01)
    _fill(site)
    with _listening(site, "/stream/a") as response:
        _until(response, b": ping")
        site.call(site.engine.forget, "a")
        assert b"end" not in response.read()


@pytest.mark.parametrize("path", ["/stream/a", "/logs/a?follow=1"])
def test_a_silent_stream_says_that_it_lives(site: Site, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(events, "PING_S", 0.01)
    site.call(site.engine.change, "a")
    with _listening(site, path) as response:
        _until(response, b": ping")
        _until(response, b": ping")


# --- their end


@pytest.mark.parametrize("path", ["/stream/a", "/logs/a?follow=1"])
def test_nothing_is_left_of_a_client_that_leaves(site: Site, path: str) -> None:
    _fill(site)
    tasks = len(site.call(asyncio.all_tasks))
    with _listening(site, path) as response:
        _until(response, b"")
        site.until(lambda: site.engine.waiting > 1)
        assert len(site.call(asyncio.all_tasks)) > tasks
    site.until(lambda: site.engine.waiting == 1)
    while len(site.call(asyncio.all_tasks)) > tasks:
        assert site.ask("GET", "/livez").status == 200
    assert not site.logged


@pytest.mark.parametrize("path", ["/stream/a", "/logs/a?follow=1"])
def test_a_stop_ends_events_so_that_they_can_be_resumed(site: Site, path: str) -> None:
    _fill(site)
    site.call(site.engine.print, "a", b"line\n")
    with _listening(site, path) as response:
        _until(response, b"retry: 1000")
        site.until(lambda: site.engine.waiting > 1)
        site.do(site.server.stop(10.0))
        rest = response.read()  # it raises if the answer is not whole
    assert b"data: " in rest
    assert b"event: end" not in rest
    assert not site.logged


def test_a_client_that_does_not_read_is_not_read_for(site: Site) -> None:
    chunk, count = b'"%b"' % (b"x" * 10_000), 100_000
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.add_chunks, "a", *[chunk] * count)
    head = b"GET /stream/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    with site.raw(head) as sock:
        assert sock.recv(100)
        while not any(isinstance(each, Connection) and each.flow.write_paused for each in _connections(site)):
            assert site.ask("GET", "/livez").status == 200
        read = sum(size for _, size in site.engine.streams.reads)
        assert read < count / 10
        while len(sock.recv(2**20)) and sum(size for _, size in site.engine.streams.reads) <= read:
            pass
    site.until(lambda: site.engine.waiting == 1)
    assert not site.logged


def test_an_answer_that_cannot_go_on_is_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(site, 2 * READ_CHUNKS, **ENDED)

    def fail(chunks: object) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(site.engine.streams, "following", fail)
    for path, headers in (("/stream/a?after=0", {}), ("/stream/a", SSE), ("/stream/a", {})):
        with _listening(site, path, headers) as response, pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        assert b"secret" not in caught.value.partial
    assert [line.split("\n")[0] for line in site.logged] == ["GET a: the answer broke off"] * 3
    assert site.engine.settled == ["released"]
    assert site.ask("GET", "/livez").status == 200


def test_a_stop_cuts_a_long_answer_that_nobody_reads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_S", 0.05)
    site.call(site.engine.change, "a", **ENDED)
    site.call(site.engine.add_chunks, "a", *[b'"%b"' % (b"x" * 10_000)] * 10_000)
    with site.raw(b"GET /stream/a?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert sock.recv(100)
        site.do(site.server.stop(0.01))
        assert not site.read_to_end(sock).endswith(b"0\r\n\r\n")


def test_a_stream_cut_off_on_the_way_leaves_nothing(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.add_chunks, "a", *[b'"%b"' % (b"x" * 10_000)] * 10_000)
    tasks = len(site.call(asyncio.all_tasks))
    with site.raw(b"GET /stream/a?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while len(site.call(asyncio.all_tasks)) > tasks:
        assert site.ask("GET", "/livez").status == 200
    assert not site.logged


# --- logs


def test_logs(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    for path in ("/logs/a", "/v2/echo/logs/a?follow=0"):
        answer = site.ask("GET", path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    site.call(site.engine.print, "a", "žluťoučký\nkůň\n".encode())
    assert site.ask("GET", "/logs/a").body.decode() == "žluťoučký\nkůň\n"


def test_long_logs(site: Site) -> None:
    text = b"".join(b"line %d\n" % n for n in range(50_000))
    site.call(site.engine.change, "a", **ENDED)
    site.call(site.engine.print, "a", text)
    answer = site.ask("GET", "/logs/a")
    assert answer.body == text
    assert answer.headers["transfer-encoding"] == "chunked"
    followed = _events(site.ask("GET", "/logs/a?follow=1").body)
    assert "".join(data for name, _, data in followed if not name).replace("\n", "") == text.decode().replace("\n", "")
    assert followed[-1] == ("end", "", '{"status":"COMPLETED"}')


def test_following_a_log(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.print, "a", b"one\ntwo\n")
    with _listening(site, "/logs/a?follow=1", {}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert _events(_until(response, b"data: two") + b"\n") == [("", "8", "one\ntwo")]
        site.call(site.engine.print, "a", b"\nthree\n")
        assert _until(response, b"data: three").endswith(b"id: 15\ndata: \ndata: three\n")
        site.call(site.engine.change, "a", status=JobStatus.TIMED_OUT)
        assert response.read() == b'\nevent: end\ndata: {"status":"TIMED_OUT"}\n\n'
    resumed = site.ask("GET", "/logs/a?follow=true", headers={"Last-Event-ID": "8"})
    assert _events(resumed.body) == [("", "15", "\nthree"), ("end", "", '{"status":"TIMED_OUT"}')]


def test_a_flag_that_is_none(site: Site) -> None:
    site.call(site.engine.change, "a")
    answer = site.ask("GET", "/logs/a?follow=yes")
    assert (answer.status, answer.error) == (400, "follow: expected 1 or 0, got 'yes'")


def test_the_answers_of_this_file_are_whole_http(make_site: Callable[..., Site]) -> None:
    """Two streams and a plain answer on one connection."""
    site = make_site()
    _fill(site, 2 * READ_CHUNKS, **ENDED)
    connection = site.connect()
    for path, headers in (("/stream/a", SSE), ("/stream/a?after=0", {}), ("/livez", {})):
        connection.request("GET", path, headers=headers)
        assert re.search(rb"COMPLETED|ok", site.read(connection).body)
    connection.close()
