"""Workers that misbehave in every way we know of: each hurts its own job only, and a person can read what happened."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

CHILDREN = Path(__file__).parents[1] / "children"
TWO_WORKERS = (CHILDREN / "runs_a_child.py", "--gpus", "none", "--workers", 2, "--grace", "200ms")

DEADLY = {
    "calls_sys_exit": ["exited with code 1", "nothing more to do"],
    "exits_at_once": ["exited with code 4", "one whole line", "and half of ano"],
    "segfaults": ["crashed with SIGSEGV", "Fatal Python error: Segmentation fault", "segfaults.py"],
    "kills_itself": ["was killed by SIGKILL; it may have run out of memory", "allocating"],
    "aborts": ["crashed with SIGABRT", "assertion failed: n > 0"],
    "prints_and_crashes": ["crashed with SIGSEGV", "last words of C"],
}
"""What kills its worker, and what the job's error says of it, in that order."""

PROTOCOL = {
    "no message": "0000000401020304",
    "a job that does not run": (30).to_bytes(4, "big").hex() + b'["Done","another","COMPLETED"]'.hex(),
    "far too long": (0xFFFFFFFF).to_bytes(4, "big").hex() + (2**62).to_bytes(8, "big").hex(),
}


def at_a_gate(run: Supervise, gate: Gate) -> tuple[str, str]:
    """A job that stands at ``gate`` in one of the slots: its id and the slot."""
    job = run.run({"child": "waits", "gate": gate.path})
    gate.reached()
    return job, run.started(job)


def cancel(run: Supervise, job: str) -> float:
    """Cancel ``job``, which is answered at once; the seconds until its slot has another worker that takes jobs."""
    slot, _, generation = run.status(job)["workerId"].partition("-")
    began = time.monotonic()
    assert run.post(f"/cancel/{job}") == {"id": job, "status": "CANCELLED"}
    assert run.status(job)["status"] == "CANCELLED"
    run.until(lambda: (it := run.workers()[slot])["state"] == "idle" and it["generation"] > int(generation))
    return time.monotonic() - began


