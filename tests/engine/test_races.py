"""Things that happen in the same turn, or in the wrong one."""

import asyncio
import signal

import pytest

from supervisor.cause import (
    HeldGpu,
    MemoryStaysInUse,
    NotEncodable,
    RefreshBy,
    RefreshCause,
    SecretUnreadable,
    TooLarge,
)
from supervisor.engine.queue import LARGE_INPUT
from supervisor.engine.streams import READ_BYTES
from supervisor.errors import RequestError, SecretError, StoreError
from supervisor.host.processes import STACK_SIGNAL
from supervisor.job import JobRequest, JobStatus
from supervisor.notice import Task, TaskFailed
from supervisor.pool.slots import steps
from supervisor.protocol.wording import error_of
from supervisor.store.store import Store
from supervisor.wire import messages as wire

DONE = b'"done"'


def request(job_id, value=b"1", **fields):
    return JobRequest(id=job_id, input=value, **fields)


# --- jobs ---------------------------------------------------------------------------------------------------------------


def test_what_ran_and_what_waited_at_a_kill_is_taken_once_and_in_order(make_house):
    house = make_house(slots=2)
    house.start()
    for name in "abcd":
        house.submit(name)
    house.worker("cpu0").say(wire.Done("a", "COMPLETED", DONE))
    house.ended("a")  # so c runs where a did, beside b
    house.engine.close()
    house.store.close()

    after = make_house(slots=3, store=Store.open(house.settings.store))
    after.start(ready=False)
    after.engine.pool.pause_reading()
    for name in ("cpu0", "cpu1", "cpu2"):
        after.worker(name).ready()
    after.engine.pool.resume_reading()
    after.until(lambda: all(slot.running for slot in after.pool.slots.values()))
    assert [after.worker(name).heard().job for name in ("cpu0", "cpu1", "cpu2")] == ["b", "c", "d"]


def test_cancelled_in_the_turn_that_started_it(make_house):
    house = make_house()
    house.start(kind="coroutine")
    house.engine.submit(request("a"))
    cancelled = house.wait(house.engine.cancel("a"))
    assert cancelled.status is JobStatus.CANCELLED
    assert [house.worker().heard(), house.worker().heard()] == [wire.Run("a", b"1"), wire.Cancel("a")]


def test_a_worker_speaks_for_its_own_jobs_only(make_house):
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    house.worker("cpu1").say(wire.Progress("a", b'"lie"'), wire.Chunk("a", 0, b'"lie"'), wire.Progress("b", b"1"))
    house.until(lambda: house.engine.progress("b"))
    assert house.engine.progress("a") is None
    assert house.engine.job("a").chunks == 0


def test_a_large_input_waits_in_the_store_alone(house):
    large = b'"' + b"x" * LARGE_INPUT + b'"'
    house.submit("a")
    house.submit("b", large)
    house.submit("c", large)
    assert house.engine.job("b").input in (b"", large)
    assert house.engine._jobs.backlog.get("b").input == b""
    for name in "abc":
        assert house.worker().heard().input == (b'{"n":1}' if name == "a" else large)
        house.worker().say(wire.Done(name, "COMPLETED", DONE))
        house.ended(name)


def test_jobs_that_come_together_do_not_overfill_the_queue(make_house):
    house = make_house(max_queue=2)
    house.start()
    accepted = [house.engine.submit(request(name)) for name in "abc"]  # one runs, two wait
    with pytest.raises(RequestError, match="--max-queue"):
        house.engine.submit(request("d"))
    assert [house.wait(future).status.value for future in accepted] == ["IN_PROGRESS", "IN_QUEUE", "IN_QUEUE"]


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (wire.Done("a", "FAILED", None, "x" * 101), TooLarge(101, 100)),
        (wire.Done("a", "FAILED", cause=NotEncodable("x" * 101)), TooLarge(101, 100)),
        (wire.Chunk("a", 0, b'"' + b"x" * 99 + b'"'), TooLarge(101, 100, 0)),
    ],
)
def test_no_word_of_a_worker_is_too_long_for_the_store(make_house, said, cause):
    house = make_house(max_result=100)
    house.start()
    house.submit()
    house.worker().say(said)
    ended = house.ended()
    assert (ended.status, ended.cause, ended.error) == (JobStatus.FAILED, cause, None)
    if isinstance(said, wire.Chunk):
        house.until(lambda: house.worker().signals == [signal.SIGTERM])  # what it yields now is for nobody


# --- secrets ------------------------------------------------------------------------------------------------------------


