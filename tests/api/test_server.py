from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api.http.server import listen, listen_unix, url_of
from supervisor.errors import UsageError
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from conftest import Site


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def test_port_0_picks_one() -> None:
    sockets = listen("127.0.0.1", 0)
    try:
        port = sockets[0].getsockname()[1]
        assert url_of("127.0.0.1", sockets) == f"http://127.0.0.1:{port}"
        assert port > 0
    finally:
        _close(sockets)


def test_a_name_listens_on_all_its_addresses_with_one_port() -> None:
    sockets = listen("localhost", 0)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert url_of("localhost", sockets).startswith("http://localhost:")
        for sock in sockets:
            socket.create_connection(sock.getsockname()[:2], timeout=20).close()
    finally:
        _close(sockets)


def test_port_0_is_free_on_all_addresses(own_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may have, on the second address, the port that was free on the first."""
    create, others = socket.create_server, contextlib.ExitStack()

    def create_late(address: tuple[Any, ...], **given: Any) -> socket.socket:
        if address[1] and not taken:
            taken.append(address[1])
            others.enter_context(create((own_host, address[1])))
        return create(address, **given)

    taken: list[int] = []
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", own_host)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    monkeypatch.setattr(socket, "create_server", create_late)
    with others:
        sockets = listen("two-addresses", 0)
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1", own_host]
        assert len({sock.getsockname()[1] for sock in sockets} - set(taken)) == len(taken) == 1
        _close(sockets)


def test_ipv6() -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    sockets = listen("::1", 0)
    try:
        assert url_of("::1", sockets) == f"http://[::1]:{sockets[0].getsockname()[1]}"
    finally:
        _close(sockets)


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_a_taken_port_is_named() -> None:
    sockets = listen("127.0.0.1", 0)
    try:
        port = sockets[0].getsockname()[1]
        with pytest.raises(UsageError, match=rf"127.0.0.1:{port}: \S+ \(pid {os.getpid()}\) listens there.*--port"):
            listen("127.0.0.1", port)
    finally:
        _close(sockets)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "::ffff:192.0.2.1", "a..b", "x" * 300])
def test_a_host_that_is_not_here(host: str) -> None:
    with pytest.raises(UsageError, match=host):
        listen(host, 0)


def test_a_port_just_left_can_be_taken_again(make_site: Callable[..., Site], own_host: str) -> None:
    site = make_site(host=own_host)
    client = site.connect()
    client.request("GET", "/livez")
    site.read(client)
    site.do(site.server.stop(0.0))  # the server closes first, so its side is in TIME_WAIT
    client.close()
    _close(listen(own_host, site.port))


def test_a_unix_socket_is_its_owners_alone(make_site: Callable[..., Site], tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listen_unix(path).close()  # leaves a stale one
    site = make_site(unix=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert site.ask("GET", "/livez").status == 200


def test_a_unix_socket_has_its_mode_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its descriptor: at its path there may be another thing by then."""
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(0)
    try:
        with listen_unix(tmp_path / "s.sock"):
            assert stat.S_IMODE((tmp_path / "s.sock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a socket another user's")
def test_a_unix_socket_of_another_user_is_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listen_unix(path).close()
    os.chown(path, 65534, 65534)
    with pytest.raises(UsageError, match="cannot listen on"):
        listen_unix(path)
    assert path.lstat().st_uid == 65534


@pytest.mark.parametrize("name", ["missing/s.sock", "x" * 200, "file"])
def test_where_no_unix_socket_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="cannot listen on"):
        listen_unix(tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_stop_lets_a_running_answer_finish(make_site: Callable[..., Site], own_host: str) -> None:
    site = make_site(host=own_host)
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)

    async def stop_meanwhile() -> None:
        stopping = asyncio.ensure_future(site.server.stop(20.0))
        await asyncio.sleep(0)  # it has begun, and who waits for the job has not yet said how far that is
        site.engine.change("a", status=JobStatus.COMPLETED)
        await stopping

    with site.raw(b"GET /status-sync/a HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock, sock.makefile("rb") as answer:
        site.until(lambda: site.engine.waiting > 1)
        site.do(stop_meanwhile())
        assert (
            b'"status":"COMPLETED"' in answer.read()
        )  # to the end: newer versions of uvicorn also announce that they close
    with pytest.raises(ConnectionRefusedError):
        site.raw()


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/status-sync/a", '"status":"IN_PROGRESS"'),
        ("POST", "/runsync", '"status":"IN_PROGRESS"'),
        ("GET", "/stream/a?wait=60000", '{"status":"IN_PROGRESS","stream":[]}'),
    ],
)
def test_a_stop_answers_waits_with_what_is_so_far(site: Site, method: str, path: str, said: str) -> None:
    site.call(site.engine.change, "a", status=JobStatus.IN_PROGRESS)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(site.ask, method, path, {"input": 1, "id": "a"} if method == "POST" else None)
        site.until(lambda: site.engine.waiting > 1)
        site.do(site.server.stop(0.01))
        answer = asked.result()
    assert answer.status == 200
    assert said in answer.body.decode()


def test_a_stop_ends_idle_and_unfinished_connections(make_site: Callable[..., Site]) -> None:
    site = make_site()
    idle, half = site.raw(), site.raw(b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
    site.ask("GET", "/livez")  # so that both were accepted
    site.do(site.server.stop(0.01))
    for sock in (idle, half):
        with sock, contextlib.suppress(ConnectionError):  # a reset, if something was still unread
            assert site.read_to_end(sock) == b""


def test_nothing_is_written_to_the_terminal(make_site: Callable[..., Site], capfd: pytest.CaptureFixture[str]) -> None:
    site = make_site()
    site.ask("GET", "/livez")
    site.ask("GET", "/livez", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    with site.raw(b"nonsense\r\n\r\n") as sock:
        site.read_to_end(sock)
    site.engine.refuse = ZeroDivisionError()
    site.ask("POST", "/run", {"input": 1})
    assert capfd.readouterr() == ("", "")


def test_answers_carry_a_date_and_no_advertisement(site: Site) -> None:
    headers = site.ask("GET", "/livez").headers
    assert "GMT" in headers["date"]
    assert "server" not in headers
