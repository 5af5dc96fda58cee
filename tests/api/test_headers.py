"""The headers of answers as bytes: no name stands twice, and pages of allowed origins can read every answer."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from supervisor.api.http import server
from supervisor.api.operations import ROUTES
from supervisor.errors import RequestError, StoreError
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Site

FRIEND, STRANGER = b"https://friend.example", b"https://evil.example"
KEY = b"right-key"

NOT_FOR_PAGES = {
    b"connection",
    b"content-security-policy",
    b"date",
    b"referrer-policy",
    b"transfer-encoding",
    b"vary",
    b"x-accel-buffering",
    b"x-content-type-options",
}
SAFE = {b"cache-control", b"content-length", b"content-type"}
"""What a page may read without being allowed to (Fetch, "CORS-safelisted response-header name"), as far as we have it."""


class Got(NamedTuple):
    """One answer. ``fields`` are its headers as they came, names in lower case."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The same, after a look that no name stands twice."""
        names = [name for name, _ in self.fields]
        assert len(names) == len(set(names)), self.fields
        return dict(self.fields)


def parsed(answer: bytes) -> Got:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    pairs = (each.partition(b": ") for each in lines)
    return Got(int(line[9:12]), [(name.lower(), value) for name, _, value in pairs], body)


def asked(site: Site, method: str, path: str, *fields: bytes, body: bytes = b"") -> Got:
    """The answer, to its end; a HEAD has a body's headers and none."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Connection: close", b"Content-Length: %d" % len(body), *fields]
    if not any(field.startswith(b"Host: ") for field in fields):
        lines.append(b"Host: localhost")
    with site.raw(b"\r\n".join((*lines, b"", body))) as sock:
        return parsed(site.read_to_end(sock))


# --- every operation, every kind of answer -------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How to get one kind of answer from each operation.

    ``sign``: a status or a content type that then comes of at least one; where there are keys, ``keyed`` instead if it is given.
    """

    sign: int | bytes
    fields: tuple[bytes, ...] = (b"Authorization: " + KEY,)
    body: bytes = b'{"input": 1}'
    method: str = ""
    prefix: str = ""
    id: str = "a"
    query: str = ""
    refuse: Exception | None = None
    keyed: int | None = None


ASKS = (b"Access-Control-Request-Method: POST", b"Access-Control-Request-Headers: authorization, content-type")
EVENTS = (b"Authorization: " + KEY, b"Accept: text/event-stream")

KINDS = {
    "done": Kind(200),
    "events": Kind(b"text/event-stream", EVENTS, b'{"input": 1, "stream": true}', query="?follow=1"),
    "no job": Kind(404, id="unknown"),
    "bad query": Kind(400, query="?wait=x&limit=x&after=x&follow=x"),
    "bad body": Kind(400, body=b"{"),
    "too large": Kind(413, body=b" " * 2000),
    "full disk": Kind(503, refuse=StoreError("the disk is full")),
    "draining": Kind(503, refuse=RequestError(503, "draining", retry_after=3)),
    "full queue": Kind(429, refuse=RequestError(429, "full", retry_after=1)),
    "fault": Kind(500, refuse=ZeroDivisionError()),
    "no such method": Kind(405, method="PUT"),
    "no such path": Kind(404, prefix="/no/such"),
    "options": Kind(204, method="OPTIONS"),
    "preflight": Kind(204, ASKS, b"", method="OPTIONS"),
    "private preflight": Kind(204, (*ASKS, b"Access-Control-Request-Private-Network: true"), b"", method="OPTIONS"),
    "no key": Kind(200, (), keyed=401),
    "foreign host": Kind(403, (b"Host: evil.example",), keyed=401),
}

SITES: dict[str, dict[str, Any]] = {
    "plain": {},
    "origins": {"allow_origin": (FRIEND.decode(), "http://other.example")},
    "keys": {"allow_origin": (FRIEND.decode(),), "api_key": (KEY.decode(),)},
}


def operations(site: Site, kind: Kind) -> Iterator[tuple[str, str]]:
    """Method and path of everything that there is."""
    for route in ROUTES:
        path = route.path.replace("{id}", kind.id).replace("{slot}", "gpu0").replace("{route}", "chat/completions")
        for method in (kind.method,) if kind.method else route.methods:
            yield method, kind.prefix + path + kind.query


