from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api import app
from supervisor.api.http import connection
from supervisor.api.http.connection_limit import ConnectionLimiter
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Clock, Site

HEAD = b"POST /runsync HTTP/1.1\r\nHost: localhost\r\n"
MIB = 2**20
LONG_S = 40.0


def _answer(data: bytes) -> tuple[bytes, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


def test_a_body_that_says_it_is_too_large(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LINGER_S", LONG_S)
    site = make_site(max_body="1MiB")
    with site.raw(HEAD + b"Content-Length: 1048577\r\n\r\n") as sock:
        assert site.read_up_to(sock, b' 1048576 bytes (--max-body)"}').startswith(b"HTTP/1.1 413 ")
        sock.sendall(b"x" * MIB)
        sock.shutdown(socket.SHUT_WR)
        assert site.read_to_end(sock) == b""


def test_the_refusal_reaches_a_client_that_sends_all_first(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LINGER_S", LONG_S)
    site = make_site(max_body="1MiB")
    answer = site.ask("POST", "/run", b"x" * (20 * MIB))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert not site.engine.submitted


def test_a_body_without_a_length_is_counted(make_site: Callable[..., Site]) -> None:
    site = make_site(max_body="1KiB", auto=True)
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    with site.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk) as sock:
        sock.sendall(b"1\r\n \r\n")
        assert b" 413 " in _answer(sock.recv(65536))[0]
    with site.raw(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n") as sock:
        sock.sendall(b'c\r\n{"input": 12\r\n' + b"2\r\n3}\r\n" + b"0\r\n\r\n")
        assert b'"output":123' in _answer(site.read_to_end(sock))[1]


def test_the_limit_itself_is_allowed(make_site: Callable[..., Site]) -> None:
    site = make_site(max_body="1KiB", auto=True)
    body = b'{"input": "' + b"x" * (1024 - 13) + b'"}'
    assert site.ask("POST", "/runsync", body).status == 200
    assert site.ask("POST", "/runsync", body + b" ").status == 413


def test_a_large_body_that_nobody_reads_leaves_the_connection_usable(site: Site) -> None:
    client = site.connect()
    for _ in range(2):
        client.request("POST", "/nowhere", b"x" * (2 * MIB))
        assert site.read(client).status == 404
    client.request("POST", "/run", b'{"input": 1}')
    assert site.read(client).status == 200
    client.close()


def test_a_client_that_goes_on_sending_is_cut_off(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LINGER_BYTES", 8 * MIB)
    site = make_site(max_body="1KiB")
    part = b"100000\r\n" + b"x" * MIB + b"\r\n"
    with site.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as sock, pytest.raises(ConnectionError):
        sock.sendall(part * 64)


def test_a_client_that_waits_after_a_refusal_is_cut_off(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LINGER_S", 0.05)
    site = make_site(max_body="1KiB")
    with site.raw(HEAD + b"Content-Length: 99999\r\n\r\n") as sock:
        assert b" 413 " in site.read_to_end(sock)


def test_nobody_is_asked_to_send_what_would_be_refused(make_site: Callable[..., Site]) -> None:
    site = make_site(max_body="1KiB", auto=True)
    with site.raw(HEAD + b"Expect: 100-continue\r\nContent-Length: 1025\r\n\r\n") as sock:
        assert b" 413 " in sock.recv(65536)
    with site.raw(HEAD + b"Expect: 100-continue\r\nContent-Length: 12\r\n\r\n") as sock:
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"input": 1}')
        assert b" 200 " in sock.recv(65536)


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"Content-Length: many\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /st\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http(site: Site, request_bytes: bytes) -> None:
    with site.raw(request_bytes) as sock:
        status, body = _answer(site.read_to_end(sock))
    assert status == b"HTTP/1.1 400 Bad Request"
    assert body == b'{"error":"Invalid HTTP request received."}'
    assert site.ask("GET", "/livez").status == 200


@pytest.mark.parametrize("line", [b"X: %b\r\n" % (b"y" * 8000), b"z" * 8000])
def test_headers_without_end(site: Site, line: bytes) -> None:
    with site.raw(HEAD) as sock:
        try:
            for _ in range(100):
                sock.sendall(line)
            assert b" 431 " in _answer(site.read_to_end(sock))[0]
        except ConnectionError:
            pass  # it was closed while this side was still sending, which may lose the answer
    assert site.ask("GET", "/livez").status == 200


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self._closed = True

    def is_closing(self) -> bool:
        return self._closed


def _head(size: int, fields: bytes = b"") -> bytes:
    """The line and headers of a request, ``size`` bytes together."""
    start = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + fields + b"X: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


TOO_LARGE = {
    "a header": _head(150_000),
    "a header, by one byte": _head(connection.MAX_HEAD + 1),
    "many headers": _head(150_000, b"".join(b"X%d: y\r\n" % number for number in range(14_000))),
    "the name of a header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"x" * 150_000 + b": y\r\n\r\n",
    "the path": b"GET /" + b"x" * 150_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space before a value": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX:" + b" " * 150_000 + b"y\r\n\r\n",
    "an offer": _head(150_000, b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
}


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("name", TOO_LARGE)
@pytest.mark.parametrize("piece", [2**20, 40_000, 1_000])
def test_headers_are_counted_however_they_arrive(site: Site, name: str, piece: int) -> None:
    async def answer() -> bytes:
        wire = Wire()
        made = connection.Connection(site.server._config, site.server._state, ConnectionLimiter(), lambda: None)
        made.connection_made(wire)
        for part in _pieces(TOO_LARGE[name], piece):
            made.data_received(part)
        made.connection_lost(None)
        return b"".join(wire.written)

    said = site.do(answer())
    assert said.startswith(b"HTTP/1.1 431 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("name", TOO_LARGE)
def test_headers_behind_other_requests_are_counted_too(site: Site, name: str) -> None:
    came = b""
    with site.raw() as sock, contextlib.suppress(ConnectionError):  # it may be closed while this side still sends
        sock.sendall(_head(100) * 2 + TOO_LARGE[name])
        while part := sock.recv(65536):
            came += part
    assert came.count(b"HTTP/1.1 200 ") <= 2
    assert came.count(b"HTTP/1.1 ") <= 3


@pytest.mark.parametrize("piece", [2**20, 40_000, 1_000])
def test_headers_of_requests_behind_one_another_are_not_counted_together(site: Site, piece: int) -> None:
    last = _head(connection.MAX_HEAD, b"Connection: close\r\n")
    data = _head(connection.MAX_HEAD) * 4 + _head(100) * 1_000 + last
    with site.raw() as sock, concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(lambda: [sock.sendall(part) for part in _pieces(data, piece)])
        assert site.read_to_end(sock).count(b"HTTP/1.1 200 ") == 1_005


def test_large_headers_pass(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    answer = site.ask("POST", "/runsync", {"input": 1}, {f"X-{n}": "y" * 1000 for n in range(30)})
    assert answer.status == 200


def test_a_slow_body_holds_up_nobody(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    body = b'{"input": "slow"}'
    with site.raw(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)) as sock:
        for at in range(len(body)):
            assert site.ask("GET", "/livez").status == 200
            sock.sendall(body[at : at + 1])
        assert b'"output":"slow"' in site.read_to_end(sock)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /runsync HT",
        HEAD + b"Content-Length: 12\r\n\r\n",
        HEAD + b'Content-Length: 12\r\n\r\n{"inp',
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n",
    ],
)
def test_a_client_that_falls_silent_is_sent_away(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.1)
    site = make_site()
    with site.raw(start) as sock, contextlib.suppress(ConnectionError):  # a reset, if it had not even begun in time
        assert b"200 OK" not in site.read_to_end(sock)
    assert not site.engine.submitted


def test_who_waits_for_a_job_may_be_silent(clock: Clock, make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    # The second request is pipelined and incomplete: it must not end the first one's wait.
    waits = b"GET /status-sync/a?wait=300000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with site.raw(waits + HEAD + b"Content-Length: 12\r\n\r\n{") as sock:
        site.until(lambda: site.engine.waiting > 1)
        site.call(clock.go_on, 3 * connection.SILENCE_S)
        site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
        site.read_up_to(sock, b'"status":"COMPLETED"')
        site.call(clock.go_on, 3 * connection.SILENCE_S)
        assert b"HTTP/1.1 " not in site.read_to_end(sock)


def test_a_client_that_leaves_in_its_body_submits_nothing(site: Site) -> None:
    with site.raw(HEAD + b'Content-Length: 12\r\n\r\n{"inp'):
        pass
    assert site.ask("GET", "/livez").status == 200
    assert not site.engine.submitted
    assert not site.logged


def test_the_job_goes_on_when_the_client_leaves(site: Site) -> None:
    body = b'{"input": 1, "id": "a"}'
    with site.raw(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body):
        site.until(lambda: site.engine.waiting > 1)
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
    site.until(lambda: site.engine.waiting == 1)
    assert site.ask("GET", "/status/a").json["status"] == "COMPLETED"
    assert not site.logged


def test_chunks_wait_for_a_client_that_stays(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    with site.raw(b"GET /stream/a?wait=60000 HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        site.until(lambda: site.engine.waiting > 1)
    site.until(lambda: not _connected(site))
    site.call(site.engine.add_chunks, "a", b"1", b"2")
    site.until(lambda: site.engine.settled == ["released"])
    assert site.ask("GET", "/stream/a").json["stream"] == [{"output": 1}, {"output": 2}]
    site.until(lambda: site.engine.settled == ["released", "confirmed"])


def test_an_answer_cut_off_in_the_middle_uses_up_no_chunks(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.add_chunks, "a", b'"%b"' % (b"x" * (32 * MIB)))
    with site.raw(b"GET /stream/a HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    site.until(lambda: site.engine.settled == ["released"])
    assert len(site.ask("GET", "/stream/a").json["stream"][0]["output"]) == 32 * MIB


def test_a_reset_that_the_write_meets_uses_up_no_chunks(site: Site) -> None:
    """A transport tells in its next turn that a write has failed: the protocol's own calls know of nothing until then."""
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    site.call(site.engine.add_chunks, "a", b"1")

    async def ask() -> None:
        lost = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await lost.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message.get("body"):
                asyncio.get_running_loop().call_soon(lost.set)

        scope = {"type": "http", "method": "GET", "path": "/stream/a", "query_string": b""}
        await site.app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    site.do(ask())
    assert site.engine.settled == ["released"]


def _connected(site: Site) -> bool:
    return bool(site.server._state.connections)
