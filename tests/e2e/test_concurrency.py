"""Several jobs at once in one worker: each is logged and cancelled on its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Runs, Supervise

HANDLER = """
import asyncio
from supervisor import serverless

events = {}

async def handler(job):
    me = job["id"]
    events[me] = asyncio.Event()
    print(me, "began")
    print("unfinished", end="")
    if job["input"]:
        events[job["input"]].set()
        return
    try:
        await events[me].wait()
    except asyncio.CancelledError:
        print(", cancelled")
        raise
    print(", finished")

serverless.start({"handler": handler, "concurrency_modifier": lambda current: 3})
"""


def told_of(run: Supervise, job: str) -> list[str]:
    """What the log says of ``job``, in order: its lines, and its end."""
    entries = [json.loads(line) for line in str(run).splitlines() if line.startswith("{")]
    return [
        entry["text"] if entry["event"] == "log" else entry["status"]
        for entry in entries
        if job in (entry.get("job"), entry.get("id"))
    ]


def test_each_job_of_a_worker_is_logged_and_cancelled_on_its_own(supervise: Runs) -> None:
    run = supervise(supervise.write("many.py", HANDLER), "--gpus", "none", "--log-format", "json")
    run.port = int(run.wait_for_line(r"listening on http://\S+:(\d+)")[1])
    for job in ("a", "b"):
        run.run(None, id=job)
        run.wait_for_line(f"{job} began")
    run.post("/cancel/a")
    run.wait_for_line("unfinished, cancelled")
    run.run("b", id="c")
    assert [run.ended(job)["status"] for job in "abc"] == ["CANCELLED", "COMPLETED", "COMPLETED"]
    assert run.workers()["cpu0"]["restarts"] == 0
    assert run.stop() == 0
    run.stderr.whole()
    assert sorted(told_of(run, "a")) == ["CANCELLED", "a began", "unfinished, cancelled"]  # it is cancelled at once
    assert told_of(run, "b") == ["b began", "unfinished, finished", "COMPLETED"]
    assert told_of(run, "c") == ["c began", "unfinished", "COMPLETED"]
