"""Two files with one name, started from one folder: what the one left queued never runs in the other unless a person says so."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

ROOT = Path(__file__).parents[2]
STORE = ".supervise/handler.db"

HANDLER = """
import pathlib

def handler(job):
    if job["input"] is not None:
        open(job["input"]).read()
    return pathlib.Path(__file__).parent.name
"""


class Twins:
    """``h1/handler.py`` and ``h2/handler.py``, started from the folder of both without ``--store``."""

    def __init__(self, supervise: Runs) -> None:
        self._supervise = supervise
        for name in ("h1", "h2"):
            (supervise.folder / name).mkdir()
            (supervise.folder / name / "handler.py").write_text(HANDLER)

    def start(self, *arguments: object, **env: str) -> Supervise:
        own = ["--gpus", "none", "--port", "0", "--lock-dir", str(self._supervise.folder / "locks"), "--no-dashboard"]
        command = [sys.executable, str(ROOT / "bin/supervise"), *own, *map(str, arguments)]
        return self._supervise.start(command, env)

    def leave(self, gate: Gate, how: int) -> list[str]:
        """Have ``h1`` end by signal ``how`` while one job runs and another waits; their ids."""
        run = self.start("h1/handler.py", "--drain-timeout", "50ms").ready()
        jobs = [run.run(gate.path)]
        gate.reached()
        jobs.append(run.run())
        run.kill(how)
        run.wait()
        self._supervise.all_gone()
        gate.close()
        return jobs


@pytest.fixture
def twins(supervise: Runs) -> Twins:
    return Twins(supervise)


def outputs(run: Supervise, jobs: list[str]) -> list[object]:
    return [run.ended(job)["output"] for job in jobs]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_of_another_file_are_not_run(
    twins: Twins, make_gate: Callable[[], Gate], tmp_path: Path, how: int
) -> None:
    gate = make_gate()
    jobs = twins.leave(gate, how)

    # Before it looks for GPUs: there is no 7.
    for options in ([], ["--durability", "full"], ["--simulate-gpus", 1, "--gpus", 7]):
        refused = twins.start("h2/handler.py", *options)
        assert refused.wait() == 2
        said = refused.stderr.whole()
        assert len(said.splitlines()) == 1
        names = (tmp_path / "h1/handler.py", tmp_path / "h2/handler.py", STORE)
        for word in (*names, "2 unfinished jobs", "--endpoint-id", "--store", "--adopt"):
            assert str(word) in said

    # By any name of it, the right handler finds them as they were, and runs them.
    run = twins.start("./h2/../h1/handler.py")
    held = "1 queued, 1 interrupted" if how == signal.SIGKILL else "2 queued"
    run.wait_for_line(rf"^store {STORE}: {held}$")
    run.ready()
    gate.open()
    assert outputs(run, jobs) == ["h1", "h1"]
    assert run.stop() == 0
    assert run.stderr.whole().endswith("\nstopped\n")


def test_what_is_left_is_said_and_adopted(twins: Twins, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    gate = make_gate()
    run = twins.start("h1/handler.py", "--drain-timeout", "50ms").ready()
    jobs = [run.run(gate.path)]
    gate.reached()
    run.kill(signal.SIGHUP)  # a reload keeps the owner
    jobs.append(run.run())
    assert run.stop() == 0
    assert run.stderr.whole().endswith(f"\nstopped; 2 jobs stay queued in {STORE}\n")
    gate.close()

    run = twins.start("h2/handler.py", SUPERVISE_ADOPT="1")
    said = run.wait_for_line("--adopt").string
    assert str(tmp_path / "h1/handler.py") in said
    assert str(tmp_path / "h2/handler.py") in said
    run.ready()
    gate.open()
    assert outputs(run, jobs) == ["h2", "h2"]
    kept = run.run(gate.path)
    gate.reached()
    run.kill()
    run.wait()
    gate.close()

    # They are its own now, and the other's no more.
    assert twins.start("h1/handler.py").wait() == 2
    run = twins.start("h2/handler.py").ready()
    gate.open()
    assert outputs(run, [kept]) == ["h2"]
    assert run.stop() == 0

    # Nothing is left to run: whoever comes has the store, and is told whose it was.
    run = twins.start("h1/handler.py")
    run.wait_for_line(f"{STORE}: .*h2/handler.py, with 0 unfinished jobs$")
    run.wait_for_line(rf"^store {STORE}: 0 queued, 3 ended$")
    assert run.ready().runsync()["output"] == "h1"
    assert run.stop() == 0


@pytest.mark.parametrize("given", [["--store", STORE], ["--endpoint-id", "handler"]])
def test_a_name_that_was_given_is_taken_at_its_word(
    twins: Twins, make_gate: Callable[[], Gate], given: list[str]
) -> None:
    gate = make_gate()
    jobs = twins.leave(gate, signal.SIGKILL)
    run = twins.start("h2/handler.py", given[0], "elsewhere").ready()
    assert run.get("/health")["jobs"]["inQueue"] == 0
    assert run.stop() == 0

    run = twins.start("h2/handler.py", *given)
    said = run.wait_for_line(f"{STORE}: .*h2/handler.py .*h1/handler.py, with 2 unfinished jobs")
    assert given[0] in said.string
    run.ready()
    gate.open()
    assert outputs(run, jobs) == ["h2", "h2"]
    assert run.stop() == 0
    assert sum("h1/handler.py" in line for line in run.stderr.lines) == 1


def test_a_start_without_its_gpu_takes_nothing_over(twins: Twins, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    jobs = twins.leave(gate, signal.SIGKILL)
    failed = twins.start("h2/handler.py", "--adopt", "--simulate-gpus", 1, "--gpus", "7")
    assert failed.wait() == 2
    said = failed.stderr.whole()
    assert "7" in said
    assert "takes it over" not in said
    run = twins.start("h1/handler.py").ready()
    gate.open()
    assert outputs(run, jobs) == ["h1", "h1"]
    assert run.stop() == 0
