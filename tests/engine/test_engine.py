"""The way of a job through the engine, turn by turn, against workers that do what no good worker would."""

import asyncio
import json
import signal

import pytest

from supervisor import cause as c
from supervisor.errors import RequestError, StoreError
from supervisor.host.processes import STACK_SIGNAL
from supervisor.job import JobRequest, JobStatus
from supervisor.pool import events
from supervisor.pool.template.process import TemplateExited
from supervisor.store.store import Store
from supervisor.wire import messages as wire


def run(job_id="a", value=b'{"n":1}', extras=None):
    return wire.Run(job_id, value, extras)


def test_a_job_is_on_disk_before_its_worker_hears_of_it(house):
    job = house.submit()
    assert house.store.get("a").status is JobStatus.IN_PROGRESS
    assert (job.attempts, job.worker_id) == (1, "cpu0-1")
    assert house.worker().heard() == run()
    house.worker().say(wire.Done("a", "COMPLETED", b'{"n":2}'))
    ended = house.ended()
    assert (ended.status, ended.output) == (JobStatus.COMPLETED, b'{"n":2}')
    assert house.store.get("a") == ended.replace(input=house.store.get("a").input)


def test_the_oldest_waiting_job_is_next(house):
    for name in "abc":
        house.submit(name)
    assert [house.engine.job(name).status.value for name in "abc"] == ["IN_PROGRESS", "IN_QUEUE", "IN_QUEUE"]
    for name in "abc":
        assert house.worker().heard().job == name
        assert house.worker().hears_nothing()
        house.worker().say(wire.Done(name, "COMPLETED", b"null"))
        assert house.ended(name).status is JobStatus.COMPLETED


def test_the_same_id_is_the_same_job(house):
    first = house.submit("a")
    assert house.submit("a", b'"other"').seq == first.seq
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    assert house.submit("a").status is JobStatus.COMPLETED


def test_the_same_id_twice_in_one_turn(house):
    both = asyncio.gather(*(house.engine.submit(JobRequest(id="a", input=b"1")) for _ in range(2)))
    one, other = house.wait(both)
    assert one.seq == other.seq


def test_extras_reach_the_worker_with_the_secret(house):
    house.submit(extras=b'{"webhook":"http://h"}', s3_config=b'{"accessSecret":"x"}')
    extras = json.loads(house.worker().heard().extras)
    assert extras == {"webhook": "http://h", "s3Config": {"accessSecret": "x"}}
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    assert house.secrets.get("a") is None


def test_progress_is_the_newest_and_ends_with_the_job(house):
    house.submit()
    house.worker().say(wire.Progress("a", b"1"), wire.Progress("a", b"2"))
    house.until(lambda: house.engine.progress("a") == b"2")
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    assert house.engine.progress("a") is None


def test_last_words_come_before_the_end(house):
    house.submit()
    house.worker().prints("one\ntwo\nhalf a li")
    house.worker().dies(-signal.SIGSEGV)
    ended = house.ended()
    assert ended.status is JobStatus.FAILED
    assert ended.cause == c.WorkerLost("cpu0", 40000, c.Signalled(11), ("one", "two", "half a li"))


def test_a_result_in_the_pipe_counts_although_its_worker_died(house):
    house.submit()
    house.worker().say(wire.Done("a", "COMPLETED", b"42"))
    house.worker().dies(-signal.SIGKILL)
    assert house.ended().output == b"42"


def test_a_dead_workers_job_runs_again_while_attempts_are_left(make_house):
    house = make_house(max_attempts=2)
    house.start()
    house.submit()
    for attempt in (1, 2):
        assert house.worker().heard() == run()
        assert house.store.get("a").attempts == attempt
        generation = house.worker().generation
        house.worker().dies(-signal.SIGKILL)
        house.until(lambda before=generation: house.worker().generation > before)
        house.worker().ready()
    ended = house.ended()
    assert (ended.status, ended.retries) == (JobStatus.FAILED, 1)
    assert ended.cause.end == c.Signalled(9)


def test_cancel_of_a_queued_job(house):
    house.submit("a")
    house.submit("b")
    cancelled = house.wait(house.engine.cancel("b"))
    assert cancelled.status is JobStatus.CANCELLED
    house.worker().heard()
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended("a")
    house.settle()
    assert house.worker().hears_nothing()