def refuse(*_):
    raise SecretError("jobs.db.secrets/a", "Permission denied")


def test_a_secret_that_cannot_be_kept_is_the_clients_503(house):
    house.secrets.put = refuse
    with pytest.raises(RequestError, match="s3Config cannot be used") as refused:
        house.submit("a", s3_config=b"{}")
    assert refused.value.status == 503
    assert house.submit("b").status is JobStatus.IN_PROGRESS


def test_a_secret_that_cannot_be_read_fails_its_job_and_the_next_one_runs(house):
    house.submit("a")
    house.submit("b", s3_config=b"{}")
    house.submit("c")
    house.secrets.need = refuse
    house.worker().heard()
    house.worker().say(wire.Done("a", "COMPLETED", DONE))
    ended = house.ended("b")
    assert (ended.status, ended.cause) == (JobStatus.FAILED, SecretUnreadable("jobs.db.secrets/a", "Permission denied"))
    assert house.worker().heard().job == "c"


def test_a_job_whose_secret_is_gone_fails_and_never_runs_without_it(house):
    house.submit("a")
    house.submit("b", s3_config=b"{}")
    house.secrets.drop("b")
    house.worker().heard()
    house.worker().say(wire.Done("a", "COMPLETED", DONE))
    ended = house.ended("b")
    assert ended.status is JobStatus.FAILED
    assert error_of(ended).endswith("the file of a job's s3Config cannot be used (the file is missing)")
    assert house.worker().hears_nothing()


def test_a_secret_that_cannot_be_removed_is_said_and_stops_nothing(house):
    house.submit("a", s3_config=b"{}")
    house.secrets.drop = refuse
    house.worker().say(wire.Done("a", "COMPLETED", DONE))
    assert house.ended("a").status is JobStatus.COMPLETED
    assert (
        TaskFailed(Task.REMOVE_ENDED_SECRET, str(SecretError("jobs.db.secrets/a", "Permission denied"))) in house.told
    )


def test_secrets_of_jobs_that_ended_do_not_outlive_a_kill(make_house):
    house = make_house()
    house.start()
    house.submit("a", s3_config=b'"a"')
    house.submit("b", s3_config=b'"b"')
    house.submit("c", s3_config=b'"c"')
    house.secrets.drop = lambda _: None  # as if killed between the commit and this
    house.worker().say(wire.Done("a", "COMPLETED", DONE))
    house.ended("a")
    house.engine.close()
    house.store.close()
    after = make_house(store=Store.open(house.settings.store))
    after.engine.start()
    assert [after.secrets.get(name) for name in "abc"] == [None, b'"b"', b'"c"']


# --- streams ------------------------------------------------------------------------------------------------------------


def test_chunks_of_a_reader_that_left_before_they_were_handed_out_are_for_the_next(house):
    house.submit()
    house.worker().say(wire.Chunk("a", 0, b'"x"'))
    house.until(lambda: house.engine.job("a").chunks == 1)

    async def leave_then_read():
        leaving = asyncio.ensure_future(house.engine.streams.take("a", 5))
        await asyncio.sleep(0)  # it asks, and waits for the disk
        leaving.cancel()
        return await house.engine.streams.take("a", 5)

    assert house.wait(leave_then_read()).chunks.values == [b'"x"']


def test_a_second_reader_sees_no_end_before_the_chunks_that_the_first_gave_back(house):
    house.submit()
    house.worker().say(wire.Chunk("a", 0, b'"x"'), wire.Done("a", "COMPLETED", b"[]"))
    house.ended()
    first = house.wait(house.engine.streams.take("a", 5))

    async def release_and_read():
        first.release()
        return await house.engine.streams.take("a", 5)

    assert house.wait(release_and_read()).chunks.values == [b'"x"']


def test_a_lease_of_an_older_run_changes_nothing_in_the_next(make_house):
    """An attempt that was not charged has the same number as the next one."""
    house = make_house(requeue_streams=True)
    house.start(capacity=2)
    house.submit("a")
    house.submit("b")
    house.worker().say(wire.Chunk("a", 0, b'"old"'))
    house.until(lambda: house.engine.job("a").chunks == 1)
    old = house.wait(house.engine.streams.take("a", 5))
    house.wait(house.engine.cancel("b"))
    house.worker().dies(-signal.SIGTERM)
    house.until(lambda: house.worker().generation == 2)
    house.worker().ready()
    assert house.worker().heard().job == "a"
    assert house.engine.job("a").attempts == 1
    house.worker().say(wire.Chunk("a", 0, b'"new"'))
    house.until(lambda: house.engine.job("a").chunks == 1)
    old.confirm()
    new = house.wait(house.engine.streams.take("a", 5))
    assert new.chunks.values == [b'"new"']
    new.confirm()
    house.worker().say(wire.Chunk("a", 1, b'"newer"'))
    house.until(lambda: house.engine.job("a").chunks == 2)
    house.wait(house.engine.streams._mark(old.job, 0))
    house.settle()
    assert house.wait(house.engine.streams.take("a", 5)).chunks.values == [b'"newer"']


