"""Clients that offer another protocol: each offer is declined, and the request answered as any other."""

from __future__ import annotations

import concurrent.futures
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Site

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
BODY = b'{"input": "whole"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def _post(offer: bytes = H2C, framing: bytes = LENGTH, body: bytes = BODY) -> bytes:
    return b"POST /runsync HTTP/1.1\r\nHost: localhost\r\n" + offer + framing + b"\r\n" + body


def _last(offer: bytes = H2C) -> bytes:
    """A request behind whose answer the connection ends."""
    return _post(offer.replace(b"Connection: ", b"Connection: close, "))


REQUESTS = [
    (_last(), 1),
    (_last(b"upgrade:websocket\r\nConnection: UPGRADE\r\nSec-WebSocket-Key: x\r\n"), 1),
    (_last(b"Connection: keep-alive\r\nUpgrade: TLS/1.0, h2c\r\nConnection: upgrade\r\n"), 1),
    (_post() + _post(b"") + _post() + _last(), 4),
    (
        _post(framing=b"Transfer-Encoding: chunked\r\n", body=b"4\r\n%b\r\ne\r\n%b\r\n0\r\n\r\n" % (BODY[:4], BODY[4:]))
        + _last(),
        2,
    ),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + H2C + b"\r\n" + _last(), 1),
]


@pytest.mark.parametrize(("request_bytes", "jobs"), REQUESTS)
def test_the_body_is_read(make_site: Callable[..., Site], request_bytes: bytes, jobs: int) -> None:
    site = make_site(auto=True)
    with site.raw(request_bytes) as sock:
        answers = site.read_to_end(sock)
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 OK") >= jobs
    assert answers.count(b'"output":"whole"') == jobs
    assert b"upgrade" not in answers.lower()
    assert not site.logged


def test_wherever_the_network_cuts_it(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    with site.raw() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(_post())):
            sock.sendall(_post()[:at])
            assert site.call(bool, 1)  # the server had a turn
            sock.sendall(_post()[at:])
            site.read_up_to(sock, b'"output":"whole","retries":0}')


def test_many_at_once(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    with concurrent.futures.ThreadPoolExecutor() as pool, site.raw() as sock:
        pool.submit(sock.sendall, _post() * 2_000 + _last())  # who does not read meanwhile may be kept from sending
        assert site.read_to_end(sock).count(b'"output":"whole"') == 2_001


def test_a_tunnel_is_refused(site: Site) -> None:
    with site.raw(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n" + H2C + b"\r\n") as sock:
        assert site.read_to_end(sock).startswith(b"HTTP/1.1 400 ")


def test_limits_hold_for_them_too(make_site: Callable[..., Site]) -> None:
    site = make_site(max_body="1KiB")
    with site.raw(_post(framing=b"Content-Length: 1025\r\n", body=b"x" * 1025)) as sock:
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
    with site.raw(_post(framing=b"Content-Length: x\r\n")) as sock:
        assert site.read_to_end(sock).startswith(b"HTTP/1.1 400 ")
