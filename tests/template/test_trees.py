"""Deaths: reported with their status, and nothing that a dead worker started lives on, while other workers keep theirs."""

from __future__ import annotations

import os
import signal

import pytest

from supervisor.wire import messages as wire


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"EXIT": "0"}, 0),
        ({"EXIT": "3"}, 3),
        ({"SIGNAL": str(int(signal.SIGKILL))}, -signal.SIGKILL),
        ({"SIGNAL": str(int(signal.SIGABRT))}, -signal.SIGABRT),
    ],
)
def test_death_is_reported_with_its_status(house, env, status):
    worker = house.fork("ends_as_told", **env)
    forked = house.expect(wire.Forked)
    died, swept = house.ends(worker)
    assert died == wire.Died("cpu0", 1, forked.pid, status)
    assert swept == wire.Swept("cpu0", 1, 0)


@pytest.mark.parametrize(
    "kind", [{}, {"STOPPED": "1"}, {"SAME_SESSION": "1"}], ids=["own session", "stopped", "same session"]
)
def test_only_what_the_dead_worker_started_dies(house, watch, kind):
    first, second = house.fork("leaves_a_grandchild", "cpu0", **kind), house.fork("leaves_a_grandchild", "cpu1", **kind)
    pids = [worker.hears()["grandchild"] for worker in (first, second)]
    mine, others = map(watch, pids)
    house.template.send(wire.EndTree("cpu0", 1))
    died, swept = house.ends(first)
    assert died.status == -signal.SIGKILL
    assert swept.killed == 1
    assert mine.ended()
    assert not others.ended()
    second.tell("go")
    died, swept = house.ends(second)
    assert (died.status, swept.killed) == (0, 1)
    assert others.ended()


def test_two_that_die_at_once_are_both_swept(house, watch):
    workers = [house.fork("leaves_a_grandchild", f"cpu{number}") for number in range(4)]
    grandchildren = [watch(worker.hears()["grandchild"]) for worker in workers]
    for worker in workers:
        house.template.send(wire.EndTree(worker.slot, 1))
    assert sum(house.ends(worker)[1].killed for worker in workers) == 4
    assert all(grandchild.ended() for grandchild in grandchildren)


def test_runners_that_keep_forking_are_caught_while_others_are_served(house):
    storm = house.fork("keeps_forking")
    assert storm.hears() == "running"
    house.template.send(wire.EndTree("cpu0", 1))
    assert house.fork("reports_itself", "cpu1").hears()["generation"] == 1
    _, swept = house.ends(storm)
    assert swept.killed >= 1
    tasks = f"/proc/{house.template.pid}/task/{house.template.pid}/children"
    with open(tasks) as file:
        assert 1 <= len(file.read().split()) <= 2  # one may be forked ahead


def test_reports_wait_for_a_supervisor_that_does_not_read(house):
    """Three reports for each of these are more than the socket holds; the template goes on forking all the same."""
    count = 150
    for generation in range(count):
        last = house.fork("ends_as_told", generation=generation)
        while house.template.wants_write:
            house.template.flush()
    following = house.fork("reports_itself", generation=count)
    facts = following.hears()
    os.kill(house.template.pid, signal.SIGSTOP)
    delivered = 0
    while batch := house.template.receive():
        delivered += len(batch)
        house.reports += batch
    os.kill(house.template.pid, signal.SIGCONT)
    assert delivered < 3 * count
    assert house.expect(wire.Forked, lambda report: report.generation == count).pid == facts["pid"]
    house.ends(last)
    assert [r.generation for r in house.reports if isinstance(r, wire.Forked)] == list(range(count))
