"""A worker that floods the supervisor past all that holds an honest one back: others go on, and the supervisor does not grow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Runs, Supervise

CHILDREN = Path(__file__).parents[1] / "children"
TWO_WORKERS = (CHILDREN / "runs_a_child.py", "--gpus", "none", "--workers", 2, "--grace", "200ms")

MIB = 2**20
GROWTH_MIB = 60
"""How much the supervisor may grow: it holds some messages of a worker, and what the screens show."""


def flood(**message: object) -> dict[str, Any]:
    return {"child": "floods_its_pipe", "message": message, "count": 0}


FLOODS: dict[str, Any] = {
    "progress": flood(type="progress", value="1"),
    "chunks": flood(type="chunk", index=0, value="1"),
    "warnings": flood(type="warning", message="x" * MIB),
    "changes of room": flood(type="capacity", capacity=10**9),
    "empty lines": {"child": "floods_empty_lines", "mib": 20},
}


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB


def others_go_on(run: Supervise) -> bool:
    """Whether several jobs one after the other are quick, beside a flood."""
    took = []
    for number in range(3):
        began = time.monotonic()
        assert run.runsync(number)["output"] == number
        took.append(time.monotonic() - began)
    return sorted(took)[len(took) // 2] < 1


def test_a_flood_in_the_pipe_delays_no_other_slot_and_fills_no_memory(supervise: Runs) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    assert run.runsync("before")["output"] == "before"
    before = resident_mib(run.pid)
    for name, given in FLOODS.items():
        job = run.run(given)
        slot = run.started(job)
        run.until(lambda: others_go_on(run))  # a busy machine delays them too, but not for long
        assert resident_mib(run.pid) - before < GROWTH_MIB, name
        assert len(run.ask("GET", "/snapshot").body) < 3 * MIB, name
        run.post(f"/cancel/{job}")
        run.until(lambda slot=slot: run.workers()[slot]["state"] == "idle")
    assert run.stop() == 0
