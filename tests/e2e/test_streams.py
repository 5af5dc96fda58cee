"""Streams and logs of real jobs, as they come: polled, read from a place on, as events, broken off and taken up again."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Client, Gate, Runs

DEADLINE_S = 20.0

GATED = """
def handler(job):
    for word, gate in job["input"]:
        open(gate).read()
        print("now", word)
        yield word
"""

Event = tuple[str, str, str]
"""Name, id and data."""


@contextmanager
def _events(client: Client, path: str, last: str = "") -> Iterator[Iterator[Event]]:
    """The events of an answer, as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=DEADLINE_S)
    try:
        connection.request(
            "GET", path, headers={"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        )
        response = connection.getresponse()
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
        yield _parsed(response)
    finally:
        connection.close()


def _parsed(response: http.client.HTTPResponse) -> Iterator[Event]:
    fields: dict[str, str] = {}
    while line := response.readline().decode():
        name, colon, value = line.rstrip("\n").partition(": ")
        if colon:
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        elif "data" in fields:
            yield fields.get("event", ""), fields.get("id", ""), fields["data"]
            fields = {}


def _chunk(at: int, output: object) -> Event:
    return "", str(at), json.dumps({"output": output}, separators=(",", ":"))


END = ("end", "", '{"status":"COMPLETED"}')


def test_a_stream_as_it_comes(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(supervise.write("handler.py", GATED), "--gpus", "none").ready()
    gate = make_gate()
    job = run.run([[word, gate.path] for word in ("one", "two", "three")])
    gate.reached()
    with ThreadPoolExecutor() as pool, _events(run, f"/logs/{job}?follow=1") as log:
        polled = pool.submit(run.get, f"/stream/{job}?wait=20000")
        read = pool.submit(run.get, f"/stream/{job}?wait=20000&after=1")
        with _events(run, f"/stream/{job}") as events:
            gate.open()
            assert next(events) == _chunk(0, "one")
            assert polled.result() == {"status": "IN_PROGRESS", "stream": [{"output": "one"}]}
            gate.open()
            assert next(events) == _chunk(1, "two")
            assert read.result() == {"status": "IN_PROGRESS", "stream": [{"output": "two"}]}
        assert run.get(f"/stream/{job}") == {"status": "IN_PROGRESS", "stream": [{"output": "two"}]}
        assert next(log)[2] == "now one"
        assert next(log)[1:] == (str(len("now one\nnow two\n")), "now two")
        with _events(run, f"/stream/{job}", last="0") as events:
            gate.open()
            assert list(events) == [_chunk(1, "two"), _chunk(2, "three"), END]
        assert [event[2] for event in log] == ["now three", END[2]]
    assert run.get(f"/stream/{job}") == {"status": "COMPLETED", "stream": [{"output": "three"}]}
    assert run.get(f"/stream/{job}") == {"status": "COMPLETED", "stream": []}
    assert len(run.get(f"/stream/{job}?after=0")["stream"]) == 3
    assert run.ask("GET", f"/logs/{job}").body == b"now one\nnow two\nnow three\n"
    assert run.status(job)["output"] == []
    assert run.stop() == 0


def test_an_answer_that_could_not_be_sent(supervise: Runs) -> None:
    """Also what is far longer than one look at the store takes is all there, once."""
    source = "def handler(job):\n    for number in range(400):\n        yield str(number) + 'x' * job['input']\n"
    run = supervise(supervise.write("handler.py", source), "--gpus", "none").ready()
    job = run.runsync(30_000)["id"]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system might take it all
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", run.port))
        sock.sendall(f"GET /stream/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    outputs = [f"{number}{'x' * 30_000}" for number in range(400)]
    assert [chunk["output"] for chunk in run.get(f"/stream/{job}?after=0")["stream"]] == outputs
    assert [chunk["output"] for chunk in run.get(f"/stream/{job}")["stream"]] == outputs
    assert run.get(f"/stream/{job}")["stream"] == []
    with _events(run, f"/stream/{job}?after=1") as events:
        assert [json.loads(data).get("output") for _, _, data in events] == [*outputs[1:], None]
    assert run.stop() == 0


FAILING = """
import time

def handler(job):
    yield 1
    print("before the end")
    if job["input"] == "raises":
        raise ValueError("mid-stream")
    if job["input"] == "yields":
        yield {"error": "mid-stream"}
    yield 2
    if job["input"] == "goes on":
        time.sleep(3600)
"""


def test_streams_that_do_not_complete(supervise: Runs) -> None:
    handler = supervise.write("handler.py", FAILING)
    run = supervise(handler, "--gpus", "none", "--drain-timeout", 0, "--grace", "100ms", "--requeue-streams").ready()
    for way in ("raises", "yields"):
        status = run.runsync(way)
        assert status["status"] == "FAILED"
        assert "mid-stream" in status["error"]
        with _events(run, f"/stream/{status['id']}") as events:
            assert list(events) == [_chunk(0, 1), ("end", "", '{"status":"FAILED"}')]
        assert run.get(f"/stream/{status['id']}") == {"status": "FAILED", "stream": [{"output": 1}]}
        assert b"before the end\n" in run.ask("GET", f"/logs/{status['id']}").body
    job = run.run("goes on")
    with _events(run, f"/stream/{job}") as events:
        assert [next(events), next(events)] == [_chunk(0, 1), _chunk(1, 2)]
        assert run.stop() == 0
        assert list(events) == []  # whole, and without an end: it can be taken up again


def test_a_long_stream_that_breaks_off_is_handed_out_whole_to_the_next(supervise: Runs) -> None:
    run = supervise(
        supervise.write("handler.py", "def handler(job):\n    yield from ('%d' % n * 2**20 for n in range(9))\n"),
        "--gpus",
        "none",
    ).ready()
    job = run.run(0)
    run.ended(job)
    with socket.create_connection(("127.0.0.1", run.port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"GET /stream/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.encode())
        read = 0
        while read < 3 * 2**20:
            read += len(sock.recv(65536))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream = [{"output": str(number) * 2**20} for number in range(9)]
    assert run.get(f"/stream/{job}") == {"status": "COMPLETED", "stream": stream}
    assert run.get(f"/stream/{job}") == {"status": "COMPLETED", "stream": []}
