"""When the supervisor is gone nothing is left, and only then are the locks free."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.pool.template.process import TemplateExited
from supervisor.wire import messages as wire

NAMES = ("template", "cpu0", "cpu1", "grandchild0", "grandchild1")


class FakeSupervisor:
    """`children/fake_supervisor.py`, and descriptors on all that it started."""

    def __init__(self, children: Path, tmp_path: Path, watch) -> None:
        self.tmp_root = tmp_path / "run"
        self.lock = tmp_path / "lock"
        self.process = subprocess.Popen(
            [sys.executable, str(children / "fake_supervisor.py"), str(self.tmp_root), str(self.lock)],
            env={**os.environ, "PYTHONPATH": str(children.parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pids = self.hears()
        self.bystander = watch(pids.pop("bystander"))
        self.started = {name: watch(pids[name]) for name in NAMES}

    def hears(self):
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        with self.process:
            os.kill(self.bystander.pid, signal.SIGKILL)
            self.process.kill()


@pytest.fixture
def supervisor(children, tmp_path, watch) -> Iterator[FakeSupervisor]:
    fake = FakeSupervisor(children, tmp_path, watch)
    yield fake
    fake.close()


def test_kill_9_of_the_supervisor_leaves_nothing(supervisor):
    supervisor.process.kill()
    killed_at = time.monotonic()
    for name, process in supervisor.started.items():
        assert process.ended(within=5), f"{name} is alive"
    assert time.monotonic() - killed_at < 5
    assert not supervisor.tmp_root.exists()
    # It held a copy of the supervisor's end of the socket all the time.
    assert not supervisor.bystander.ended()


def test_locks_are_held_until_the_last_is_gone(supervisor):
    with open(supervisor.lock) as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A stopped template cannot end the workers: its hold on the lock is all that is left of the supervisor's.
        template = supervisor.started["template"]
        os.kill(template.pid, signal.SIGSTOP)
        supervisor.process.kill()
        supervisor.process.wait()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(template.pid, signal.SIGCONT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        alive = [name for name in NAMES if name != "template" and not supervisor.started[name].ended()]
        assert alive == []


def test_kill_9_of_the_template_ends_the_workers_and_the_supervisor_sweeps_the_rest(supervisor):
    supervisor.process.stdin.write("kill_template\n")
    supervisor.process.stdin.flush()
    heard = supervisor.hears()
    assert heard.pop("swept") in (4, 5)  # one worker may be forked ahead
    assert heard == {"status": -signal.SIGKILL, "left": []}
    assert all(process.ended() for process in supervisor.started.values())
    assert not supervisor.bystander.ended()


def test_worker_dies_with_the_template_though_nobody_sweeps(house, watch):
    worker = watch(house.fork("reports_itself").hears()["pid"])
    house.template.kill()
    assert worker.ended(within=30)


def test_quit_ends_all_and_then_the_template(house, watch):
    worker = house.fork("leaves_a_grandchild")
    grandchild = watch(worker.hears()["grandchild"])
    house.template.send(wire.Quit())
    assert house.expect(TemplateExited) == TemplateExited(0)
    assert grandchild.ended()
    assert not house.tmp_root.exists()


def test_supervisor_that_breaks_the_protocol_is_as_good_as_gone(house, watch):
    worker = house.fork("leaves_a_grandchild")
    grandchild = watch(worker.hears()["grandchild"])
    house.template.send(house.setup)
    assert house.expect(TemplateExited) == TemplateExited(70)
    assert grandchild.ended()


def test_other_version_is_refused(make_house, monkeypatch, capfd):
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    with pytest.raises(AssertionError, match=r"gone: \[TemplateExited\(status=70\)\]"):
        make_house()
    assert "expects protocol version" in capfd.readouterr().err