def test_cancel_of_a_plain_function_ends_its_worker(house):
    house.submit()
    house.worker().heard()
    assert house.wait(house.engine.cancel("a")).status is JobStatus.CANCELLED
    house.until(lambda: house.worker().signals)
    assert house.worker().signals == [signal.SIGTERM]
    house.clock.now += 5.0
    house.until(lambda: len(house.worker().signals) == 2)
    house.clock.now += 0.2
    house.until(lambda: len(house.worker().signals) == 3)
    assert house.worker().signals[1:] == [STACK_SIGNAL, "tree"]
    house.worker().dies(-signal.SIGKILL)
    house.until(lambda: house.worker().generation == 2)
    assert house.engine.job("a").status is JobStatus.CANCELLED


def test_cancel_of_a_coroutine_tells_it(make_house):
    house = make_house()
    house.start(kind="coroutine")
    house.submit()
    house.worker().heard()
    house.wait(house.engine.cancel("a"))
    assert house.worker().heard() == wire.Cancel("a")
    house.worker().say(wire.Done("a", "CANCELLED"))
    house.until(lambda: house.pool.slots["cpu0"].state.value == "idle")
    assert house.worker().signals == []


def test_cancel_of_an_ended_or_unknown_job_changes_nothing(house):
    house.submit()
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    assert house.wait(house.engine.cancel("a")).status is JobStatus.COMPLETED
    assert house.wait(house.engine.cancel("nobody")) is None


def test_refresh_gives_the_next_job_to_a_fresh_worker(house):
    house.submit("a")
    house.submit("b")
    old = house.worker()
    old.heard()
    old.say(wire.Done("a", "COMPLETED", b"1", refresh=True))
    assert house.ended("a").status is JobStatus.COMPLETED  # visible before the teardown
    assert old.heard() == wire.Exit()
    old.dies(0)
    house.until(lambda: house.worker() is not old)
    assert house.engine.job("b").status is JobStatus.IN_QUEUE
    house.worker().ready()
    assert house.worker().heard() == run("b")
    view = house.engine.snapshot().workers[0]
    assert (view.refreshes, view.restarts, view.generation) == (1, 0, 2)
    assert view.last_refresh.cause == "the handler"


def test_chunks_are_handed_out_once_and_a_failed_answer_hands_them_out_again(house):
    house.submit()
    house.worker().say(wire.Chunk("a", 0, b'"x"'), wire.Chunk("a", 1, b'"y"'))
    house.until(lambda: house.engine.job("a").chunks == 2)
    lost = house.wait(house.engine.streams.take("a", 5))
    assert lost.chunks.values == [b'"x"', b'"y"']
    assert house.store.get("a").chunks_taken == 2  # on disk before it leaves
    lost.release()
    again = house.wait(house.engine.streams.take("a", 5))
    assert again.chunks.values == [b'"x"', b'"y"']
    again.confirm()
    house.worker().say(wire.Chunk("a", 2, b'"z"'), wire.Done("a", "COMPLETED", b"[]"))
    last = house.wait(house.engine.streams.take("a", 5))
    assert last.chunks.values == [b'"z"']
    last.confirm()
    house.ended()
    assert house.wait(house.engine.streams.take("a", 5)).chunks.values == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([wire.Chunk("a", 1, b"1")], "chunk 1 out of order"),
        ([wire.Done("other", "COMPLETED", b"1")], "the job does not run in this worker"),
        ([wire.Done("a", "IN_QUEUE", b"1")], "is not a valid end of a job"),
        ([wire.Ready(1, "function")], "Ready was sent twice"),
    ],
)
def test_a_worker_that_breaks_the_protocol_hurts_its_own_job_only(make_house, said, words):
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    bad, good = house.worker("cpu0"), house.worker("cpu1")
    bad.say(*said)
    house.until(lambda: bad.signals == ["tree"])
    bad.dies(-signal.SIGKILL)
    ended = house.ended("a")
    assert ended.status is JobStatus.FAILED
    assert words in ended.cause.end.what
    good.say(wire.Done("b", "COMPLETED", b"1"))
    assert house.ended("b").status is JobStatus.COMPLETED


def test_bytes_that_are_no_message(house):
    house.submit()
    house.worker().write_raw(wire.frame(b"\xff\xff nonsense"))
    house.until(lambda: house.worker().signals == ["tree"])


