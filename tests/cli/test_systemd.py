"""What systemd hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cli.serving.systemd import Service

DEADLINE_S = 20.0


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Its socket, and the name of that for a service."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@supervise-{tmp_path.name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        yield sock, name


def test_life_of_a_service(manager):
    sock, name = manager
    loop = asyncio.new_event_loop()
    service = Service({"NOTIFY_SOCKET": name})
    service.ready("listening on http://127.0.0.1:8900", loop)
    before = time.monotonic_ns() // 1000
    service.reloading()
    after = time.monotonic_ns() // 1000
    service.notify("READY=1")
    service.stopping("draining")
    heard = [sock.recv(4096).decode().split("\n") for _ in range(4)]
    reloading, at = heard.pop(1)
    assert reloading == "RELOADING=1"
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= after
    assert heard == [
        ["READY=1", "STATUS=listening on http://127.0.0.1:8900"],
        ["READY=1"],
        ["STOPPING=1", "STATUS=draining"],
    ]
    loop.close()


def test_loop_that_turns_feeds_the_watchdog(manager):
    sock, name = manager
    sock.setblocking(False)
    service = Service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})

    async def hear() -> list[bytes]:
        loop = asyncio.get_running_loop()
        service.ready("serving", loop)
        return [await asyncio.wait_for(loop.sock_recv(sock, 4096), DEADLINE_S) for _ in range(4)]

    assert asyncio.run(hear()) == [b"READY=1\nSTATUS=serving", *[b"WATCHDOG=1"] * 3]


def test_watchdog_of_another_process_is_not_ours(manager):
    sock, name = manager
    loop = asyncio.new_event_loop()
    Service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}).ready("serving", loop)
    sock.setblocking(False)
    assert sock.recv(4096).startswith(b"READY=1")
    with pytest.raises(BlockingIOError):
        sock.recv(4096)
    loop.close()


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens-here", "vsock:2:1234"])
def test_nobody_listens(name):
    Service({"NOTIFY_SOCKET": name}).notify("READY=1")
    Service({}).notify("READY=1")
