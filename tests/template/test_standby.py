"""The worker that is forked ahead: who gets it, and what happens when there is none."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from supervisor.template.child import Assignment, GetAssignment
from supervisor.template.reap import Reaper
from supervisor.template.standby import Standby

ORDER = Assignment("gpu0", 4, {"CUDA_VISIBLE_DEVICES": "0", "GONE": None}, "/tmp/run/gpu0-4", 12.5)


class Nursery:
    """This test as the template: its children say which order they got, through the pipe that came with it."""

    def __init__(self) -> None:
        self.reaper = Reaper()
        self.standby = Standby(self.fork, self.reaper)
        self.forked: list[int] = []
        self.refuse = 0
        self.ours, self.theirs = socket.socketpair()
        self.log, self.worker_log = os.pipe()

    def fork(self, orders: GetAssignment) -> int:
        if self.refuse:
            self.refuse -= 1
            raise OSError(errno.EAGAIN, "no more processes")
        pid = os.fork()
        if pid == 0:
            try:
                order, connection, log = orders()
                os.write(log, b"a line")
                os.write(connection, msgspec.json.encode([os.getpid(), order]))
            finally:
                os._exit(0)
        self.forked.append(pid)
        return pid

    def turn(self) -> None:
        """The next thing that the template would do for it."""
        assert self.standby.next_check is not None
        while time.monotonic() < self.standby.next_check:
            pass
        self.standby.turn()

    def take(self, order: Assignment = ORDER) -> int | None:
        return self.standby.take(order, (self.theirs.fileno(), self.worker_log))

    def hears(self) -> Any:
        self.ours.settimeout(10)
        return msgspec.json.decode(self.ours.recv(65536))

    def close(self) -> None:
        self.standby.close()
        for pid in self.forked:
            if pid in self.reaper.spared or pid in self.reaper.workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.ours.close()
        self.theirs.close()
        os.close(self.log)
        os.close(self.worker_log)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def waiting(nursery: Nursery) -> Nursery:
    """One in which a worker waits."""
    assert nursery.take() is None
    nursery.turn()
    assert nursery.standby.next_check is None
    return nursery


def test_nobody_is_forked_before_the_first_worker(nursery: Nursery) -> None:
    assert nursery.standby.next_check is None
    nursery.standby.turn()
    assert not nursery.forked


def test_who_asks_gets_the_one_that_waits_and_the_next_is_forked(waiting: Nursery) -> None:
    for generation in (4, 5, 6):
        (pid,) = waiting.forked[-1:]
        assert pid in waiting.reaper.spared
        order = msgspec.structs.replace(ORDER, generation=generation)
        assert waiting.take(order) == pid
        waiting.reaper.add_worker("gpu0", generation, pid)
        assert pid not in waiting.reaper.spared
        assert waiting.hears() == [pid, msgspec.to_builtins(order)]
        assert os.read(waiting.log, 100) == b"a line"
        assert waiting.take() is None  # a second one at the same time
        waiting.turn()
    assert len(waiting.forked) == 4


def test_a_dead_one_is_not_taken(waiting: Nursery) -> None:
    (pid,) = waiting.forked
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped: the template has not looked yet
    assert waiting.take() is None
    waiting.turn()
    assert waiting.take() == waiting.forked[-1] != pid


def test_an_order_that_is_too_long_for_it_costs_only_the_one_that_waits(waiting: Nursery) -> None:
    (pid,) = waiting.forked
    assert waiting.take(msgspec.structs.replace(ORDER, env={"LONG": "x" * 2**22})) is None
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGKILL
    waiting.turn()
    assert waiting.take() == waiting.forked[-1] != pid


def test_a_fork_that_is_refused_is_tried_again(nursery: Nursery) -> None:
    nursery.refuse = 1
    nursery.take()
    nursery.turn()
    assert not nursery.forked
    nursery.turn()
    assert nursery.take() == nursery.forked[0]


def test_one_that_nobody_can_ask_any_more_ends(waiting: Nursery) -> None:
    (pid,) = waiting.forked
    waiting.standby.close()
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == 0
