"""What the properties have found, each as small as it gets."""

import threading
import time

import pytest

from supervisor import cause as c
from supervisor.engine.queue import WINDOW
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.pool.slots import steps
from supervisor.pool.slots.machine import StateMachine
from supervisor.pool.slots.rules import Rules
from supervisor.pool.slots.slot import Next, Slot, SlotState
from supervisor.store.store import Store
from supervisor.wire import messages as wire


@pytest.fixture
def make(played_house):
    houses = []

    def make(**options):
        houses.append(played_house(**options))
        houses[-1].settle()
        return houses[-1]

    yield make
    for house in houses:
        house.close()


def ask(house, call, *arguments):
    answer = call(*arguments)
    house.settle()
    return answer.result()


def submit(house, job_id, **fields):
    return ask(house, house.engine.submit, JobRequest(job_id, b"1", **fields))


def statuses(house, job_ids):
    return [house.store.get(job_id).status.value for job_id in job_ids]


def ready(house, capacity=1):
    for worker in house.workers:
        worker.say(wire.Ready(worker.pid, "coroutine", capacity))
    house.settle()


def runs_all(house):
    """Let all that is queued run, one job after another in each worker; the order in which they were taken."""
    order = []
    while True:
        for worker in house.workers:
            order += worker.listen()
            worker.say(*[wire.Done(job, "COMPLETED") for job in worker.jobs])
            worker.jobs.clear()
        house.settle()
        assert not house.faults
        if not house.engine._jobs.active:
            return order


@pytest.mark.parametrize("slots", [1, 2])
def test_a_job_retried_after_a_restart_runs_once_and_in_its_place(make, slots):
    house = make(slots=slots)
    for job_id in "abcd":
        submit(house, job_id, ttl_ms=1000 if job_id == "c" else None)
    house.clock.wall += 2000
    house.loop.now += 2
    house.settle()
    assert statuses(house, "abcd") == ["IN_QUEUE", "IN_QUEUE", "TIMED_OUT", "IN_QUEUE"]
    house.kill()
    house.begin()
    house.settle()
    ask(house, house.engine.retry, "c")
    ready(house)
    assert runs_all(house) == ["a", "b", "c", "d"]


def test_a_job_retried_in_a_queue_longer_than_is_kept_in_memory_runs_once(make):
    house = make(slots=1)
    ids = [f"job-{number}" for number in range(WINDOW + 20)]
    answers = [
        house.engine.submit(JobRequest(job_id, b"1", ttl_ms=1000 if job_id == ids[-5] else None)) for job_id in ids
    ]
    house.settle()
    assert all(answer.done() for answer in answers)
    house.clock.wall += 2000
    house.loop.now += 2
    house.settle()
    assert statuses(house, ids[-5:-3]) == ["TIMED_OUT", "IN_QUEUE"]
    ask(house, house.engine.retry, ids[-5])
    ready(house, 50)
    assert sorted(runs_all(house)) == sorted(ids)


def test_the_last_job_of_those_in_memory_that_lost_its_worker_runs_again(make):
    house = make(slots=1, max_attempts=2)
    ids = [f"job-{number}" for number in range(WINDOW + 2)]
    for job_id in ids:
        house.engine.submit(JobRequest(job_id, b"1"))
    house.settle()
    for job_id in ids[: WINDOW - 1]:
        house.engine.cancel(job_id)
    ready(house)
    (worker,) = house.workers
    assert worker.listen() == [ids[WINDOW - 1]]
    worker.dies(-9)
    house.settle()
    house.loop.now += 60
    house.settle()
    ready(house)
    assert runs_all(house) == ids[-3:]


def test_what_ran_at_a_kill_is_purged_with_the_rest_before_the_first_turn(make):
    house = make(slots=1)
    ready(house)
    submit(house, "a")
    submit(house, "b")
    house.kill()
    house.begin()
    removed = house.engine.purge()
    house.settle()
    assert removed.result() == 2
    assert statuses(house, "ab") == ["CANCELLED", "CANCELLED"]
    assert not len(house.engine._jobs.backlog)


def test_what_happens_while_the_disk_refuses_is_not_told_before_it_is_written(make):
    house = make(slots=1)
    ready(house)
    submit(house, "a", timeout_ms=1_000)
    told = []
    house.engine.observe(
        lambda what: told.append((what.status, house.store.get("a").status)) if isinstance(what, Job) else None
    )
    house.loop.now += 0.9
    house.refusing = True
    answer = house.engine.submit(JobRequest("b", b"1"))
    house.settle()  # nothing is left to write, so this disk is looked at again in half a second
    with pytest.raises(RequestError):
        answer.result()
    house.loop.now += 0.2
    house.settle()  # the job's time is over; that is written half a second from now
    house.refusing = False
    house.loop.now += 0.35
    house.spin(10)
    house.settle()
    assert told == [(JobStatus.TIMED_OUT, JobStatus.TIMED_OUT)]


def test_a_job_that_is_being_forgotten_is_not_run_again(make, monkeypatch):
    """With durability full the store shows it until that is on the disk."""
    disk, end = threading.Event(), Store._end
    disk.set()
    monkeypatch.setattr(Store, "_end", lambda store: end(store) if disk.wait(20) else None)
    house = make(durability="full", ttl=1)

    def until(reached):
        deadline = time.monotonic() + 20
        while not reached():
            assert time.monotonic() < deadline
            house.spin(1)

    accepted = house.engine.submit(JobRequest("a", b"1"))
    house.loop.now += 0.002
    until(accepted.done)
    house.loop.now += 2
    house.clock.wall += 2_000
    until(lambda: house.store.get("a").status is JobStatus.TIMED_OUT and not house.engine._loop.pending)
    house.clock.wall += 31 * 86_400_000
    disk.clear()
    house.loop.now += 31
    until(lambda: house.store.retention.deleting)
    again = house.engine.retry("a")
    house.spin(10)
    assert not again.done()
    disk.set()
    until(again.done)
    assert again.result() is None
    assert not house.faults


def test_the_memory_of_a_gpu_that_is_lost_as_its_worker_dies_is_not_watched(make):
    """Else it is found free in the moment when the GPU is back, when a worker is being forked already."""
    house = make(gpus=True)
    ready(house)
    house.worker("slot0").dies(-6)
    house.memory.learn("slot0", steps.GpuLost(c.GpusLost((c.LostGpu(0),))))
    house.settle()
    assert house.pool.slots["slot0"].state is SlotState.LOST
    assert not house.memory.releasing


@pytest.mark.parametrize("paused_before", [False, True])
def test_a_refresh_that_was_asked_for_is_not_forgotten_by_a_pause(paused_before):
    machine = StateMachine(Rules())
    happened = [steps.Start(), steps.WorkerForked(7), steps.WorkerLoaded(2), steps.Assign("a"), steps.Assign("b")]
    happened += [
        steps.JobDone("a", refresh=c.RefreshCause(c.RefreshBy.CUDA_ERROR, "x")),
        steps.PauseRequested(c.PausedByHand()),
    ][:: -1 if paused_before else 1]
    slot = Slot("gpu0", 0)
    for event in (*happened, steps.ResumeRequested()):
        slot, _ = machine.step(slot, event, 1000.0)
    assert slot.room == 0
    slot, _ = machine.step(slot, steps.JobDone("b"), 1000.0)
    assert (slot.state, slot.next, slot.cause) == (
        SlotState.ENDING,
        Next.REFRESH,
        c.RefreshCause(c.RefreshBy.CUDA_ERROR, "x"),
    )
