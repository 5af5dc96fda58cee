"""Who takes what: the index of slots with room, and how a turn gives its jobs out."""

from __future__ import annotations

import random

import pytest

from supervisor.pool.slots.free import FreeSlots, Seating
from supervisor.pool.slots.slot import Slot, SlotState


def slot(index: int, capacity: int = 1, running: int = 0, state: SlotState = SlotState.IDLE) -> Slot:
    jobs = tuple(f"r{number}" for number in range(running))
    return Slot(name=f"gpu{index}", index=index, state=state, capacity=capacity, running=jobs)


def free(*slots: Slot) -> FreeSlots:
    index = FreeSlots()
    for each in slots:
        index.update(each, each.room)
    return index


@pytest.mark.parametrize(
    ("jobs", "slots", "expected"),
    [
        (3, [slot(0), slot(1)], ["gpu0", "gpu1", None]),
        (1, [slot(1), slot(0)], ["gpu0"]),
        (2, [slot(10), slot(9)], ["gpu9", "gpu10"]),
        (3, [slot(0, capacity=3), slot(1, capacity=3)], ["gpu0", "gpu1", "gpu0"]),
        (3, [slot(0, capacity=3, running=2, state=SlotState.BUSY), slot(1)], ["gpu1", "gpu0", None]),
        (1, [slot(0, state=SlotState.STARTING)], [None]),
        (3, [slot(0, capacity=10**9), slot(1)], ["gpu0", "gpu1", "gpu0"]),
    ],
)
def test_the_emptiest_is_given_the_next_job(jobs: int, slots: list[Slot], expected: list[str | None]) -> None:
    seating = Seating(free(*slots), set())
    assert [seating.take() for _ in range(jobs)] == expected


def test_a_slot_that_is_closed_meanwhile_is_given_nothing_more() -> None:
    closed: set[str] = set()
    seating = Seating(free(slot(0, capacity=3), slot(1), slot(2), slot(3)), closed)
    assert seating.take() == "gpu0"
    closed |= {"gpu0", "gpu1"}
    assert [seating.take() for _ in range(3)] == ["gpu2", "gpu3", None]


def test_the_index_says_what_looking_at_every_slot_would() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    index = FreeSlots()
    slots: dict[str, Slot] = {}
    for _ in range(2_000):
        capacity = chance.choice([1, 1, 4])
        state = chance.choice([SlotState.IDLE, SlotState.BUSY, SlotState.ENDING])
        each = slot(chance.randrange(12), capacity, chance.randrange(capacity + 1), state)
        slots[each.name] = each
        index.update(each, each.room)
        with_room = sorted(
            (len(each.running), each.index, each.name, each.room) for each in slots.values() if each.room
        )
        assert [tuple(seat) for seat in index] == with_room, seed
        assert index.room == sum(each.room for each in slots.values()), seed
