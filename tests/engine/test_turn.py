"""Several things about one job, or one slot, in a single turn: what the turn decides, and what memory has afterwards."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from supervisor.cause import TtlPassed
from supervisor.errors import RequestError, StoreError
from supervisor.job import JobRequest, JobStatus
from supervisor.wire import messages as wire


@contextlib.contextmanager
def one_turn(house):
    """What is said and asked for in the block is decided in one turn, which comes at its end."""
    turns = house.engine._turns
    turns._scheduled = True  # so nobody has one earlier
    yield
    for _ in range(3):  # the pipes are found to be readable
        house.loop.run_until_complete(asyncio.sleep(0))
    turns._turn()


def status(house, job="a"):
    return house.engine.job(job).status.value


def fill(house):
    """Submit ``a`` and have its worker take it."""
    house.submit("a")
    house.settle()


# --- starts ----------------------------------------------------------------------------------------------------------------


def test_one_turn_fills_a_worker_that_takes_several_jobs(make_house):
    house = make_house()
    house.start(capacity=4)
    with one_turn(house):
        for job in "abcd":
            house.engine.submit(JobRequest(job, b"1"))
    assert [status(house, job) for job in "abcd"] == ["IN_PROGRESS"] * 4


def test_a_slot_that_is_free_after_all_is_given_a_job_at_once(make_house):
    house = make_house(max_result=10)
    house.start(kind="generator")
    fill(house)
    house.submit("b")
    with one_turn(house):
        house.worker().say(wire.Chunk("a", 0, b'"far too long"'), wire.Done("a", "COMPLETED", b"1"))
    assert status(house) == "FAILED"
    for _ in range(3):  # by no timer, and by nobody who says something
        house.loop.run_until_complete(asyncio.sleep(0))
    assert status(house, "b") == "IN_PROGRESS"


# --- deadlines -------------------------------------------------------------------------------------------------------------


def test_a_start_that_is_over_is_not_out_of_time(make_house):
    house = make_house(max_attempts=2)
    house.start()
    house.submit(timeout_ms=5_000)
    with one_turn(house):
        house.worker().dies(-9)
        house.clock.now += 6
    assert status(house) == "IN_QUEUE"


def test_a_job_that_is_retried_as_its_start_runs_out_waits(house):
    house.submit(timeout_ms=5_000)
    with one_turn(house):
        house.worker().say(wire.Done("a", "FAILED", error="why"))
        retried = house.engine.retry("a")
        house.clock.now += 6
    assert house.wait(retried).attempts == 0
    assert house.engine.job("a").cause is None


def test_a_retry_gives_a_job_its_whole_ttl_again(house):
    house.submit(ttl_ms=10_000)
    with one_turn(house):
        house.worker().say(wire.Done("a", "FAILED", error="why"))
        retried = house.engine.retry("a")
        house.clock.wall += 11_000
    assert house.wait(retried).expires_ms > house.clock.wall
    assert not house.engine.job("a").status.terminal
    house.clock.wall += 11_000
    assert house.ended().cause == TtlPassed()


# --- what an earlier start left --------------------------------------------------------------------------------------------


def test_a_job_that_starts_again_in_the_turn_of_its_end_has_nothing_of_the_earlier_start(make_house):
    house = make_house(slots=2, max_result=100)
    house.start(kind="generator")
    fill(house)
    slot = house.engine._jobs.active["a"].slot
    with one_turn(house):
        house.worker(slot).say(
            wire.Progress("a", b'"old"'), wire.Chunk("a", 0, b'"old"'), wire.Done("a", "FAILED", error="why")
        )
        house.engine.retry("a")
    active = house.engine._jobs.active["a"]
    assert (active.job.attempts, active.progress, active.streamed_bytes) == (1, None, 0)


# --- what is told ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refusing(house, monkeypatch):
    """A disk that refuses, with a running job ``a``."""
    fill(house)
    monkeypatch.setattr(house.store, "commit", lambda batch, done: done(StoreError("the disk is full")))
    return house


def test_nobody_hears_by_a_refusal_of_what_is_not_on_disk(refusing):
    with one_turn(refusing):
        refusing.worker().say(wire.Done("a", "COMPLETED", b"1"))
        retried = refusing.engine.retry("a")
    with pytest.raises(RequestError, match="cannot be written") as refused:
        refusing.wait(retried)
    assert refused.value.status == 503
    assert status(refusing) == "IN_PROGRESS"


def test_who_is_patient_is_not_refused_and_has_the_job_when_the_disk_takes_it(house, monkeypatch):
    refusals = iter([StoreError("the disk is full")])
    commit = house.store.commit
    monkeypatch.setattr(
        house.store,
        "commit",
        lambda batch, done: done(error) if (error := next(refusals, None)) else commit(batch, done),
    )
    with one_turn(house):
        submitted = house.engine.submit(JobRequest("a", b"1", s3_config=b"{}"), patient=True)
    assert house.engine.job("a") is None
    assert house.wait(submitted).status is JobStatus.IN_PROGRESS
    assert house.secrets.get("a") == b"{}"


# --- a commit on its way ---------------------------------------------------------------------------------------------------


class SlowDisk:
    """Of a store: takes a commit, and ends it when the test says."""

    def __init__(self, store, monkeypatch):
        self.waiting = []
        self._commit = store.commit
        monkeypatch.setattr(store, "commit", lambda *given: self.waiting.append(given))

    def takes(self):
        self._commit(*self.waiting.pop())

    def refuses(self):
        _, done = self.waiting.pop()
        done(StoreError("the disk is full"))


@pytest.fixture
def slow(house, monkeypatch):
    return SlowDisk(house.store, monkeypatch)


def test_a_drain_waits_for_a_job_whose_start_is_on_its_way_to_the_disk(house, slow):
    with one_turn(house):
        submitted = house.engine.submit(JobRequest("a", b"1"))
    assert slow.waiting
    at_once = asyncio.Event()
    drained = asyncio.ensure_future(house.engine.drain(20, at_once), loop=house.loop)
    house.settle()
    slow.takes()
    assert house.wait(submitted).status is JobStatus.IN_PROGRESS
    house.settle()
    assert not drained.done()
    assert isinstance(house.worker().heard(), wire.Run)
    assert house.worker().signals == []
    at_once.set()
    house.until(drained.done)


def test_a_purge_asked_before_a_refusal_keeps_nobody_busy(house, slow):
    with one_turn(house):
        submitted = house.engine.submit(JobRequest("a", b"1"))
    purged = house.engine.purge()
    slow.refuses()
    assert submitted.exception().status == 503
    turns = []
    turn = house.engine._turns._turn
    house.engine._turns._turn = lambda: (turns.append(1), turn())
    for _ in range(50):
        house.loop.run_until_complete(asyncio.sleep(0))
    assert len(turns) <= 3
    house.until(lambda: slow.waiting)
    slow.takes()
    house.until(lambda: slow.waiting or purged.done())
    if slow.waiting:
        slow.takes()
    assert house.wait(purged) == 0
