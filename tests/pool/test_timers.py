"""What is due when."""

from __future__ import annotations

from supervisor.pool.timers import Timers


def test_the_earliest_is_due_first_and_stays_so_until_it_is_set_anew() -> None:
    timers = Timers()
    assert (timers.next(), timers.due(100.0)) == (None, [])
    timers.set("a", 3.0)
    timers.set("b", 2.0)
    timers.set("c", 9.0)
    assert (timers.next(), timers.due(1.9)) == (2.0, [])
    assert timers.due(3.0) == ["b", "a"]
    assert timers.due(3.0) == ["b", "a"]
    timers.set("b", None)
    timers.set("a", 5.0)
    assert (timers.next(), timers.due(4.0)) == (5.0, [])
    timers.set("a", 3.0)  # as it was before
    assert timers.due(5.0) == ["a"]


def test_what_was_set_anew_a_thousand_times_costs_no_more_than_what_was_not() -> None:
    timers = Timers()
    for turn in range(10_000):
        for name in "abc":
            timers.set(name, 1_000_000.0 - turn)
    assert len(timers._heap) < 200
    assert timers.due(2_000_000.0) == ["a", "b", "c"]
