"""What the kernel says about children, by either of its two ways."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from supervisor.host import processes


@pytest.mark.parametrize("lists", [True, False], ids=["as the kernel lists them", "without its lists"])
def test_children_are_listed_zombies_included(monkeypatch, lists):
    if not lists:
        read = processes._read
        monkeypatch.setattr(processes, "_read", lambda path: None if path.endswith("children") else read(path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        zombie = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        try:
            assert {living.pid, zombie} <= set(processes.children_of(os.getpid()))
            assert processes.children_of(living.pid) == []
        finally:
            os.waitpid(zombie, 0)
    assert living.pid not in processes.children_of(os.getpid())
    assert processes.children_of(living.pid) == []


def test_kill_says_whether_there_was_anyone():
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        assert processes.kill(process.pid)
    assert not processes.kill(process.pid)


def test_group_of_the_caller_is_spared():
    same, other = ([sys.executable, "-c", "input()"] for _ in range(2))
    with (
        subprocess.Popen(same, stdin=subprocess.PIPE) as mine,
        subprocess.Popen(other, stdin=subprocess.PIPE, start_new_session=True) as foreign,
    ):
        for process in (mine, foreign):
            processes.kill_with_group(process.pid)
            assert process.wait(30) == -9


def test_an_empty_environment_may_be_one_in_the_middle_of_an_exec():
    """As a zombie's is not: nothing can come of that any more."""
    marked = {"MARK": "here"}
    with (
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=marked) as known,
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={}) as empty,
        subprocess.Popen(["/bin/true"], env=marked) as zombie,
    ):
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        for running in (known, empty):
            running.stdin.write(b"x")
            assert running.stdout.read(1) == b"x"
        seen = processes.processes_with(b"MARK=here")
        assert seen.found == [known.pid]
        assert empty.pid in seen.unclear
        assert not {known.pid, zombie.pid, os.getpid()} & set(seen.unclear)
