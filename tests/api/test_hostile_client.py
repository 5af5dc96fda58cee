"""Clients that mean harm, or might: each is refused or cut off, and the next one is answered."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api.http import connection, connection_limit, server
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Clock, Site

HOST = b"Host: localhost\r\n"
POST = b"POST /runsync HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def status_of(site: Site, request: bytes) -> int:
    """The status of the only answer to ``request``; 0: the connection was closed without one."""
    with site.raw(request) as sock:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        answer = site.read_to_end(sock)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    return int(answer[9:12]) if answer else 0


# --- what a proxy in front might read otherwise --------------------------------------------------------------------------

AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 12\r\nContent-Length: 13\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 12\r\nContent-Length: 12\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 12, 12\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +12\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 12\r\n\r\n",
    "chunks, hidden": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunks, then none": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n",
    "a folded line": POST + b"X: a\r\n b\r\n\r\n",
    "line ends without a return": b"POST /runsync HTTP/1.1\nHost: localhost\n\n",
    "a size of a chunk with a sign": CHUNKED + b"-1\r\n",
    "a size of a chunk that wraps around": CHUNKED + b"10000000000000002\r\n{}",
    "no line end behind a chunk": CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    "no line end but a line feed": CHUNKED + b"2\n{}\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: evil.example\r\n" + HOST + b"\r\n",
    "the same host twice": b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two origins": b"GET /health HTTP/1.1\r\nOrigin: http://evil.example\r\nOrigin: http://localhost\r\n"
    + HOST
    + b"\r\n",
    "NUL in the path": b"GET /status/a\0b HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nX: a\0b\r\n" + HOST + b"\r\n",
    "another version": b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a proxy's address without a path": b"GET http://localhost HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(site: Site, name: str) -> None:
    assert status_of(site, AMBIGUOUS[name]) == 400
    assert not site.engine.submitted


def test_what_follows_the_last_request_is_not_answered(site: Site) -> None:
    last = b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    assert status_of(site, last + b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") == 200


def test_old_clients_are_answered(site: Site) -> None:
    assert status_of(site, b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n") == 200
    assert status_of(site, b"GET /livez HTTP/1.0\r\n\r\n") == 200


# --- paths and ids -------------------------------------------------------------------------------------------------------

PATHS = {
    "/status/a%2Fb": 404,
    "/status/..%2F..%2Fetc%2Fpasswd": 404,
    "/status/%00": 404,
    "/status/a%0D%0ASet-Cookie:%20b=1": 404,
    "/status/%FF%FE": 404,
    "/status/%ed%a0%80": 404,
    "/status/%": 404,
    "/status/" + "a" * 60_000: 404,
    "/../livez": 404,
    "//livez": 404,
    "/livez/": 404,
    "/livez%00": 404,
    "/docs/../etc/passwd": 404,
    "/docs/%2e%2e/%2e%2e/setup.cfg": 404,
    "/v2/echo/../other/health": 404,
    "/v2/other/health": 404,
    "/health?" + "wait=1&" * 8_000: 200,
    "/status/a?wait=%00": 404,
    "/requests?limit=" + "9" * 5_000: 200,
    "/requests?after=%27%20OR%201=1%20--": 404,
    "/logs/%27%3BDROP%20TABLE%20jobs": 404,
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
def test_paths_lead_nowhere_else(site: Site, path: str) -> None:
    answer = site.ask("GET", path)
    assert answer.status == PATHS[path]
    assert set(answer.headers) <= {"content-type", "content-length", "date", "cache-control", "vary", "connection"}
    assert len(answer.body) < 10_000
    assert not site.logged


@pytest.mark.parametrize(
    "name", ["a\r\nX-Evil: 1", "\x00", "../a", "a/b", " a", "-a", "a" * 129, "ä", "", "a%2Fb", "\ud800"]
)
def test_ids_that_would_lead_astray_are_refused(site: Site, name: str) -> None:
    assert site.ask("POST", "/run", {"input": 1, "id": name}).status == 400
    assert not site.engine.submitted


def test_an_idempotency_key_of_any_kind_stays_a_key(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    for key in ("../../x", "'; DROP TABLE jobs", "x" * 5000, "\xff\xfe"):
        answer = site.ask("POST", "/runsync", {"input": 1}, {"Idempotency-Key": key})
        assert answer.status == 200
        assert len(answer.json["id"]) == 32


# --- keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        b"POST /runsync?api_key=right-key&key=right-key&token=right-key HTTP/1.1\r\n" + HOST,
        b"POST /runsync HTTP/1.1\r\nCookie: api_key=right-key\r\nX-Api-Key: right-key\r\n" + HOST,
        b"POST http://right-key@localhost/runsync HTTP/1.1\r\n" + HOST,
        b"POST /runsync HTTP/1.1\r\nAuthorization: Basic cmlnaHQta2V5\r\n" + HOST,
        b"POST /runsync HTTP/1.1\r\nAuthorization: Bearer right-key\r\nAuthorization: Bearer wrong\r\n" + HOST,
    ],
)
def test_a_key_counts_in_its_header_only_and_the_body_is_not_waited_for(
    make_site: Callable[..., Site], ask: bytes
) -> None:
    site = make_site(api_key=("right-key",))
    with site.raw(ask + b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n") as sock:
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"right-key" not in answer
    assert not site.engine.submitted


def test_without_a_key_nothing_is_told(make_site: Callable[..., Site]) -> None:
    site = make_site(api_key=("right-key",))
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED, output=b'"secret"')
    known, unknown = site.ask("GET", "/status/a"), site.ask("GET", "/status/b")
    assert (known.status, known.body) == (unknown.status, unknown.body)
    assert site.ask("GET", "/nowhere").body == known.body


# --- web pages -----------------------------------------------------------------------------------------------------------

STAINLESS = "authorization, content-type, x-stainless-arch, x-stainless-lang, x-stainless-retry-count, openai-organization, x_y.z"


def preflight(site: Site, asked: str, origin: str = "https://friend.example") -> dict[str, str]:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    answer = site.ask("OPTIONS", "/openai/v1/chat/completions", headers=headers)
    return answer.headers if answer.status == 204 else {}


@pytest.mark.parametrize("keys", [(), ("right-key",)])
def test_pages_of_allowed_origins_may_send_what_their_clients_send(make_site: Callable[..., Site], keys: Any) -> None:
    site = make_site(allow_origin=("https://friend.example",), api_key=keys or None)
    allowed = preflight(site, STAINLESS)["access-control-allow-headers"].split(", ")
    assert set(STAINLESS.split(", ")) <= set(allowed)
    assert len(allowed) == len(set(allowed))
    assert preflight(site, STAINLESS, "https://evil.example") == {}
    assert preflight(site, STAINLESS, "null") == {}


@pytest.mark.parametrize("asked", ["*", "x\x0by", "x" * 65, ",".join("x" for _ in range(65)), "x: y", ""])
def test_what_is_no_list_of_headers_is_not_repeated(make_site: Callable[..., Site], asked: str) -> None:
    site = make_site(allow_origin=("https://friend.example",))
    got = preflight(site, asked).get("access-control-allow-headers")
    assert got in (None, "authorization, content-type, idempotency-key, last-event-id")


# --- floods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((b"2;" + b"a" * 70_000, b"a" * 70_000), id="an extension of a chunk"),
        pytest.param((b"0\r\nX: " + b"a" * 70_000, b"a" * 70_000), id="a trailer"),
        pytest.param((b"0\r\n", b"".join(b"X%d: y\r\n" % number for number in range(8_000))), id="trailers"),
        pytest.param((b"1;" + b"a" * 8_000 + b"\r\nx\r\n",) * 20, id="an extension of each chunk"),
    ],
)
def test_a_body_with_more_beside_it_than_in_it_is_cut_off(site: Site, endless: tuple[bytes, ...]) -> None:
    with site.raw(CHUNKED) as sock, contextlib.suppress(ConnectionError):
        for part in endless * 3:
            sock.sendall(part)
        assert b" 400 " in site.read_to_end(sock)
    assert site.ask("GET", "/livez").status == 200


def test_many_small_chunks_are_a_body(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    body = b'{"input": "%b"}' % (b"x" * 50_000)
    with site.raw(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as sock:
        sock.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Sum: 1\r\n\r\n")
        assert b" 200 OK" in site.read_to_end(sock)


def test_a_flood_of_pipelined_requests_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_PIPELINED", 10)
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    waits = b"GET /status-sync/a?wait=300000 HTTP/1.1\r\n" + HOST + b"\r\n"
    with site.raw(waits + (b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n") * 11) as sock:
        assert site.read_to_end(sock) == b""  # a refusal would be taken for the answer to the first of them


# --- slow clients --------------------------------------------------------------------------------------------------------


def sent_away(sock: socket.socket, drip: bytes) -> bool:
    """Whether the server has closed ``sock``, with something left unread or not; else ``drip`` is sent."""
    try:
        with contextlib.suppress(TimeoutError):
            return sock.recv(65536) == b""
        sock.sendall(drip)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    "start", [b"GET /live", POST, POST + b"Content-Length: 1000000\r\n\r\n{", CHUNKED + b"1\r\n{\r\n"]
)
def test_a_client_that_drips_is_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    site.ask("GET", "/livez")
    monkeypatch.setattr(connection, "SILENCE_S", 0.1)
    drip = b"1\r\n \r\n" if start.startswith(CHUNKED) else b"x"
    with site.raw(start) as sock:
        sock.settimeout(0.02)
        assert any(sent_away(sock, drip) for _ in range(1000))
    assert not site.engine.submitted


def test_a_client_that_is_slow_but_comes_on_is_answered(
    clock: Clock, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SLOWEST", 0.1)
    site = make_site(auto=True)
    body = b'{"input": "slow"}'
    head = POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with site.raw(head) as sock:
        for at in range(len(body)):
            site.until_heard(len(head) + at)
            site.call(clock.go_on, 0.9 * connection.SILENCE_S)
            sock.sendall(body[at : at + 1])
        assert b'"output":"slow"' in site.read_to_end(sock)


# --- crowds --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_site(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> Site:
    """A server for four clients."""
    monkeypatch.setattr(server.Server.__init__, "__defaults__", (4,))
    return make_site()


@pytest.fixture
def clients(small_site: Site) -> Iterator[list[socket.socket]]:
    """Those that a test leaves open."""
    found: list[socket.socket] = []
    yield found
    for sock in found:
        sock.close()


def time_passes(site: Site, clients: list[socket.socket]) -> None:
    """Until ``clients`` are all that are connected, and the loop's clock, which counts milliseconds, has gone on."""
    site.until(lambda: len(site.server._state.connections) == len(clients))
    began = site.call(site.loop.time)
    while site.call(site.loop.time) <= began:
        pass