def test_each_death_hurts_its_own_job_only(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    gate = make_gate()
    bystander, quiet = at_a_gate(run, gate)
    before = run.workers()[quiet]

    for number, (child, words) in enumerate(DEADLY.items(), start=1):
        body = run.runsync({"child": child})
        assert body["status"] == "FAILED", (child, body)
        slot = body["workerId"].partition("-")[0]
        assert re.match(rf"worker {slot} \(pid \d+\) {re.escape(words[0])}", body["error"]), (child, body)
        found = [body["error"].find(word) for word in words]
        assert found == sorted(found), (child, body)
        assert -1 not in found, (child, body)
        # The slot has a new worker at once, and it knows nothing of the one before.
        assert run.runsync({"fine": child})["output"] == {"fine": child}
        assert run.workers()[slot]["restarts"] == number
        run.wait_for_line(rf"{slot}: worker \(pid \d+\) {re.escape(words[0])}; restarting")

    after = run.workers()[quiet]
    assert (after["pid"], after["restarts"], after["state"]) == (before["pid"], 0, "busy")
    gate.open()
    assert run.ended(bystander)["status"] == "COMPLETED"
    assert run.get("/health")["jobs"] == {
        "completed": len(DEADLY) + 1,
        "failed": len(DEADLY),
        "inProgress": 0,
        "inQueue": 0,
        "retried": 0,
    }
    assert run.stop() == 0


def others_are_quick_beside(run: Supervise, child: str) -> bool:
    """Whether the jobs of one slot, one after the other, were quick while ``child`` flooded in another."""
    flood = run.run({"child": child})
    slot = run.started(flood)
    took: list[float] = []
    while run.status(flood)["status"] == "IN_PROGRESS" or not took:
        began = time.monotonic()
        body = run.runsync(len(took))
        took.append(time.monotonic() - began)
        if body["workerId"].startswith(slot):  # the flood is over
            break
    assert run.ended(flood)["output"] == "all written"
    return sorted(took)[len(took) // 2] < 0.2 and max(took) < 2


def test_a_flood_of_output_delays_no_other_slot(supervise: Runs) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    for child in ("floods_stdout", "floods_one_line"):
        # A busy machine delays them too, but not every time.
        run.until(lambda child=child: others_are_quick_beside(run, child))
    assert [worker["restarts"] for worker in run.workers().values()] == [0, 0]
    assert run.stop() == 0


def test_messages_that_are_none(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    bystander, quiet = at_a_gate(run, other := make_gate())
    gate = make_gate()
    for name, message in PROTOCOL.items():
        body = run.runsync({"child": "writes_into_its_pipe", "bytes": message, "gate": gate.path})
        assert body["status"] == "FAILED", name
        assert "broke the protocol" in body["error"], (name, body)
        assert run.runsync(1)["output"] == 1
    assert run.workers()[quiet]["restarts"] == 0

    # Half of one: nobody waits for the other half but this job, which can be cancelled.
    job = run.run({"child": "writes_into_its_pipe", "bytes": "00000100", "gate": gate.path})
    gate.reached()
    other.open()
    assert run.ended(bystander)["status"] == "COMPLETED"
    assert run.runsync(2)["workerId"].startswith(quiet)
    assert run.status(job)["status"] == "IN_PROGRESS"
    cancel(run, job)
    # Half of one, and then the worker's own messages as the rest of it.
    gate.close()
    job = run.run({"child": "writes_into_its_pipe", "bytes": "00000010", "gate": gate.path})
    gate.open()
    assert "broke the protocol" in run.ended(job)["error"]
    assert run.runsync(3)["output"] == 3
    assert run.stop() == 0


def test_who_cannot_be_asked_to_stop_is_ended(supervise: Runs) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    ended = 0

    def ends_in_time(child: str) -> bool:
        nonlocal ended
        said = len(run.stderr.lines)
        job = run.run({"child": child})
        run.wait_for_line("good night|not to be stopped|stopped", said)
        took = cancel(run, job)
        ended += 1
        assert run.status(job)["status"] == "CANCELLED"
        assert "error" not in run.status(job)
        return took < 2

    for child in ("sleeps", "ignores_sigterm", "stops_itself"):
        run.until(lambda child=child: ends_in_time(child))  # a busy machine takes longer, but not every time
    assert sum(worker["restarts"] for worker in run.workers().values()) == ended
    assert run.stop() == 0


def test_a_coroutine_that_swallows_its_cancellation_is_ended(supervise: Runs) -> None:
    run = supervise(CHILDREN / "swallows_cancellation.py", "--gpus", "none", "--grace", "1s").ready("cpu0")
    job = run.run("sleep")
    run.wait_for_line("good night")
    behind = run.run("behind it")
    cancel(run, job)
    run.wait_for_line("I do not want to")
    assert run.ended(behind)["output"] == "behind it"
    assert run.ended(behind)["retries"] == 0
    assert run.workers()["cpu0"]["restarts"] == 1
    assert run.stop() == 0


def test_odd_ways_that_hurt_nobody_and_a_death_while_idle(supervise: Runs) -> None:
    run = supervise(*TWO_WORKERS).ready("cpu0", "cpu1")
    assert run.runsync({"child": "closes_its_output"})["output"] in ("closed", "Bad file descriptor")
    assert run.runsync({"child": "returns_twice"})["output"] == "parent"
    assert [run.runsync(number)["output"] for number in range(4)] == [0, 1, 2, 3]
    assert sum(worker["restarts"] for worker in run.workers().values()) == 0
    assert run.get("/health")["jobs"]["completed"] == 6

    pids: dict[str, Any] = {slot: worker["pid"] for slot, worker in run.workers().items()}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: all(it["state"] == "idle" and it["pid"] != pids[slot] for slot, it in run.workers().items()))
    assert run.runsync(4)["output"] == 4
    assert [worker["restarts"] for worker in run.workers().values()] == [1, 1]
    assert run.stop() == 0


def test_what_a_job_printed_last_is_its_own(supervise: Runs) -> None:
    handler = supervise.write(
        "talks.py",
        "def handler(job):\n    for number in range(6000):\n        print(job['input'], number, 'x' * 90)\n"
        "    print(job['input'], 'without a line end', end='')\n",
    )
    run = supervise(handler, "--gpus", "none").ready("cpu0")
    jobs = [run.run(name) for name in ("first", "second")]
    for job in jobs:
        assert run.ended(job)["status"] == "COMPLETED"
    assert run.stop() == 0
    said = [
        line.removeprefix("cpu0 │ ").split() for line in run.stderr.whole().splitlines() if line.startswith("cpu0 │ ")
    ]
    assert [(words[0], words[2]) for words in said if words[3:4] in (["0"], ["5999"], ["without"])] == [
        (job, name) for job, name in zip(jobs, ("first", "second"), strict=True) for _ in range(3)
    ]
