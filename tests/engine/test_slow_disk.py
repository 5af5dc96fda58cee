"""Durability ``full``: while the disk writes a turn the loop serves others, tells nobody of that turn, and misses nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from supervisor.job import JobRequest, JobStatus
from supervisor.store.store import Store
from supervisor.wire import messages as wire


@pytest.fixture
def disk(monkeypatch):
    """Released for each transaction that the disk may write."""
    free = threading.Semaphore(0)
    end = Store._end

    def slow_end(store):
        assert free.acquire(timeout=20)
        return end(store)

    monkeypatch.setattr(Store, "_end", slow_end)
    yield free
    free.release(99)


@pytest.fixture
def house(make_house, tmp_path, loop, disk):
    store = Store.open(tmp_path / "jobs.db", durability="full", deliver=loop.call_soon_threadsafe)
    house = make_house(store=store)
    house.start()
    yield house
    disk.release(99)  # closing waits for what is under way


def test_nobody_hears_of_a_turn_that_is_not_on_disk(house, disk):
    asked = house.engine.submit(JobRequest("a", b"1"))
    house.settle()
    assert not asked.done()
    assert house.engine.job("a") is None
    assert house.worker().hears_nothing()
    disk.release()
    assert house.wait(asked).status is JobStatus.IN_PROGRESS
    assert isinstance(house.worker().heard(), wire.Run)


def test_what_is_said_meanwhile_is_heard_afterwards_and_keeps_nobody_busy(house, disk):
    disk.release()
    house.submit("a")
    waiting = house.engine.submit(JobRequest("b", b"2"))
    house.settle()
    assert house.engine._loop.pending
    turns = []
    turn = house.engine._turns._turn
    house.engine._turns._turn = lambda: (turns.append(1), turn())
    house.worker().prints("still here\n")
    house.worker().say(wire.Done("a", "COMPLETED", b'"out"'))
    cancelled = house.engine.cancel("b")
    for _ in range(50):
        house.loop.run_until_complete(asyncio.sleep(0))
    assert len(turns) <= 3
    assert house.engine.job("a").status is JobStatus.IN_PROGRESS
    disk.release(9)
    assert house.wait(waiting).status is JobStatus.IN_QUEUE
    assert house.ended("a").output == b'"out"'
    assert house.wait(cancelled).status in (JobStatus.CANCELLED, JobStatus.IN_PROGRESS)