def test_who_is_idle_longest_goes_for_who_comes(small_site: Site, clients: list[socket.socket]) -> None:
    starts = (b"", POST, b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n", POST + b"Content-Length: 9\r\n\r\n{")
    for count, start in enumerate(starts, 1):
        clients.append(small_site.raw(start))
        small_site.until_heard(len(b"".join(starts[:count])))
        time_passes(small_site, clients)
    assert b" 200 OK" in clients[2].recv(65536)
    for gone in range(4):
        time_passes(small_site, clients[-4:])
        clients.append(small_site.raw(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"))
        assert b" 200 OK" in clients[-1].recv(65536)
        with contextlib.suppress(ConnectionError):
            assert clients[gone].recv(1) == b""


def test_who_waits_for_an_answer_stays(small_site: Site, clients: list[socket.socket]) -> None:
    small_site.call(small_site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    for count in range(1, 5):
        clients.append(small_site.raw(b"GET /status-sync/a?wait=60000 HTTP/1.1\r\n" + HOST + b"\r\n"))
        small_site.until(lambda count=count: small_site.engine.waiting > count)  # type: ignore[misc]  # a default binds it
    late = small_site.connect()
    late.request("GET", "/livez")
    answer = small_site.read(late)
    late.close()
    assert (answer.status, answer.error) == (503, "too many clients are connected")
    assert answer.headers["retry-after"] == "5"
    small_site.call(small_site.engine.change, "a", status=JobStatus.COMPLETED)
    for sock in clients:
        small_site.read_up_to(sock, b'"status":"COMPLETED"')


def test_those_who_go_already_make_room_once() -> None:
    class Client:
        def __init__(self, since: float | None) -> None:
            self.since = since
            self.dropped = 0

        def idle_since(self) -> float | None:
            return self.since

        def drop(self) -> None:
            self.dropped += 1

    door = connection_limit.ConnectionLimiter(3)
    idle, busy, new, newer, newest = (Client(since) for since in (1.0, None, 3.0, 4.0, 5.0))
    assert door.admit(busy, [idle, busy])
    assert door.admit(new, [idle, busy, new])
    assert not idle.dropped
    assert door.admit(newer, [idle, busy, new, newer])
    assert [client.dropped for client in (idle, busy, new, newer)] == [1, 0, 0, 0]
    assert door.admit(newest, [idle, busy, new, newer, newest])
    assert [client.dropped for client in (idle, busy, new, newer)] == [1, 0, 1, 0]
    door.left(idle)
    door.left(new)
    assert not door.admit(newer, [busy, busy, busy, newer])
