"""The end of the program and its signals: what runs may end, what waits is kept, nothing is left, and a reload on SIGHUP."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs

UNDER_LOAD = Path(__file__).parents[1] / "children/under_load.py"
CPU = ("--gpus", "none")
DEADLINE_S = 20.0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_drain(supervise: Runs, make_gate: Callable[[], Gate], signum: int) -> None:
    run = supervise(UNDER_LOAD, *CPU, "--workers", 2).ready("cpu0", "cpu1")
    gates = [make_gate(), make_gate()]
    running = []
    for gate in gates:
        running.append(run.run({"n": 1, "gate": gate.path, "grandchild": True}))
        gate.reached()
    queued = run.run({"n": 2})
    run.kill(signum)
    run.wait_for_line("draining")

    refused = run.ask("POST", "/run", {"input": {"n": 3}})
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert run.ask("GET", "/readyz").status == 503
    assert run.ask("GET", "/livez").status == 200
    assert run.status(running[0])["status"] == "IN_PROGRESS"
    gates[0].open()
    assert run.ended(running[0])["output"] == {"n": 1}
    assert run.status(queued)["status"] == "IN_QUEUE"
    gates[1].open()
    assert run.wait() == 0
    assert run.stderr.whole().endswith("\nstopped; 1 job stays queued in store.db\n")

    run = supervise(UNDER_LOAD, *CPU).listening()
    assert [run.ended(job)["output"] for job in (*running, queued)] == [{"n": 1}, {"n": 1}, {"n": 2}]
    assert run.status(queued)["retries"] == 0
    assert run.stop() == 0


def test_a_drain_that_takes_too_long_puts_the_jobs_back(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    for _ in range(4):  # more often than a killed supervisor may requeue a job
        run = supervise(UNDER_LOAD, *CPU, "--drain-timeout", "100ms").listening()
        jobs = [run.run({"n": 1, "gate": gate.path, "grandchild": True}, id="a-job")]
        gate.reached()
        waiting = run.run({"n": 2}, id="another")
        assert run.stop() == 0
        supervise.all_gone()
        gate.close()
    run = supervise(UNDER_LOAD, *CPU).listening()
    gate.open()
    assert run.ended(jobs[0])["output"] == {"n": 1}
    assert run.ended(waiting)["output"] == {"n": 2}
    assert run.stop() == 0


def test_a_second_ctrl_c_ends_it_at_once(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(UNDER_LOAD, *CPU).ready()
    gate = make_gate()
    job = run.run({"n": 1, "gate": gate.path, "grandchild": True})
    gate.reached()
    run.kill(signal.SIGINT)
    run.wait_for_line("draining")
    assert run.status(job)["status"] == "IN_PROGRESS"
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    assert "Traceback" not in run.stderr.whole()
    supervise.all_gone()
    gate.close()
    run = supervise(UNDER_LOAD, *CPU).listening()
    gate.open()
    assert run.ended(job)["output"] == {"n": 1}
    assert run.stop() == 0


def test_a_client_that_waits_is_told_at_the_end(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    """Of a job that goes back into the queue: its state, and not a connection that breaks."""
    run = supervise(UNDER_LOAD, *CPU, "--drain-timeout", 0).ready()
    gate = make_gate()
    job = run.run({"n": 1, "gate": gate.path})
    gate.reached()
    waits = http.client.HTTPConnection("127.0.0.1", run.port, timeout=DEADLINE_S)
    with contextlib.closing(waits):
        waits.request("GET", f"/status-sync/{job}?wait=300000")
        run.get("/health")  # the server has read what came before this
        assert run.stop() == 0
        answer = waits.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["status"] in ("IN_PROGRESS", "IN_QUEUE")


def test_a_reload(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    handler = supervise.write("handler.py", "def handler(job):\n    open(job['input']).read()\n    return 'old'\n")
    run = supervise(handler, *CPU, "--workers", 2).ready("cpu0", "cpu1")
    gate = make_gate()
    running = run.run(gate.path)
    gate.reached()
    supervise.write("handler.py", "def handler(job):\n    return 'new'\n")
    run.kill(signal.SIGHUP)
    run.until(lambda: sorted(worker["refreshes"] for worker in run.workers().values()) == [0, 1])
    assert run.runsync(1)["output"] == "new"
    gate.open()
    assert run.ended(running)["output"] == "old"
    run.until(lambda: [worker["refreshes"] for worker in run.workers().values()] == [1, 1])
    assert [run.runsync(1)["output"] for _ in range(3)] == ["new"] * 3

    # One that cannot be loaded takes the slots out of service until the next reload.
    supervise.write("handler.py", "raise ValueError('a slip')\n")
    run.kill(signal.SIGHUP)
    run.wait_for_line("cpu1: could not load the handler: .*a slip")
    run.wait_for_line("cpu0: could not load the handler: .*a slip")
    job = run.run(1)
    supervise.write("handler.py", "def handler(job):\n    return 'mended'\n")
    run.kill(signal.SIGHUP)
    assert run.ended(job)["output"] == "mended"
    assert sum(worker["restarts"] for worker in run.workers().values()) == 0
    assert run.stop() == 0


def test_signals_before_a_worker_is_ready(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    handler = supervise.write("handler.py", f"open({gate.path!r}).read()\nhandler = repr\n")
    run = supervise(handler, *CPU).listening()
    gate.reached()
    job = run.run(1)
    assert run.stop() == 0
    gate.close()
    run = supervise(handler, *CPU).listening()
    gate.reached()
    # A reload that comes while a worker loads: it must not serve what it read before.
    supervise.write("handler.py", "def handler(job):\n    return 'new'\n")
    run.kill(signal.SIGHUP)
    run.ask("GET", "/livez")  # the loop has seen the signal
    gate.open()
    assert run.ended(job)["output"] == "new"
    assert run.stop() == 0


# --- --reload -------------------------------------------------------------------------------------------------------------


def test_a_file_that_changes_is_loaded(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    handler = supervise.write("handler.py", "def handler(job):\n    open(job['input']).read()\n    return 'old'\n")
    run = supervise(handler, *CPU, "--workers", 2, "--reload").ready("cpu0", "cpu1")
    run.wait_for_line("^watching 1 Python file in ")
    gate = make_gate()
    running = run.run(gate.path)
    gate.reached()
    supervise.write("handler.py", "import helper\n\n\ndef handler(job):\n    return helper.ANSWER\n")
    run.wait_for_line(r"^handler\.py changed: reloading$")
    run.wait_for_line("No module named 'helper'")
    waiting = run.run(1)
    supervise.write("helper.py", "ANSWER = 'new'\n")
    run.wait_for_line(r"^helper\.py changed: reloading$")
    assert run.ended(waiting)["output"] == "new"
    assert run.status(running)["status"] == "IN_PROGRESS"
    gate.open()
    assert run.ended(running)["output"] == "old"
    run.until(lambda: [worker["state"] for worker in run.workers().values()] == ["idle", "idle"])
    assert [run.runsync(1)["output"] for _ in range(3)] == ["new"] * 3
    assert sum(worker["restarts"] for worker in run.workers().values()) == 0
    assert run.stop() == 0


def test_a_slip_and_its_mending(supervise: Runs) -> None:
    handler = supervise.write("handler.py", "handler = repr\n")
    run = supervise(handler, *CPU, "--workers", 2, "--reload").ready("cpu0", "cpu1")
    run.wait_for_line("^watching 1 Python file in ")
    supervise.write("handler.py", "def handler(job)\n    return 'slip'\n")
    run.wait_for_line(r"^handler\.py changed: reloading$")
    for slot in ("cpu0", "cpu1"):
        run.wait_for_line(f"^{slot}: could not load the handler: .*SyntaxError.*; next try in 0.5 s$")
    traceback = [line for line in run.stderr.lines if line.endswith("     def handler(job)")]
    assert len(traceback) == 1, f"once for both\n{run}"
    waiting = run.run(1)
    assert run.ask("GET", "/livez").status == 200
    start = len(run.stderr.lines)
    supervise.write("handler.py", "def handler(job):\n    return 'mended'\n")
    run.wait_for_line(r"^handler\.py changed: reloading$", start)
    assert run.ended(waiting)["output"] == "mended"
    assert sum(worker["restarts"] for worker in run.workers().values()) == 0
    assert run.stop() == 0
