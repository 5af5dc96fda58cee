"""The quick start of the README: the example handler, served, asked, watched and refreshed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Runs

ROOT = Path(__file__).parents[2]


def progress_of(status: Any) -> Any:
    """What a running job has said of itself."""
    return status.get("output") if status["status"] == "IN_PROGRESS" else None


def test_the_quick_start_on_simulated_gpus(supervise: Runs) -> None:
    run = supervise("handlers.my_handler", "--simulate-gpus", 2, cwd=ROOT).ready("gpu0", "gpu1")
    assert run.ask("GET", "/readyz").status == 200
    run.wait_for_line("2 simulated GPUs")

    # Under both prefixes, and no other endpoint's.
    for prefix in ("", "/v2/my_handler"):
        body = run.post(f"{prefix}/runsync", {"input": {"prompt": "a lighthouse", "steps": 2, "seconds": 0}})
        assert body["status"] == "COMPLETED"
        assert body["output"]["prompt"] == "a lighthouse"
        assert run.get(f"{prefix}/status/{body['id']}") == body
    assert "my_handler" in run.ask("POST", "/v2/another/run", {"input": 1}).error
    assert run.ask("GET", "/v2/another/health").status == 404

    # Progress is seen while it runs, and the result after it.
    job = run.run({"steps": 10_000, "seconds": 60})
    first = run.until(lambda: progress_of(run.status(job)))
    later = run.until(lambda: (now := progress_of(run.status(job))) and now["step"] > first["step"] and now)
    assert first["of"] == later["of"] == 10_000
    assert run.post(f"/cancel/{job}")["status"] == "CANCELLED"
    run.until(lambda: run.get("/health")["workers"]["idle"] == 2)
    assert run.runsync({"steps": 2000, "seconds": 0})["output"]["steps"] == 2000

    # A refresh: the job's result says nothing of it, the slot says all.
    before = run.workers()
    body = run.runsync({"steps": 1, "seconds": 0, "memory_mib": 200, "refresh": True})
    slot = body["workerId"].partition("-")[0]
    assert body["status"] == "COMPLETED"
    assert "refresh_worker" not in body["output"]
    worker = run.until(lambda: (it := run.workers()[slot])["lastRefresh"] and it["state"] == "idle" and it)
    assert worker["pid"] != before[slot]["pid"]
    assert worker["generation"] == before[slot]["generation"] + 1
    assert (worker["refreshes"], worker["restarts"]) == (1, before[slot]["restarts"])
    refresh = worker["lastRefresh"]
    assert refresh["cause"] == "the handler"
    assert refresh["verified"] is True
    assert 200 <= refresh["freedMiB"] <= 300
    times = [refresh[name] for name in ("endMs", "releaseMs", "startMs")]
    assert all(time >= 0 for time in times)
    assert refresh["totalMs"] == pytest.approx(sum(times), abs=0.01)
    said = run.wait_for_line(rf"{slot}: refreshed in .*, {refresh['freedMiB']} MiB freed; requested by the handler")
    assert "unverified" not in said[0]

    # By hand.
    other = "gpu1" if slot == "gpu0" else "gpu0"
    assert run.post(f"/workers/{other}/refresh")["slot"] == other
    assert run.until(lambda: run.workers()[other]["refreshes"]) == 1
    assert run.ask("POST", "/workers/gpu9/refresh").status == 404

    run.until(lambda: run.get("/health")["workers"]["ready"] == 2)
    assert run.get("/health") == {
        "jobs": {"completed": 4, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0},
        "workers": {"idle": 2, "initializing": 0, "ready": 2, "running": 0, "throttled": 0, "unhealthy": 0},
    }
    assert [gpu["simulated"] for gpu in run.get("/gpus")] == [True, True]
    assert run.stop() == 0


@pytest.mark.parametrize("name", ["stream_text.py", "my_handler.py"])
def test_the_examples_as_files(supervise: Runs, name: str) -> None:
    run = supervise(ROOT / "handlers" / name, "--gpus", "none").ready("cpu0")
    body = run.runsync({"steps": 1, "seconds": 0, "text": "one two", "delay": 0})
    assert body["status"] == "COMPLETED"
    assert body["output"] == ["one ", "two"] if name == "stream_text.py" else body["output"]["steps"] == 1
    assert run.get(f"/v2/{name.removesuffix('.py')}/status/{body['id']}") == body
    assert run.stop() == 0
