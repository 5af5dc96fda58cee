from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.api.auth import Guard
from supervisor.errors import RequestError

if TYPE_CHECKING:
    from conftest import Site

OPEN = Guard(())

HOSTS = [
    ("localhost", True),
    ("LOCALHOST:8000", True),
    ("127.0.0.1", True),
    ("127.8.9.1:80", True),
    ("[::1]", True),
    ("[::1]:8000", True),
    ("", False),
    ("example.com", False),
    ("example.com:8000", False),
    ("localhost.example.com", False),
    ("127.0.0.1.example.com", False),
    ("192.168.1.5:8000", False),
    ("0.0.0.0", False),
    ("[::2]:8000", False),
    ("localhost:port", False),
    ("localhost/x", False),
    ("evil@localhost", False),
    ("localhost:8000@evil", False),
    ("[::1", False),
]


@pytest.mark.parametrize(("host", "passes"), HOSTS)
def test_without_keys_the_host_is_loopback(host: str, passes: bool) -> None:
    if passes:
        OPEN.check({b"host": host.encode()})
    else:
        with pytest.raises(RequestError, match="Host") as caught:
            OPEN.check({b"host": host.encode()})
        assert caught.value.status == 403


ORIGINS = [
    ("http://localhost:8000", "localhost:8000", True),
    ("http://LocalHost:8000", "localhost:8000", True),
    ("http://localhost", "localhost:80", True),
    ("https://localhost", "localhost", True),
    ("http://[::1]:8000", "[::1]:8000", True),
    ("http://localhost:3000", "localhost:8000", False),
    ("http://localhost:8000", "127.0.0.1:8000", False),
    ("https://evil.example", "localhost:8000", False),
    ("null", "localhost:8000", False),
    ("", "localhost:8000", False),
    ("file://", "localhost:8000", False),
    ("http://localhost:8000/", "localhost:8000", False),
    ("https://friend.example", "localhost:8000", True),
    ("https://FRIEND.example", "localhost:8000", True),
]


@pytest.mark.parametrize(("origin", "host", "passes"), ORIGINS)
def test_without_keys_a_foreign_origin_is_refused(origin: str, host: str, passes: bool) -> None:
    guard = Guard((), ("https://friend.example",))
    headers = {b"host": host.encode(), b"origin": origin.encode()}
    if passes:
        guard.check(headers)
    else:
        with pytest.raises(RequestError, match="Origin") as caught:
            guard.check(headers)
        assert caught.value.status == 403


def test_any_host_still_refuses_foreign_origins() -> None:
    guard = Guard((), any_host=True)
    guard.check({b"host": b"gpu-box:8000", b"origin": b"http://gpu-box:8000"})
    with pytest.raises(RequestError, match="Origin"):
        guard.check({b"host": b"gpu-box:8000", b"origin": b"https://evil.example"})


KEYS = [
    ("Bearer one", True),
    ("bearer  two", True),
    ("one", True),
    ("two", True),
    ("", False),
    ("Bearer", False),
    ("Bearer ", False),
    ("Bearer three", False),
    ("Basic one", False),
    ("Bearer one two", False),
    ("on", False),
    ("onee", False),
    ("ONE", False),
]


@pytest.mark.parametrize(("value", "passes"), KEYS)
def test_keys(value: str, passes: bool) -> None:
    guard = Guard(("one", "two"))
    headers = {b"authorization": value.encode(), b"host": b"gpu-box", b"origin": b"https://anywhere.example"}
    if passes:
        guard.check(headers)
    else:
        with pytest.raises(RequestError) as caught:
            guard.check(headers)
        assert caught.value.status == 401


def test_keys_over_http(make_site: Callable[..., Site]) -> None:
    site = make_site(auto=True, api_key=("one",))
    for headers in ({"Authorization": "Bearer one"}, {"Authorization": "one"}):
        assert site.ask("POST", "/runsync", {"input": 1}, headers).status == 200
    for method, path in (("POST", "/run"), ("GET", "/snapshot"), ("GET", "/nowhere"), ("OPTIONS", "/run")):
        answer = site.ask(method, path, headers={"Authorization": "Bearer wrong"})
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="supervise"')
        assert "key" in answer.error
    for path in ("/livez", "/readyz"):
        assert site.ask("GET", path).status == 200
    assert len(site.engine.submitted) == 2


def test_host_and_origin_over_http(site: Site) -> None:
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert site.ask("POST", "/run", {"input": 1}, foreign).status == 403
    assert site.ask("POST", "/run", {"input": 1}, {"Origin": "https://evil.example"}).status == 403
    assert site.ask("POST", "/run", {"input": 1}, {"Origin": f"http://127.0.0.1:{site.port}"}).status == 200
    assert site.ask("GET", "/livez", headers=foreign).status == 200
    assert len(site.engine.submitted) == 1


def test_an_allowed_origin_may_read_the_answers(make_site: Callable[..., Site]) -> None:
    site = make_site(allow_origin=("https://friend.example",))
    friend = {"Origin": "https://friend.example"}
    asks = {**friend, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = site.ask("OPTIONS", "/run", headers=asks)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for status, path in ((200, "/health"), (404, "/nowhere")):
        answer = site.ask("GET", path, headers=friend)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://friend.example")
    assert "access-control-allow-origin" not in site.ask("GET", "/health").headers
    assert site.ask("OPTIONS", "/run", headers={**asks, "Origin": "https://evil.example"}).status == 403


def test_a_preflight_needs_no_key(make_site: Callable[..., Site]) -> None:
    site = make_site(allow_origin=("https://friend.example",), api_key=("one",))
    asks = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    assert site.ask("OPTIONS", "/run", headers=asks).status == 204
    refused = site.ask("POST", "/run", {"input": 1}, {"Origin": "https://friend.example"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://friend.example")


def test_the_private_socket_asks_for_nothing(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(unix=tmp_path / "private.sock", api_key=("one",))
    headers = {"Host": "anything", "Origin": "https://anywhere.example"}
    assert site.ask("GET", "/snapshot", headers=headers).json["endpointId"] == "echo"
