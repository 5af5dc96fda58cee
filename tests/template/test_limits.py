"""What workers may have of the machine that they share: memory's last resort, cores, processes, and ``/tmp``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.cause import TooManyProcesses
from supervisor.host.processes import children_of, picture, tree
from supervisor.template import mounts
from supervisor.wire import messages as wire

NOBODY = 65534
SYSTEMS_PYTHON = "/usr/bin/python3"
ROOT = str(Path(__file__).parents[2])
PYTHON = tuple(path for path in {ROOT, sys.prefix, sys.base_prefix} if path.startswith("/tmp/"))


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def refused(folder: Path, python: str = sys.executable, user: int | None = None) -> str:
    """Why this system does not let us mount; empty if it does."""
    words = [python, "-I", "-c", Path(mounts.__file__).read_text(), str(folder)]
    return subprocess.run(words, cwd="/", user=user, group=user, stderr=subprocess.PIPE, text=True).stderr


@pytest.fixture
def private(tmp_path: Path) -> None:
    (tmp_path / "tried").mkdir()
    if reason := refused(tmp_path / "tried"):
        pytest.skip(f"this system allows no mounts: {reason}")


def test_kernel_ends_a_worker_before_the_template_and_that_before_the_supervisor(house):
    facts = house.fork("reports_its_share").hears()
    ours, template = oom_score_adj(os.getpid()), oom_score_adj(house.template.pid)
    assert (template, facts["oom"]) == (min(ours + 250, 1000), min(ours + 500, 1000))
    assert facts["grandchild's oom"] == facts["oom"]


def test_worker_runs_on_its_cores(make_house):
    cpus = sorted(os.sched_getaffinity(0))
    house = make_house(limits=wire.Limits(cpus={"cpu0": (cpus[-1],)}))
    assert house.fork("reports_its_share", "cpu0").hears()["cpus"] == [cpus[-1]]
    assert house.fork("reports_its_share", "cpu1").hears()["cpus"] == cpus


def test_core_that_is_not_there_is_a_warning(make_house):
    house = make_house(limits=wire.Limits(cpus={"cpu0": (1_000_000,)}))
    worker = house.fork("reports_its_share")
    assert worker.hears()["cpus"] == sorted(os.sched_getaffinity(0))
    assert "--cpu-affinity: not pinned to the cores [1000000]" in worker.output()


@pytest.mark.parametrize("kind", [{}, {"SESSIONS": "1"}], ids=["one session", "sessions of their own"])
def test_tree_over_the_limit_is_ended_and_others_are_not(make_house, kind):
    house = make_house(limits=wire.Limits(processes=50))
    modest = house.fork("forks_to_a_number", "cpu1", NUMBER="40", **kind)
    assert modest.hears() == "done"
    bomb = house.fork("forks_to_a_number", "cpu0", NUMBER="150", **kind)
    died, swept = house.ends(bomb)
    assert died.cause == TooManyProcesses(50)
    assert died.status < 0
    left = house.expect(wire.Forked, lambda report: report.slot == "cpu1").pid
    assert len(tree(picture(), {left})) == 40
    house.template.send(wire.EndTree("cpu1", 1))
    died, swept = house.ends(modest)
    assert (died.cause, swept.killed) == (None, 39)


def test_dead_processes_count_little(make_house):
    house = make_house(limits=wire.Limits(processes=5))
    modest = house.fork("forks_to_a_number", "cpu1", NUMBER="80", DEAD="1")
    assert modest.hears() == "done"
    died, _ = house.ends(house.fork("forks_to_a_number", "cpu0", NUMBER="110", DEAD="1"))
    assert died.cause == TooManyProcesses(80, dead=True)
    modest.tell("go")
    died, _ = house.ends(modest)
    assert (died.status, died.cause) == (0, None)


def test_number_is_not_limited_by_zero(make_house):
    house = make_house(limits=wire.Limits(processes=0))
    worker = house.fork("forks_to_a_number", NUMBER="60")
    assert worker.hears() == "done"
    worker.tell("go")
    died, swept = house.ends(worker)
    assert (died.status, died.cause, swept.killed) == (0, None, 59)


def test_what_a_dead_worker_left_is_limited_too(make_house):
    """Nobody lists runners as fast as they fork; the worker is dead, so it is the template's sweep that meets them."""
    house = make_house(limits=wire.Limits(processes=20))
    bomb = house.fork("forks_to_a_number", NUMBER="150", SESSIONS="1")
    house.template.send(wire.EndTree("cpu0", 1))
    house.ends(bomb)
    assert len(children_of(house.template.pid)) <= 1  # the worker forked ahead


@pytest.mark.usefixtures("private")
def test_private_tmp(make_house, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    paths = (str(kept), *PYTHON)
    house = make_house(limits=wire.Limits(private_tmp=True, kept=paths))
    seen = {Path(path).relative_to("/tmp").parts[0] for path in paths}
    for slot in ("cpu0", "cpu1"):
        worker = house.fork("reports_its_share", slot, LITTER=f"litter-{tmp_path.name}", KEPT=f"{kept}:{tmp_path}")
        facts = worker.hears()
        assert facts["before"] == {"/tmp": sorted([f"{slot}-1", *seen]), "/var/tmp": []}
        assert facts["tempdir"] == f"/tmp/{slot}-1"
        assert facts["kept"] == [str(kept)]
        assert facts["user"] == os.getuid()
        worker.tell("go")
        died, swept = house.ends(worker)
        assert (died.status, swept.killed) == (0, 0)
    house.template.send(wire.Quit())
    assert house.template.wait(30) == 0
    assert not house.tmp_root.exists()
    assert (kept / "file").exists()
    for place in mounts.HIDDEN:
        assert not list(Path(place).glob(f"litter-{tmp_path.name}*"))


@pytest.mark.usefixtures("private")
def test_worker_with_a_private_tmp_dies_with_the_template(make_house, watch):
    house = make_house(limits=wire.Limits(private_tmp=True, kept=PYTHON))
    worker = watch(house.fork("reports_its_share").hears()["pid"])
    house.template.kill()
    assert worker.ended(within=30)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try it as another user")
@pytest.mark.skipif(not os.access(SYSTEMS_PYTHON, os.X_OK), reason="there is no Python that every user may run")
def test_private_tmp_of_an_ordinary_user(tmp_path):
    folder = Path("/tmp", f"nobody-{tmp_path.name}-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    try:
        reason = refused(folder, SYSTEMS_PYTHON, NOBODY)
        if reason:
            pytest.skip(f"this system refuses it: {reason}")
        assert (folder / "tmp/tried").is_dir()
    finally:
        shutil.rmtree(folder)
