"""Several things about one job, or one slot, in a single turn: what the turn decides, and what memory has afterwards."""

from __future__ import annotations

import asyncio
import contextlib


from supervisor.cause import TtlPassed
from supervisor.job import JobRequest
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
