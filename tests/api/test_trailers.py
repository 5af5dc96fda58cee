"""Trailer fields of a chunked body: they are no headers, whatever their names, and are dropped."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from supervisor.api.http import connection
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Clock, Site

POST = b"POST /runsync HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODY = b'c\r\n{"input": 7}\r\n0\r\n'
LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def job(trailers: bytes = b"", fields: bytes = HOST) -> bytes:
    """A request for a job, with ``trailers`` behind its body."""
    return POST + fields + CHUNKED + b"\r\n" + BODY + trailers + b"\r\n"


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


# --- what they are not ---------------------------------------------------------------------------------------------------

FOREIGN = {
    "host": (b"Host: evil.example\r\n", b"Host: localhost\r\n"),
    "origin": (HOST + b"Origin: https://evil.example\r\n", b"Origin: http://localhost\r\n"),
    "no host": (b"", b"Host: localhost\r\n"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_trailer_opens_no_door(site: Site, name: str, pieces: int) -> None:
    fields, trailer = FOREIGN[name]
    request = job(trailer, fields).replace(b"HTTP/1.1", b"HTTP/1.0" if name == "no host" else b"HTTP/1.1")
    with site.raw(request[: -len(trailer) - 2] if pieces > 1 else b"") as sock:
        sock.sendall(request[-len(trailer) - 2 :] if pieces > 1 else request)
        sock.shutdown(socket.SHUT_WR)
        assert b" 403 " in sock.recv(65536)
    assert not site.engine.submitted


def test_wherever_the_network_cuts_it(make_site: Callable[..., Site]) -> None:
    site = make_site(api_key=("right-key",))
    request = job(b"Authorization: right-key\r\nHost: localhost\r\n", b"Host: evil.example\r\n")
    for at in range(len(request)):
        with site.raw() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request[:at])
            assert site.call(bool, 1)  # the server had a turn
            with contextlib.suppress(ConnectionError):  # it may have refused the first part already, and gone
                sock.sendall(request[at:])
            assert statuses(site.read_up_to(sock, b"\r\n\r\n")) == [401]
    assert not site.engine.submitted


def test_a_key_in_a_trailer_is_none(make_site: Callable[..., Site]) -> None:
    site = make_site(api_key=("right-key",))
    with site.raw(job(b"Authorization: Bearer right-key\r\n")) as sock:
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert not site.engine.submitted


def test_a_trailer_behind_a_request_that_waits_its_turn_is_none(make_site: Callable[..., Site]) -> None:
    """The application sees the request only when the one before it was answered, long after its trailers came."""
    site = make_site(api_key=("right-key",))
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    waits = b"GET /status-sync/a HTTP/1.1\r\n" + HOST + b"Authorization: right-key\r\n\r\n"
    with site.raw(waits + job(b"Authorization: right-key\r\n")) as sock:
        site.until(lambda: site.engine.waiting > 1)
        site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
        assert statuses(site.read_up_to(sock, b"missing or invalid API key")) == [200, 401]
    assert not site.engine.submitted


DROPPED = {
    "host": b"Host: evil.example\r\n",
    "origin": b"Origin: https://evil.example\r\n",
    "authorization": b"Authorization: Bearer wrong\r\n",
    "expect": b"Expect: 100-continue\r\n",
    "upgrade": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "idempotency-key": b"Idempotency-Key: mine\r\n",
    "idempotency-key, empty": b"Idempotency-Key:\r\n",
    "accept": b"Accept: text/event-stream\r\n",
    "keep-alive": b"Connection: keep-alive\r\n",
    "any other": b"X-Sum: 1\r\nServer-Timing: a;dur=1\r\n",
    "many": b"".join(b"X%d: y\r\n" % number for number in range(1000)),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_stands_in_a_trailer_changes_nothing(make_site: Callable[..., Site], name: str) -> None:
    site = make_site(auto=True)
    with site.raw(job(DROPPED[name]) + job() + LAST) as sock:
        answers = site.read_to_end(sock)
    assert statuses(answers) == [200, 200, 200]
    assert answers.count(b'"output":7') == 2
    assert answers.count(b"connection: close") == 1
    assert [request.generated for request in site.engine.submitted] == [True, True]


def test_a_trailer_does_not_choose_the_kind_of_answer(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
    request = job(b"Accept: text/event-stream\r\n").replace(b"/runsync", b"/stream/a")
    with site.raw(request) as sock:
        assert b"content-type: application/json\r\n" in site.read_up_to(sock, b"}")


# --- what they may not be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trailer", [b"Content-Length: 5\r\n", CHUNKED, b"Transfer-Encoding: identity\r\n"])
@pytest.mark.parametrize("line", [POST, b"GET /livez HTTP/1.1\r\n"])
def test_a_trailer_about_the_length_changes_none(make_site: Callable[..., Site], line: bytes, trailer: bytes) -> None:
    """The parser refuses it; that of httptools 0.6.0 lets a length pass, and does not obey it."""
    site = make_site(auto=True)
    with site.raw(job(trailer).replace(POST, line) + LAST) as sock:
        seen = statuses(site.read_to_end(sock))
    assert seen in ([400], [200, 200])
    assert len(site.engine.submitted) == (line == POST and seen != [400])


def test_a_trailer_may_end_the_connection_but_keeps_no_request_unanswered_on_it(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    with site.raw(job(b"Connection: close\r\n") + LAST) as sock:
        assert statuses(site.read_to_end(sock)) == [200]


def answered(site: Site) -> bytes:
    """A request that is answered before its body is read; the answer ends with ``END``."""
    site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
    return job(b"", HOST + b"Accept: text/event-stream\r\n").replace(b"/runsync", b"/stream/a")[:-2]


END = b"\r\n0\r\n\r\n"


def test_also_when_it_was_answered_before(site: Site) -> None:
    with site.raw(answered(site)) as sock:
        site.read_up_to(sock, END)
        sock.sendall(b"Connection: close\r\n\r\n")
        assert site.read_to_end(sock) == b""


# --- how much of them ----------------------------------------------------------------------------------------------------

TOO_MANY = {
    "a long one": b"X: %b\r\n" % (b"y" * 150_000),
    "many": b"".join(b"X%d: y\r\n" % number for number in range(15_000)),
    "the name of one": b"%b: y\r\n" % (b"x" * 150_000),
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_in_one_piece_are_refused(make_site: Callable[..., Site], name: str) -> None:
    site = make_site(auto=True)
    with site.raw() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(job(TOO_MANY[name]))
        assert statuses(site.read_to_end(sock)) == [400]
    assert not site.engine.submitted


def test_those_of_one_request_are_not_counted_with_those_of_the_next(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True)
    many = b"X: %b\r\n" % (b"y" * (connection.MAX_HEAD - 100))
    with site.raw(job(many, HOST + many) + job(many, HOST + many) + LAST) as sock:
        assert statuses(site.read_to_end(sock)) == [200, 200, 200]


# --- when the answer is under way ----------------------------------------------------------------------------------------


def test_trailers_behind_an_answer_that_has_begun(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    request = job(b"Accept: application/json\r\nAuthorization: x\r\n", HOST + b"Accept: text/event-stream\r\n")
    request = request.replace(b"/runsync", b"/stream/a")
    with site.raw(request[:-20]) as sock:
        came = site.read_up_to(sock, b"retry: 1000")
        sock.sendall(request[-20:])
        site.call(site.engine.add_chunks, "a", b"1")
        site.call(site.engine.change, "a", status=JobStatus.COMPLETED)
        came += site.read_up_to(sock, b"0\r\n\r\n")
        sock.sendall(LAST)
        assert statuses(came + site.read_to_end(sock)) == [200, 200]


@pytest.mark.parametrize("rest", [CHUNKED + b"\r\n", b"no field\r\n\r\n", b"\0"])
def test_no_refusal_is_written_into_an_answer_that_has_begun(site: Site, rest: bytes) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    request = job(b"", HOST + b"Accept: text/event-stream\r\n").replace(b"/runsync", b"/stream/a")[:-2]
    with site.raw(request) as sock:
        came = site.read_up_to(sock, b"retry: 1000")
        sock.sendall(rest)
        came += site.read_to_end(sock)
    assert statuses(came) == [200]
    assert not came.endswith(b"0\r\n\r\n")


def test_no_refusal_is_written_behind_an_answer_that_was_given(site: Site) -> None:
    with site.raw(answered(site)) as sock:
        site.read_up_to(sock, END)
        sock.sendall(b"no field\r\n\r\n")
        assert site.read_to_end(sock) == b""
    with site.raw(
        job(b"", b"Host: evil.example\r\n")[:-2]
    ) as sock:  # this one is refused, and what it still sends is read
        assert statuses(sock.recv(65536)) == [403]
        sock.sendall(b"no field\r\n\r\n")
        assert site.read_to_end(sock) == b""


def test_no_refusal_takes_the_place_of_the_answer_to_another_request(site: Site) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    waits = b"GET /status-sync/a?wait=300000 HTTP/1.1\r\n" + HOST + b"\r\n"
    for behind in (b"nonsense\r\n\r\n", job() + b"nonsense\r\n\r\n", job(b"nonsense\r\n")):
        with site.raw(waits + behind) as sock:
            assert site.read_to_end(sock) == b""


def test_a_connection_on_which_nothing_begins_is_closed(clock: Clock, make_site: Callable[..., Site]) -> None:
    site = make_site()
    with site.raw(LAST.replace(b"Connection: close\r\n", b"")) as sock:
        site.read_up_to(sock, b'"ok"}')
        sock.sendall(b"\r\n\r\n")  # allowed before a request, and begins none
        site.until_heard(len(LAST) - 19 + 4)
        site.call(clock.go_on, 3 * connection.SILENCE_S)
        assert site.read_to_end(sock) == b""