@pytest.fixture
def ready_site(make_site: Callable[..., Site], request: pytest.FixtureRequest) -> Site:
    """A server whose job ``a`` has ended and left chunks and a log."""
    site = make_site(auto=True, max_body="1KiB", **SITES[request.param])
    site.call(site.engine.print, "a", b"a line\n")
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED, output=b"[1]")
    site.call(site.engine.add_chunks, "a", b"1")
    return site


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ready_site", SITES, indirect=True)
def test_no_header_stands_twice(ready_site: Site, name: str) -> None:
    site, kind = ready_site, KINDS[name]
    site.engine.refuse = kind.refuse
    seen: set[int | bytes] = set()
    for method, path in operations(site, kind):
        for origin in (None, FRIEND, STRANGER):
            fields = kind.fields if origin is None else (*kind.fields, b"Origin: " + origin)
            got = asked(site, method, path, *fields, body=kind.body)
            check_cors(site, origin, got)
            assert b"date" in got.headers
            assert b"server" not in got.headers
            assert (b"retry-after" in got.headers) == (got.status in (429, 503))
            seen |= {got.status, got.headers.get(b"content-type", b"")}
    assert (kind.keyed if kind.keyed and site.settings.api_key else kind.sign) in seen


def check_cors(site: Site, origin: bytes | None, got: Got) -> None:
    """A page of ``origin`` may read ``got`` if that origin was allowed, and all of it that is for pages."""
    headers = got.headers
    if not site.settings.allow_origin:
        assert not [name for name in headers if name.startswith(b"access-control-") or name == b"vary"]
        return
    assert headers[b"vary"] == b"origin"
    assert b"access-control-allow-credentials" not in headers
    if origin != FRIEND:
        assert not [name for name in headers if name.startswith(b"access-control-")]
        return
    assert headers[b"access-control-allow-origin"] == FRIEND
    exposed = set(headers.get(b"access-control-expose-headers", b"").split(b", "))
    told = {name for name in headers if not name.startswith(b"access-control-")} - NOT_FOR_PAGES - SAFE
    assert told <= exposed or got.status == 204


# --- the preflight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [SITES["origins"], SITES["keys"]])
def test_a_preflight_has_each_word_once(make_site: Callable[..., Site], options: dict[str, Any]) -> None:
    site = make_site(**options)
    got = asked(site, "OPTIONS", "/v2/echo/run", b"Origin: " + FRIEND, *ASKS)
    headers = got.headers
    del headers[b"date"]
    assert got.status == 204
    assert headers == {
        b"access-control-allow-origin": FRIEND,
        b"access-control-allow-methods": b"GET, POST",
        b"access-control-expose-headers": b"allow, retry-after, www-authenticate, x-request-id, x-should-retry",
        b"access-control-allow-headers": b"authorization, content-type, idempotency-key, last-event-id",
        b"access-control-max-age": b"600",
        b"connection": b"close",
        b"vary": b"origin",
    }
    assert got.body == b""


def test_a_public_page_may_ask_for_a_private_network(make_site: Callable[..., Site]) -> None:
    """A page of the Internet that calls a server in the house: https://wicg.github.io/private-network-access/."""
    site = make_site(**SITES["origins"])
    wish = b"Access-Control-Request-Private-Network: true"
    asks = [
        (FRIEND, (*ASKS, wish), b"true"),
        (FRIEND, ASKS, None),
        (STRANGER, (*ASKS, wish), None),
        (FRIEND, (wish,), None),
    ]
    for origin, fields, allowed in asks:
        got = asked(site, "OPTIONS", "/run", b"Origin: " + origin, *fields)
        assert got.headers.get(b"access-control-allow-private-network") == allowed


@pytest.mark.parametrize("origin", [b"null", b"*", b"", FRIEND + b"/", FRIEND + b":443", b"https://a.friend.example"])
def test_what_is_nearly_an_allowed_origin_is_none(make_site: Callable[..., Site], origin: bytes) -> None:
    site = make_site(**SITES["origins"])
    got = asked(site, "OPTIONS", "/run", b"Origin: " + origin, *ASKS)
    assert got.status == 403
    assert not [name for name in got.headers if name.startswith(b"access-control-")]


# --- answers that no application gives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"POST /run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
        (431, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 66_000 + b"\r\n\r\n"),
    ],
)
def test_nor_in_what_the_connection_refuses(site: Site, status: int, request_bytes: bytes) -> None:
    with site.raw(request_bytes) as sock, contextlib.suppress(ConnectionError):
        sock.shutdown(socket.SHUT_WR)
        got = parsed(site.read_to_end(sock))
        assert got.status == status
        assert got.headers.keys() == {b"date", b"content-type", b"content-length", b"connection"}


def test_nor_where_there_is_no_room(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Server.__init__, "__defaults__", (0,))
    site = make_site()
    with site.raw() as sock:
        got = parsed(site.read_to_end(sock))
    assert (got.status, got.headers[b"retry-after"]) == (503, b"5")
