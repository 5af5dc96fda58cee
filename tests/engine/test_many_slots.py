"""Slots in any number, that come and go: what a job costs, what a snapshot does, and what becomes of jobs."""

import asyncio
import sys
from collections import Counter

import pytest

from supervisor.cause import EndedBecause
from supervisor.config.resolve import make_settings
from supervisor.engine.engine import Engine
from supervisor.errors import RequestError, StoreError
from supervisor.job import JobRequest
from supervisor.protocol.responses import status_body
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.wire import messages as wire
from tests.engine.conftest import DEADLINE_S, ManualClock
from tests.fakes.pool import PretendPool


class Pretended:
    """An engine over pretend slots."""

    def __init__(self, tmp_path, loop, slots, **options):
        settings = make_settings("test:handler", store=tmp_path / "jobs.db", **options)
        self.loop = loop
        self.store = Store.open(settings.store, durability=settings.durability, deliver=loop.call_soon_threadsafe)
        self.clock = ManualClock()
        self.engine = Engine(settings, self.store, SecretFiles(tmp_path / "secrets"), loop, status_body, self.clock)
        self.pool = PretendPool(self.engine.wake)
        for number in range(slots):
            self.pool.come(f"box{number // 8}:gpu{number % 8}")
        self.engine.attach(self.pool)
        self.engine.start()
        self.settle()

    def settle(self):
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))

    def settle_until(self, reached):
        """Run the loop until ``reached()``, which a commit in another thread brings about."""
        deadline = self.loop.time() + DEADLINE_S
        while not reached():
            assert self.loop.time() < deadline, "it did not come to that"
            self.loop.run_until_complete(asyncio.sleep(0))

    def wait(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, DEADLINE_S))

    def submit(self, job_id):
        job = self.wait(self.engine.submit(JobRequest(id=job_id, input=b"1")))
        self.settle()
        return job

    def slot_of(self, job_id):
        return next((slot for slot, job in self.pool.given if job == job_id), None)

    def close(self):
        self.engine.close()
        self.store.close()


@pytest.fixture
def pretend(tmp_path, loop):
    made = []

    def make(slots, **options):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Pretended(folder, loop, slots, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def lines_of(work):
    """How many lines of the program ``work`` runs through, by file."""
    counts = Counter()

    def count(frame, event, _):
        name = frame.f_code.co_filename
        if "/supervisor/" not in name:
            return None
        counts[name.partition("/supervisor/")[2]] += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return counts


def jobs(house, count, name):
    """``count`` jobs, each of which runs beside three others."""
    for number in range(count + 3):
        if number < count:
            house.submit(f"{name}-{number}")
        if number >= 3:
            ended = f"{name}-{number - 3}"
            house.pool.ends(house.slot_of(ended), ended)
            house.settle()


@pytest.mark.parametrize("options", [{}, {"min_workers": 4}, {"execution_timeout": 9.0}, {"max_queue": 5}], ids=str)
def test_a_job_costs_the_same_on_800_slots_as_on_8(pretend, options):
    costs = []
    for slots in (8, 800):
        house = pretend(slots, **options)
        jobs(house, 20, "warm")
        costs.append(lines_of(lambda house=house: jobs(house, 40, "job")))
    few, many = (sum(cost.values()) for cost in costs)
    assert few > 40 * 100
    assert many < 1.1 * few, (costs[1] - costs[0]).most_common(5)


def test_a_snapshot_of_800_slots_is_one_pass(pretend):
    costs, snapshots = [], []
    for slots in (100, 800):
        house = pretend(slots)
        costs.append(lines_of(lambda house=house: snapshots.append(house.engine.snapshot())))
    few, many = (sum(cost.values()) for cost in costs)
    assert many < 8.5 * few, (costs[1] - costs[0]).most_common(5)
    assert [view.gpu_memory_mib for view in snapshots[1].workers] == [100] * 800
    assert [view.slots for view in snapshots[1].gpus] == [(worker.slot,) for worker in snapshots[1].workers]


def test_a_slot_that_comes_gets_what_waits(pretend):
    house = pretend(0)
    assert house.submit("a").status.value == "IN_QUEUE"
    house.pool.come("box0:gpu0")
    house.settle()
    assert house.pool.given == {("box0:gpu0", "a"): 0}
    house.pool.ends("box0:gpu0", "a", b"7")
    assert house.wait(house.engine.wait("a", DEADLINE_S)).output == b"7"


def test_the_jobs_of_a_slot_that_goes_run_in_another_and_what_it_says_later_counts_no_more(pretend):
    house = pretend(2)
    house.submit("a")
    assert house.slot_of("a") == "box0:gpu0"
    house.pool.go("box0:gpu0", EndedBecause.TEMPLATE_DIED)
    house.settle()
    assert house.pool.given == {("box0:gpu1", "a"): 1}
    # The same slot, back with another worker: the end of the first start is of no more use there either.
    house.pool.ends("box0:gpu1", "a", b'"late"', start=0)
    house.settle()
    assert house.engine.job("a").status.value == "IN_PROGRESS"
    house.pool.ends("box0:gpu1", "a", b'"right"')
    ended = house.wait(house.engine.wait("a", DEADLINE_S))
    assert (ended.output, ended.retries, ended.attempts) == (b'"right"', 1, 1)


def test_a_slot_that_goes_while_a_start_is_on_its_way_to_the_disk_costs_the_job_nothing(pretend):
    house = pretend(2, durability="full")
    accepted = house.engine.submit(JobRequest(id="a", input=b"1"))
    house.loop.run_until_complete(asyncio.sleep(0))
    assert house.engine._loop.pending
    house.pool.go("box0:gpu0", EndedBecause.TEMPLATE_DIED)
    assert house.wait(accepted).status.value == "IN_PROGRESS"
    house.settle_until(lambda: house.slot_of("a") == "box0:gpu1")
    house.pool.ends("box0:gpu1", "a", b"7")
    ended = house.wait(house.engine.wait("a", DEADLINE_S))
    assert (ended.output, ended.retries, ended.attempts) == (b"7", 1, 1)


def test_a_cancel_names_the_start_that_it_means(pretend):
    house = pretend(2)
    house.submit("a")
    house.pool.go("box0:gpu0", EndedBecause.TEMPLATE_DIED)
    house.settle()
    house.wait(house.engine.cancel("a"))
    assert house.pool.cancelled == [("box0:gpu1", "a", 1)]


def test_a_job_is_abandoned_whose_slot_went_while_the_disk_refuses(pretend, monkeypatch):
    house = pretend(2)
    faults = []
    house.loop.set_exception_handler(lambda _, context: faults.append(context))
    house.submit("a")
    house.submit("b")
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "commit", lambda _, done: done(StoreError("the disk is full")))
        house.pool.ends("box0:gpu0", "a")
        house.settle()
        house.pool.go("box0:gpu1", EndedBecause.TEMPLATE_DIED)
        house.engine.abandon("b")
        house.settle()
    assert house.wait(house.engine.wait("b", DEADLINE_S)).status.value == "CANCELLED"
    assert not faults