def test_half_a_message_waits_and_hurts_nobody(make_house):
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    house.worker("cpu0").write_raw(b"\x00\x00\x10\x00 the rest never comes")
    house.worker("cpu1").say(wire.Done("b", "COMPLETED", b"1"))
    assert house.ended("b").status is JobStatus.COMPLETED
    assert house.engine.job("a").status is JobStatus.IN_PROGRESS
    house.worker("cpu0").dies(-signal.SIGKILL)
    assert house.ended("a").status is JobStatus.FAILED


def test_the_template_dies_and_jobs_run_again_but_not_for_ever(house):
    house.submit()
    for start in (1, 2, 3):
        house.worker().heard()
        assert house.store.get("a").attempts == start
        before = house.worker().generation
        house.template.dies()
        house.until(lambda: house.template.swept)
        house.clock.now += 1.0
        house.until(lambda before=before: house.worker().generation > before)
        house.worker().ready()
    ended = house.ended()
    assert ended.status is JobStatus.FAILED
    assert ended.cause.end == c.EndedBecause.TEMPLATE_DIED


@pytest.mark.parametrize(
    ("options", "attempts", "taken", "cause"),
    [
        ({}, 1, 0, None),
        ({}, 2, 0, None),
        ({}, 3, 0, c.SupervisorKilled(3)),
        ({"on_restart": "fail"}, 1, 0, c.SupervisorKilled()),
        ({}, 1, 1, c.ChunksHandedOut()),
        ({"requeue_streams": True}, 1, 1, None),
    ],
)
def test_what_ran_when_the_supervisor_was_killed(make_house, options, attempts, taken, cause):
    house = make_house(slots=1, max_attempts=5, **options)
    house.start()
    house.submit()
    for _ in range(attempts - 1):
        house.worker().dies(-9)
        generation = house.worker().generation
        house.until(lambda before=generation: house.worker().generation > before)
        house.worker().ready()
        house.until(lambda: house.engine.job("a").status is JobStatus.IN_PROGRESS)
    if taken:
        house.worker().say(wire.Chunk("a", 0, b"1"))
        house.wait(house.engine.streams.take("a", 5)).confirm()
    house.engine.close()
    house.store.close()  # as if killed: nothing more was written

    after = make_house(slots=1, store=Store.open(house.settings.store), **options)
    after.start(ready=False)
    after.settle()
    job = after.engine.job("a")
    assert (job.status, job.cause) == (JobStatus.IN_QUEUE if cause is None else JobStatus.FAILED, cause)
    if cause is None:
        after.worker().ready()
        assert after.worker().heard() == run()


def test_drain_lets_jobs_end_and_puts_the_rest_back(make_house):
    house = make_house(slots=2, drain_timeout=3.0)
    house.start()
    for name in "abc":
        house.submit(name)
    drained = asyncio.ensure_future(house.engine.drain(3.0, asyncio.Event()), loop=house.loop)
    house.settle()
    with pytest.raises(RequestError, match="shutting down") as refused:
        house.engine.submit(JobRequest(id="d", input=b"1"))
    assert refused.value.status == 503
    house.worker("cpu0").say(wire.Done("a", "COMPLETED", b"1"))
    house.until(lambda: house.engine.job("a").status is JobStatus.COMPLETED)
    house.worker("cpu0").heard()
    assert house.worker("cpu0").heard() == wire.Exit()
    house.clock.now += 3.0
    house.until(lambda: house.worker("cpu1").signals == [signal.SIGTERM])
    house.worker("cpu0").dies(0)
    house.worker("cpu1").dies(-signal.SIGTERM)
    house.wait(drained)
    assert house.pool.parked
    assert {name: house.store.get(name).status.value for name in "abc"} == {
        "a": "COMPLETED",
        "b": "IN_QUEUE",
        "c": "IN_QUEUE",
    }
    assert house.store.get("b").attempts == 0  # a drain charges nobody


def test_queue_limit(make_house):
    house = make_house(max_queue=1)
    house.start()
    house.submit("a")
    house.submit("b")
    with pytest.raises(RequestError, match="--max-queue") as refused:
        house.engine.submit(JobRequest(id="c", input=b"1"))
    assert refused.value.status == 429
    assert house.submit("b").status is JobStatus.IN_QUEUE  # it is in already


def test_a_result_that_is_too_large_fails_its_job(make_house):
    house = make_house(max_result=100)
    house.start()
    house.submit()
    house.worker().say(wire.Done("a", "COMPLETED", b'"' + b"x" * 99 + b'"'))
    ended = house.ended()
    assert (ended.status, ended.output) == (JobStatus.FAILED, None)
    assert ended.cause == c.TooLarge(101, 100)


