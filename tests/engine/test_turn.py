"""Several things about one job, or one slot, in a single turn: what the turn decides, and what memory has afterwards."""

from __future__ import annotations

import asyncio
import contextlib


from supervisor.job import JobRequest


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
