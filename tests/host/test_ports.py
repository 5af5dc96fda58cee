"""Whose worker has the port: over real sockets of real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from supervisor.host import ports

LISTENS = """
import socket, subprocess, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sibling() -> Iterator[tuple[int, int]]:
    """A process whose child listens, and the port."""
    with subprocess.Popen(
        ["/bin/sh", "-c", f"{sys.executable} -c '{LISTENS}'; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def refusal(port: int) -> str:
    with pytest.raises(OSError, match="in use") as refused:
        socket.create_server(("127.0.0.1", port))
    return str(refused.value)


def test_worker_that_listens_is_named(sibling):
    pid, port = sibling
    pids = {"gpu0": pid, "gpu1": os.getpid()}
    for error in (
        f"error while attempting to bind on address ('127.0.0.1', {port}): address already in use",
        json.dumps({"error_message": refusal(port)}),
    ):
        assert ports.taken(error, "gpu1", pids) == {"gpu0": {port}}


@pytest.mark.parametrize("error", ["", "boom", "the memory is in use", "Errno 98765"])
def test_other_errors(sibling, error):
    assert ports.taken(error, "gpu1", {"gpu0": sibling[0]}) == {}


def test_port_that_no_worker_has(sibling):
    pids = {"gpu0": sibling[0], "gpu1": os.getpid()}
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        for name in (f"('127.0.0.1', {port})", f"port {port}", f"0.0.0.0:{port}", f"[::]:{port}", f"localhost:{port}"):
            assert ports.taken(f"cannot listen at {name}: address already in use", "gpu1", pids) == {}


def test_error_that_does_not_say_which_port(sibling):
    pid, port = sibling
    error = "[Errno 98] Address already in use"
    assert ports.taken(error, "gpu1", {"gpu0": pid, "gpu1": os.getpid()}) == {"gpu0": {port}}


def test_worker_that_is_gone():
    assert ports.taken("address already in use", "gpu1", {"gpu0": 2**22 + 1}) == {}