def test_jobs_are_taken_while_workers_still_load(make_house):
    house = make_house()
    house.start(ready=False)
    assert house.submit().status is JobStatus.IN_QUEUE
    assert not house.engine.ready
    house.worker().ready()
    assert house.worker().heard() == run()
    assert house.engine.ready


def test_the_first_load_fails_on_every_slot(make_house):
    house = make_house(slots=2)
    house.start(ready=False)
    house.worker("cpu0").say(wire.LoadFailed("raised", "ZeroDivisionError: division by zero", "Traceback …"))
    house.worker("cpu0").dies(71)
    house.settle()
    assert not house.engine.first_load.done()
    house.worker("cpu1").say(wire.LoadFailed("raised", "ZeroDivisionError: division by zero", "Traceback …"))
    house.worker("cpu1").dies(71)
    first = house.wait(house.engine.first_load)
    assert (first.ok, first.failed.reason) == (False, "raised")


def test_a_worker_that_dies_in_its_first_load_is_another_failure(make_house):
    house = make_house()
    house.start(ready=False)
    house.worker().dies(-signal.SIGSEGV)
    first = house.wait(house.engine.first_load)
    assert (first.ok, first.failed, first.end) == (False, None, c.Signalled(11))


def test_a_worker_that_hangs_in_its_first_load(make_house):
    house = make_house(start_timeout=60)
    house.start(ready=False)
    house.clock.now += 60
    house.until(lambda: house.worker().signals == [STACK_SIGNAL])
    house.clock.now += 0.2
    house.until(lambda: house.worker().signals[1:] == [signal.SIGTERM])
    house.worker().dies(-signal.SIGTERM)
    first = house.wait(house.engine.first_load)
    assert (first.ok, first.failed) == (False, None)
    assert first.end == c.StartTimedOut(60.0)


def test_a_template_that_never_comes_up(make_house):
    house = make_house(slots=2)
    house.template.start = lambda: house.template.report(TemplateExited(1))
    house.engine.start()
    for _ in range(3):
        house.settle()
        house.clock.now += 10
    first = house.wait(house.engine.first_load)
    assert (first.ok, first.end) == (False, c.NoTemplate(c.Exited(1)))


def test_prints_carry_their_slot_and_job(house):
    house.worker().prints("loading\n")
    house.until(lambda: any(isinstance(told, events.Printed) for told in house.told))
    house.submit()
    house.worker().prints("working\n")
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    printed = [(told.slot, told.job, told.lines) for told in house.told if isinstance(told, events.Printed)]
    assert printed == [("cpu0", None, ["loading"]), ("cpu0", "a", ["working"])]


def test_manual_refresh(house):
    with pytest.raises(RequestError, match="no slot 'gpu9'; there are: cpu0"):
        house.wait(house.engine.slots.refresh("gpu9"))
    house.wait(house.engine.slots.refresh("cpu0"))
    assert house.worker().heard() == wire.Exit()
    with pytest.raises(RequestError, match="cpu0 is ending") as refused:
        house.wait(house.engine.slots.refresh("cpu0"))
    assert refused.value.status == 409


@pytest.mark.parametrize("idle", [True, False])
def test_a_job_that_the_full_disk_does_not_take_is_refused_and_never_runs(house, idle):
    if not idle:
        house.submit("first")
        assert house.worker().heard().job == "first"
    refuse, house.store.commit = house.store.commit, lambda batch, done: done(StoreError("the disk is full"))
    with pytest.raises(RequestError, match="the disk is full") as refused:
        house.submit("a", s3_config=b'{"accessId":"x"}')
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    assert house.engine.job("a") is None
    assert not list((house.settings.store.parent / "secrets").iterdir())
    assert not house.engine.ready
    for ask in (lambda: house.submit("b"), lambda: house.wait(house.engine.cancel("a")), house.engine.purge):
        with pytest.raises(RequestError):
            ask()
    house.store.commit = refuse
    house.until(lambda: house.engine.ready)
    house.submit("c")
    if not idle:
        house.worker().say(wire.Done("first", "COMPLETED", b"1"))
    assert house.worker().heard() == wire.Run("c", b'{"n":1}')
    assert house.engine.snapshot().jobs.in_progress == 1


def test_old_jobs_are_deleted(make_house):
    house = make_house(retention=60)
    house.start()
    house.submit()
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    house.clock.wall += 61_000
    house.clock.now += 31.0
    house.until(lambda: house.engine.job("a") is None)