def test_what_is_asked_of_a_slot_that_went_meanwhile_is_answered_404(pretend):
    house = pretend(2)
    asked = house.engine.slots.refresh("box0:gpu1")
    house.pool.go("box0:gpu1", EndedBecause.TEMPLATE_DIED)
    with pytest.raises(RequestError) as refusal:
        house.wait(asked)
    assert (refusal.value.status, str(refusal.value)) == (404, "no slot 'box0:gpu1'; there are: box0:gpu0")
    house.wait(house.engine.slots.refresh("box0:gpu0"))
    assert [view.refreshes for view in house.engine.snapshot().workers] == [1]


def test_bounds_of_workers_follow_the_number_of_slots(pretend):
    house = pretend(3, min_workers=2)
    in_service = [name for name, slot in house.pool.slots.items() if not slot.spare]
    assert in_service == ["box0:gpu0", "box0:gpu1"]
    house.pool.go("box0:gpu1", EndedBecause.TEMPLATE_DIED)
    house.settle()
    assert [name for name, slot in house.pool.slots.items() if not slot.spare] == ["box0:gpu0", "box0:gpu2"]
    house.pool.go("box0:gpu2", EndedBecause.TEMPLATE_DIED)  # fewer than --min-workers: all there are
    house.settle()
    assert [name for name, slot in house.pool.slots.items() if not slot.spare] == ["box0:gpu0"]
    assert house.submit("a").status.value == "IN_PROGRESS"


def test_nor_does_a_job_cost_more_on_many_slots_of_this_machine(make_house, tmp_path):
    costs = []
    for slots in (4, 60):
        folder = tmp_path / str(slots)
        folder.mkdir()
        house = make_house(slots=slots, store=Store.open(folder / "jobs.db"))
        house.start()

        def jobs(house=house):
            for number in range(20):
                house.submit(f"job-{number}")
                worker = house.worker()  # the lowest free one
                worker.heard()
                worker.say(wire.Done(f"job-{number}", "COMPLETED", b"1"))
                house.ended(f"job-{number}")
                house.settle()

        costs.append(lines_of(jobs))
    few, many = (sum(cost.values()) for cost in costs)
    assert many < 1.1 * few, (costs[1] - costs[0]).most_common(5)
