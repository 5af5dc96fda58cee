"""What a dead template left is found by its mark, also by a look that comes at the wrong moment."""

from __future__ import annotations

import subprocess

import pytest

from supervisor.host import orphans
from supervisor.host.processes import Marked

PATIENCE_S = 20.0


@pytest.fixture
def cat():
    """Starts processes that wait, with that environment."""
    started = []

    def start(**env):
        one = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0)
        started.append(one)
        one.stdin.write(b"x")
        assert one.stdout.read(1) == b"x"  # so its exec is over
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_all_that_have_the_mark_are_killed_and_counted_once(cat):
    marked = [cat(SUPERVISE_RUN_ID="a-run", OTHER="x") for _ in range(3)]
    others = [cat(SUPERVISE_RUN_ID="another-run"), cat()]
    assert orphans.sweep_marked("a-run", PATIENCE_S) == 3
    assert [one.wait(20) for one in marked] == [-9] * 3
    assert [one.poll() for one in others] == [None, None]


@pytest.mark.parametrize("first", ["in the middle of an exec", "not there yet"])
def test_who_is_missed_by_one_look_is_found_by_the_next(cat, monkeypatch, first):
    missed = cat(SUPERVISE_RUN_ID="a-run")
    looks = [Marked([], [missed.pid])] * 3 if first == "in the middle of an exec" else [Marked([], [])]
    look = orphans.processes_with
    monkeypatch.setattr(orphans, "processes_with", lambda mark: looks.pop() if looks else look(mark))
    if first == "in the middle of an exec":
        monkeypatch.setattr(orphans, "_EXEC_S", PATIENCE_S)
        looks[0] = Marked([], [])  # the last: its exec is over, and it has forked meanwhile
    assert orphans.sweep_marked("a-run", PATIENCE_S) == 1
    assert missed.wait(20) == -9


def test_it_comes_to_an_end_though_somebody_is_always_found(monkeypatch, cat):
    looks = []

    def look(mark):
        looks.append(mark)
        return Marked([cat(SUPERVISE_RUN_ID="a-run").pid], [])

    monkeypatch.setattr(orphans, "processes_with", look)
    assert orphans.sweep_marked("a-run", patience=0.02) == len(looks)
