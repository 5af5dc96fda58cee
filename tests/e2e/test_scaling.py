"""A whole program whose workers come and go: started by jobs that wait, stopped when none came, their GPU free again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

HELD_MIB = 64

HANDLER = f"""
HELD = bytearray({HELD_MIB} * 2**20)
def handler(job):
    if job["input"]:
        open(job["input"]).read()
    return len(HELD)
"""

QUICK = ("--scale-after", "50ms", "--idle-timeout", "100ms")


def used(run: Supervise, gpu: int) -> int:
    """The memory in use on a pretend GPU, in MiB."""
    used: int = run.get("/gpus")[gpu]["memoryUsedMiB"]
    return used


def is_spare(run: Supervise, slot: str) -> None:
    """Its worker stops, though it is asked for all the time, and holds nothing any more."""
    worker = run.until(lambda: (it := run.workers()[slot])["state"] == "parked" and it)
    assert (worker["pid"], worker["spare"], worker["restarts"]) == (None, True, 0)
    assert worker["reason"] == "idle for 0.1 s; starts when jobs wait"
    run.until(lambda: used(run, int(slot[-1])) == 0)


def test_a_burst_starts_a_second_worker_which_stops_when_it_is_over(
    supervise: Runs, make_gate: Callable[[], Gate]
) -> None:
    handler = supervise.write("holds.py", HANDLER)
    run = supervise(handler, "--simulate-gpus", 2, "--min-workers", 1, *QUICK).ready("gpu0")
    run.until(lambda: used(run, 0) >= HELD_MIB)
    spare = run.workers()["gpu1"]
    assert (spare["state"], spare["generation"], spare["reason"]) == ("parked", 0, "starts when jobs wait")

    first, second = make_gate(), make_gate()
    jobs = [run.run(first.path), run.run(second.path)]
    assert [run.started(job) for job in jobs] == ["gpu0", "gpu1"]
    second.reached()
    run.until(lambda: used(run, 1) >= HELD_MIB)
    second.open()
    assert run.ended(jobs[1])["status"] == "COMPLETED"
    is_spare(run, "gpu1")
    first.open()
    assert run.ended(jobs[0])["workerId"] == "gpu0-1"
    assert run.workers()["gpu0"]["state"] == "idle"
    assert run.get("/health")["workers"] == {
        **dict.fromkeys(("initializing", "running", "throttled", "unhealthy"), 0),
        "idle": 2,
        "ready": 1,
    }
    assert run.stop() == 0


def test_with_no_workers_at_all_everything_is_given_back(supervise: Runs) -> None:
    handler = supervise.write("holds.py", HANDLER)
    run = supervise(handler, "--simulate-gpus", 2, "--min-workers", 0, "--max-workers", 1, *QUICK).ready("gpu0")
    is_spare(run, "gpu0")
    assert run.get("/readyz") == {"status": "ok"}
    assert run.runsync()["workerId"] == "gpu0-2"
    is_spare(run, "gpu0")

    assert run.post("/workers/gpu0/pause") == {"slot": "gpu0", "status": "paused"}
    assert run.runsync()["workerId"] == "gpu1-1"
    is_spare(run, "gpu1")
    paused = run.workers()["gpu0"]
    assert (paused["state"], paused["reason"], paused["spare"]) == ("parked", "paused by hand", False)
    run.post("/workers/gpu0/resume")
    is_spare(run, "gpu0")
    assert run.workers()["gpu0"]["generation"] == 3
    assert "warning" not in str(run)
    assert run.stop() == 0


def test_a_batch_starts_what_it_needs(supervise: Runs) -> None:
    handler = supervise.write("holds.py", HANDLER)
    lines = supervise.write("lines.jsonl", '{"input": null}\n' * 5)
    done = supervise.to_the_end(handler, "--simulate-gpus", 2, "--min-workers", 0, *QUICK, "--input", lines)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["output"] for line in done.stdout.splitlines()] == [HELD_MIB * 2**20] * 5


@pytest.mark.parametrize(
    ("source", "options", "code", "message"),
    [
        ("raise ValueError('no')", ("--min-workers", 0), 2, "ValueError: no"),
        ("import os\nos._exit(7)", ("--min-workers", 0), 3, "no worker could start"),
        (HANDLER, ("--min-workers", 3), 2, "--min-workers 3: there are 2 slots; give a number from 0 to 2"),
    ],
)
def test_what_cannot_be_served(
    supervise: Runs, source: str, options: tuple[object, ...], code: int, message: str
) -> None:
    handler = supervise.write("cannot.py", source)
    done = supervise.to_the_end(handler, "--simulate-gpus", 2, *options)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