LONG = [b'"%d%b"' % (number, b"x" * (READ_BYTES // 2)) for number in range(5)]


def stream_long(house, **failed):
    done = wire.Done("a", **failed) if failed else wire.Done("a", "COMPLETED", b"[]")
    house.submit()
    house.worker().write(*(wire.Chunk("a", at, value) for at, value in enumerate(LONG)), done)
    house.ended()


def looks(house, chunks):
    while chunks.values:
        yield chunks.values
        chunks = house.engine.streams.following(chunks)


def test_a_long_stream_is_handed_out_at_once_and_never_in_memory_as_a_whole(house):
    stream_long(house)
    lease = house.wait(house.engine.streams.take("a", 5))
    assert house.store.get("a").chunks_taken == len(LONG)  # on disk before the first of them leaves
    assert list(looks(house, lease.chunks)) == [LONG[:2], LONG[2:4], LONG[4:]]
    lease.release()
    again = house.wait(house.engine.streams.take("a", 5))
    assert [value for look in looks(house, again.chunks) for value in look] == LONG
    again.confirm()
    assert house.wait(house.engine.streams.take("a", 5)).chunks.values == []
    read = house.wait(house.engine.streams.read("a", 1, 5))
    assert list(looks(house, read)) == [LONG[1:3], LONG[3:]]


def test_one_look_at_a_long_stream_leaves_the_others(house):
    stream_long(house)
    for values in (LONG[:2], LONG[2:4], LONG[4:], []):
        lease = house.wait(house.engine.streams.take("a", 5, one_look=True))
        lease.confirm()
        assert lease.chunks.values == values


def test_nothing_follows_when_the_job_runs_again(house):
    stream_long(house, status="FAILED", error="why")
    lease = house.wait(house.engine.streams.take("a", 5))
    house.wait(house.engine.retry("a"))
    house.worker().write(*(wire.Chunk("a", at, b'"of another run"') for at in range(4)))
    house.until(lambda: house.engine.job("a").chunks == 4)
    assert list(looks(house, lease.chunks)) == [LONG[:2]]
    lease.release()
    house.settle()
    assert house.wait(house.engine.streams.take("a", 5)).chunks.values == [b'"of another run"'] * 4


# --- workers ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_to_end_before_it_was_forked_is_gone_at_once(house):
    """A slot comes out of its backoff in the turn that ends it."""
    house.worker().dies(1)
    house.until(lambda: house.pool.slots["cpu0"].state.value == "backoff")
    house.engine._loop.draining = True
    house.engine.reload()
    house.wait(house.engine.drain(5.0, asyncio.Event()))
    assert house.pool.parked
    assert house.worker().generation == 1


def test_a_worker_whose_cuda_context_is_poisoned_is_refreshed(house):
    house.submit()
    house.worker().heard()
    house.worker().say(wire.Done("a", "FAILED", error="CUDA error: illegal access", poisoned="illegal access"))
    assert house.ended().status is JobStatus.FAILED
    assert house.worker().heard() == wire.Exit()
    assert house.pool.slots["cpu0"].refresh_cause == RefreshCause(RefreshBy.CUDA_ERROR, "illegal access")


def test_the_first_load_fails_in_one_slot_which_then_serves_alone(make_house):
    house = make_house(slots=2)
    house.start(ready=False)
    house.worker("cpu0").dies(-signal.SIGSEGV)
    house.until(lambda: house.pool.slots["cpu0"].state.value == "backoff")
    house.clock.now += 1.0
    house.until(lambda: house.worker("cpu0").generation == 2)
    house.worker("cpu0").ready()
    house.until(lambda: house.engine.ready)
    house.worker("cpu1").dies(-signal.SIGSEGV)
    house.settle()
    assert house.engine.first_load.result().ok


def test_a_reload_during_the_first_load_is_no_failure_of_it(make_house):
    house = make_house()
    house.start(ready=False)
    house.engine.reload()
    house.until(lambda: house.worker().signals == [signal.SIGTERM])
    house.worker().dies(-signal.SIGTERM)
    house.until(lambda: house.worker().generation == 2)
    assert not house.engine.first_load.done()
    house.worker().ready()
    house.until(lambda: house.engine.ready)


def test_a_worker_that_is_ready_sooner_than_its_template_says_its_pid_has_one(make_house):
    house = make_house()
    report, late = house.template.report, []
    house.template.report = lambda said: late.append(said) if isinstance(said, wire.Forked) else report(said)
    house.start()
    seen = [house.engine.snapshot().workers[0].pid]
    (forked,) = late
    report(forked)
    house.settle()
    seen.append(house.engine.snapshot().workers[0].pid)
    assert seen == [house.worker().pid] * 2
    house.submit()
    assert house.worker().heard().job == "a"


def test_a_worker_that_is_ready_too_late_opens_no_doors(make_house):
    house = make_house(start_timeout=60)
    house.start(ready=False)
    house.clock.now += 60
    house.until(lambda: house.worker().signals == [STACK_SIGNAL])
    house.worker().ready()
    house.settle()
    assert not house.engine.ready


def test_the_system_refuses_another_template_for_a_while(house):
    start, refusals = house.template.start, [OSError(11, "Resource temporarily unavailable")]

    def refuse_once():
        if refusals:
            raise refusals.pop()
        start()

    house.template.start = refuse_once
    house.submit()
    house.template.dies()
    house.until(lambda: not refusals)
    house.clock.now += 1.0
    house.until(lambda: house.worker().generation > 1)
    house.worker().ready()
    assert house.worker().heard().job == "a"


def test_no_descriptors_are_left_to_hand_a_worker_its_pipes(house):
    fork, refusals = house.template.fork, [OSError(24, "Too many open files")]

    def refuse_once(slot, generation, env, pipes):
        if refusals:
            pipes.close_workers()
            raise refusals.pop()
        fork(slot, generation, env, pipes)

    house.template.fork = refuse_once
    house.submit()
    house.worker().dies(-signal.SIGKILL)
    house.until(lambda: not refusals)
    house.submit("b")
    house.clock.now += 1.0
    house.until(lambda: house.worker().generation > 1)
    house.worker().ready()
    assert house.worker().heard().job == "b"


def test_held_memory_that_clears_while_a_person_overrides_it(make_house, played_memory):
    house, memory = make_house(memory=played_memory), played_memory
    house.start()
    house.worker().dies(-signal.SIGKILL)
    house.until(lambda: house.pool.slots["cpu0"].state.value == "releasing")
    memory.learned.append(("cpu0", steps.MemoryHeld(MemoryStaysInUse((HeldGpu(900),)))))
    house.until(lambda: house.pool.slots["cpu0"].state.value == "held")
    house.template.dies()
    house.settle()  # a fork must wait now
    memory.learned.append(("cpu0", steps.Released(900)))
    house.wait(house.engine.slots.refresh("cpu0"))
    house.clock.now += 1.0
    house.until(lambda: house.worker().generation == 2)


# --- the disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stalled(house):
    """A house whose disk refuses the end of the job ``a``."""
    house.submit()
    house.store.commit, house.commit = (lambda batch, done: done(StoreError("the disk is full"))), house.store.commit
    house.worker().say(wire.Chunk("a", 0, b'"x"'), wire.Done("a", "COMPLETED", DONE))
    house.until(lambda: not house.engine.ready)
    return house


def test_what_the_disk_refused_nobody_sees(stalled):
    assert stalled.engine.job("a").status is JobStatus.IN_PROGRESS
    assert stalled.wait(stalled.engine.streams.take("a", 0)).chunks.values == []
    stalled.store.commit = stalled.commit
    assert stalled.ended().output == DONE


def test_a_disk_that_refuses_does_not_keep_the_loop_busy(stalled):
    turns = []

    def turn():
        turns.append(stalled.engine)
        stalled.engine._turns.begin()

    stalled.engine._turns._turn = turn
    stalled.worker().prints("still here\n")
    stalled.worker().say(wire.Progress("a", b"1"))
    stalled.template.report(wire.Forked("cpu0", 1, 1))
    for _ in range(20):
        stalled.loop.run_until_complete(asyncio.sleep(0))
    assert len(turns) <= 1  # the one that was on its way


def test_a_disk_that_refuses_does_not_keep_the_program(stalled):
    at_once = asyncio.Event()
    at_once.set()
    stalled.wait(stalled.engine.drain(30.0, at_once))
    assert stalled.store.get("a").status is JobStatus.IN_PROGRESS
