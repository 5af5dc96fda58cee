"""More clients than there are descriptors: they keep neither a client with a job away nor a worker from being replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Runs

DESCRIPTORS, CLIENTS = 200, 400
DEADLINE_S = 20.0

STARTS = (b"", b"POST /ru", b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")


def test_a_crowd_of_clients_takes_no_descriptor_that_the_supervisor_needs(supervise: Runs) -> None:
    handler = supervise.write("echo.py", "def handler(job):\n    return job['input']\n")
    command = supervise.command(handler, "--gpus", "none", "--workers", 2, "--no-dashboard")
    run = supervise.start(["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *command]).ready("cpu0", "cpu1")
    with contextlib.ExitStack() as crowd:
        for number in range(CLIENTS):
            sock = crowd.enter_context(socket.create_connection(("127.0.0.1", run.port), timeout=DEADLINE_S))
            with contextlib.suppress(ConnectionError):
                sock.sendall(STARTS[number % len(STARTS)])
        assert run.runsync("served")["output"] == "served"
        # Those that have to go are closed a moment later.
        run.until(lambda: len(list(Path(f"/proc/{run.pid}/fd").iterdir())) <= DESCRIPTORS * 0.8)
        for worker in run.workers().values():
            os.kill(worker["pid"], signal.SIGKILL)
        run.until(
            lambda: all(worker["generation"] > 1 and worker["state"] == "idle" for worker in run.workers().values())
        )
        assert run.runsync("again")["output"] == "again"
    assert run.stop() == 0
    assert "Too many open files" not in run.stderr.whole()
