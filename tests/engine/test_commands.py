"""What is done to jobs by hand and by the clock: time-outs, retry, purge, pages, pauses; and what is written beside their end."""

import asyncio
import signal

import msgspec
import pytest

from supervisor.cause import ExecutionTimedOut, PausedByHand, TtlPassed
from supervisor.engine.commands import PURGE_PIECE
from supervisor.errors import RequestError, StoreError
from supervisor.host.processes import STACK_SIGNAL
from supervisor.job import JobRequest, JobStatus
from supervisor.protocol.responses import status_body
from supervisor.store.writes import DropWebhook
from supervisor.wire import messages as wire


def done(job="a", status="COMPLETED", output=b'"out"', **fields):
    return wire.Done(job, status, output, **fields)


def run(house, job_id="a", slot="cpu0", **fields):
    """Submit a job and have its worker take it."""
    house.submit(job_id, **fields)
    while not isinstance(heard := house.worker(slot).heard(), wire.Run):
        pass
    assert heard.job == job_id


def statuses(house, *job_ids):
    return [house.engine.job(job_id).status.value for job_id in job_ids]


# --- time-outs -------------------------------------------------------------------------------------------------------------


def test_a_job_past_its_execution_time_out_ends_and_loses_its_worker(house):
    run(house, timeout_ms=5_000)
    house.clock.now += 4.9
    house.settle()
    assert statuses(house, "a") == ["IN_PROGRESS"]
    house.clock.now += 0.2
    job = house.ended()
    assert (job.status, job.cause) == (JobStatus.TIMED_OUT, ExecutionTimedOut(5_000))
    house.clock.now += 0.2
    house.until(lambda: house.worker().signals == [STACK_SIGNAL, signal.SIGTERM])  # where it was stuck, then its end
    house.worker().dies(-15)
    house.until(lambda: house.pool.slots["cpu0"].generation == 2)
    assert house.pool.slots["cpu0"].restarts == 1


def test_the_engine_wakes_at_the_deadline_of_a_job(house):
    run(house, timeout_ms=5_000)
    assert house.engine._jobs.deadline(house.clock.now, house.clock.wall) == pytest.approx(house.clock.now + 5)
    house.worker().say(done())
    house.ended()
    assert house.engine._jobs.deadline(house.clock.now, house.clock.wall) is None


def test_the_default_execution_time_out_holds_for_a_job_that_has_none(make_house):
    house = make_house(execution_timeout=2)
    house.start()
    run(house)
    run_at = house.clock.now
    house.clock.now = run_at + 2.1
    assert house.ended().status is JobStatus.TIMED_OUT


def test_of_many_jobs_in_a_worker_only_the_late_one_is_told_to_stop(make_house):
    house = make_house()
    house.start(kind="coroutine", capacity=2)
    run(house, "late", timeout_ms=1_000)
    run(house, "patient")
    house.clock.now += 1.5
    assert house.ended("late").status is JobStatus.TIMED_OUT
    assert house.worker().heard() == wire.Cancel("late")
    house.worker().say(done("late", "CANCELLED", None), done("patient"))
    assert house.ended("patient").status is JobStatus.COMPLETED
    assert house.worker().signals == []


def test_a_lone_coroutine_that_is_late_loses_its_worker(make_house):
    house = make_house()
    house.start(kind="coroutine", capacity=2)
    run(house, timeout_ms=1_000)
    house.clock.now += 1.5
    house.ended()
    house.until(lambda: house.worker().signals == [STACK_SIGNAL])


@pytest.mark.parametrize("running", [False, True])
def test_a_job_past_its_ttl_times_out_queued_or_running(house, running):
    if not running:
        run(house, "first")
    house.submit(ttl_ms=10_000)
    house.clock.wall += 9_000
    house.settle()
    assert statuses(house, "a") == ["IN_PROGRESS" if running else "IN_QUEUE"]
    house.clock.wall += 2_000
    job = house.ended()
    assert (job.status, job.cause) == (JobStatus.TIMED_OUT, TtlPassed())
    if not running:
        assert job.started_ms is None
        house.worker().say(done("first"))
        house.ended("first")
        house.settle()
        assert house.worker().hears_nothing()


def test_a_ttl_outlives_the_supervisor(make_house):
    first = make_house(ttl=10)
    first.engine.start()  # no worker is ready
    first.submit()
    first.engine.close()
    first.store.close()
    second = make_house()
    second.clock.wall += 60_000
    second.start()
    assert second.ended().status is JobStatus.TIMED_OUT


# --- retry -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT"])
def test_a_failed_job_runs_again_by_its_id_and_nothing_old_is_left(house, status):
    run(house, timeout_ms=5_000, ttl_ms=60_000)
    house.worker().prints("of the first try\n")
    house.until(lambda: house.engine.logs.read("a").text)
    if status == "FAILED":
        house.worker().say(done(status="FAILED", error="why"))
        house.ended()
    else:
        house.clock.now += 6
        house.ended()
        house.worker().dies(-15)
        house.until(lambda: house.template.workers["cpu0"].generation == 2)
        house.worker().ready()
        house.until(lambda: house.pool.slots["cpu0"].state.value == "idle")
    before = house.engine.job("a")
    job = house.wait(house.engine.retry("a"))
    assert (job.status, job.output, job.error, job.cause) == (JobStatus.IN_QUEUE, None, None, None)
    assert job.retries == before.retries + 1
    assert job.expires_ms - job.created_ms == 60_000
    assert house.worker().heard() == wire.Run("a", b'{"n":1}')
    assert house.engine.logs.read("a").text == b""
    house.worker().say(done())
    assert house.ended().output == b'"out"'
    counts = house.engine.snapshot().jobs
    assert (counts.completed, counts.failed, counts.retried) == (1, 0, 1)


@pytest.mark.parametrize("status", ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "CANCELLED"])
def test_no_other_job_can_be_run_again(house, status):
    if status == "IN_QUEUE":
        run(house, "first")
        house.submit()
    else:
        run(house)
    if status == "COMPLETED":
        house.worker().say(done())
        house.ended()
    elif status == "CANCELLED":
        house.wait(house.engine.cancel("a"))
    with pytest.raises(RequestError, match=status) as caught:
        house.wait(house.engine.retry("a"))
    assert caught.value.status == 409
    assert statuses(house, "a") == [status]


def test_a_job_whose_secret_is_gone_cannot_be_run_again(house):
    run(house, s3_config=b'{"accessId":"x"}')
    house.worker().say(done(status="FAILED", error="why"))
    house.ended()
    with pytest.raises(RequestError, match="s3Config") as caught:
        house.wait(house.engine.retry("a"))
    assert caught.value.status == 409


@pytest.mark.parametrize("idle", [True, False])
def test_a_retry_that_the_full_disk_does_not_take_is_refused_and_never_happens(house, idle):
    run(house)
    house.worker().say(done(status="FAILED", error="why"))
    before = house.ended()
    if not idle:
        run(house, "other")
    commit, house.store.commit = house.store.commit, lambda batch, done: done(StoreError("the disk is full"))
    with pytest.raises(RequestError, match="the disk is full") as caught:
        house.wait(house.engine.retry("a"))
    assert caught.value.status == 503
    assert house.engine.job("a") == before
    house.store.commit = commit
    house.until(lambda: house.engine.ready)
    if not idle:
        house.worker().say(done("other"))
        house.ended("other")
    run(house, "next")
    assert house.engine.job("a") == before
    counts = house.engine.snapshot().jobs
    assert (counts.failed, counts.retried, counts.in_queue) == (1, 0, 0)


# --- a disk that refuses ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fill_the_disk(house):
    """``free = fill_the_disk()``: it refuses from then on, until ``free()``."""

    def fill():
        commit, house.store.commit = house.store.commit, lambda batch, done: done(StoreError("the disk is full"))

        def free():
            house.store.commit = commit
            house.until(lambda: house.engine.ready)

        return free

    return fill


def refused(house, answer, words="the disk is full"):
    with pytest.raises(RequestError, match=words) as caught:
        house.wait(answer)
    assert caught.value.status == 503


@pytest.mark.parametrize("beside", [False, True])
def test_a_running_job_whose_cancel_the_full_disk_does_not_take_runs_on(house, fill_the_disk, beside):
    """``beside``: something that has happened is in the same turn, and is not taken back."""
    run(house, timeout_ms=5_000, extras=b'{"webhook":"http://localhost/"}')
    house.worker().prints("before\n")
    house.until(lambda: house.engine.logs.read("a").text)
    before, free = house.engine.job("a"), fill_the_disk()
    if beside:
        house.worker().say(wire.Chunk("a", 0, b'"x"'))
    refused(house, house.engine.cancel("a"))
    assert house.engine.job("a") == before
    assert house.engine.logs.read("a").text == b"before\n"
    free()
    house.settle()
    assert house.engine.job("a") == before.replace(chunks=int(beside))
    assert house.worker().signals == []
    house.worker().prints("after\n")
    house.worker().say(done())
    assert house.ended().status is JobStatus.COMPLETED
    assert house.engine.logs.read("a").text == b"before\nafter\n"
    assert house.store.outbox.count() == 1
    assert house.pool.slots["cpu0"].restarts == 0


def test_a_running_coroutine_whose_cancel_was_refused_is_not_told(make_house):
    house = make_house()
    house.start(kind="coroutine", capacity=2)
    run(house)
    commit, house.store.commit = house.store.commit, lambda batch, done: done(StoreError("the disk is full"))
    refused(house, house.engine.cancel("a"))
    house.store.commit = commit
    house.until(lambda: house.engine.ready)
    run(house, "b")  # which a worker with a job to cancel would not be given
    house.clock.now += 60  # far more than its grace
    house.settle()
    assert house.worker().signals == []
    house.worker().say(done("a"), done("b"))
    assert house.ended("a").status is house.ended("b").status is JobStatus.COMPLETED


def test_a_refused_cancel_gains_a_job_no_time(house, fill_the_disk):
    run(house, timeout_ms=5_000)
    free = fill_the_disk()
    house.clock.now += 4
    refused(house, house.engine.cancel("a"))
    free()
    house.clock.now += 1.1
    assert house.ended().status is JobStatus.TIMED_OUT


def test_what_a_talkative_job_printed_is_cut_once_however_often_a_cancel_is_refused(make_house):
    house = make_house(max_log=10)
    house.start()
    run(house)
    house.worker().prints("123456\n" * 2)
    house.until(lambda: house.engine.logs.read("a").text)
    commit, house.store.commit = house.store.commit, lambda batch, done: done(StoreError("the disk is full"))
    refused(house, house.engine.cancel("a"))
    house.store.commit = commit
    house.until(lambda: house.engine.ready)
    house.worker().prints("123456\n")
    house.worker().say(done())
    house.ended()
    assert house.engine.logs.read("a").text == b"123456\n[14 more bytes were printed; --max-log keeps 10]\n"


@pytest.mark.parametrize("order", ["cancel", "purge"])
@pytest.mark.parametrize("large", [False, True])
def test_queued_jobs_that_the_full_disk_does_not_let_go_wait_on_in_their_order(house, fill_the_disk, order, large):
    run(house, "running")
    value = b'"%b"' % (b"x" * 5000 if large else b"x")
    for name in "abc":
        house.submit(name, value)
    free = fill_the_disk()
    refused(house, house.engine.cancel("b") if order == "cancel" else house.engine.purge())
    assert statuses(house, *"abc") == ["IN_QUEUE"] * 3
    free()
    house.worker().say(done("running"))
    for name in "abc":
        heard = house.worker().heard()
        assert (heard.job, heard.input) == (name, value)
        house.worker().say(done(name))
        house.ended(name)
    assert house.engine.snapshot().jobs.in_queue == 0


def test_a_purge_that_the_disk_stops_says_how_far_it_came(house):
    run(house, "running")
    for number in range(PURGE_PIECE + 5):
        house.engine.submit(_request(f"job-{number}"))
    house.submit("last")
    commit = house.store.commit

    def full_from_the_second_on(batch, done):
        house.store.commit = lambda batch, done: done(StoreError("the disk is full"))
        commit(batch, done)

    house.store.commit = full_from_the_second_on
    refused(house, house.engine.purge(), f"disk is full; {PURGE_PIECE} of the queued jobs were cancelled before")
    house.store.commit = commit
    house.until(lambda: house.engine.ready)
    assert house.engine.snapshot().jobs.in_queue == 6
    assert statuses(house, "job-0", f"job-{PURGE_PIECE}", "last") == ["CANCELLED", "IN_QUEUE", "IN_QUEUE"]
    assert house.wait(house.engine.purge()) == 6


@pytest.mark.parametrize("idle", [True, False])
def test_all_that_was_asked_for_in_one_turn_is_refused_together(house, fill_the_disk, idle):
    if not idle:
        run(house, "other")
    free = fill_the_disk()
    asked = [house.engine.submit(_request("a")), house.engine.cancel("a"), house.engine.submit(_request("b"))]
    asked += [house.engine.purge(), house.engine.cancel("b")]
    for answer in asked:
        refused(house, answer)
    free()
    assert [house.store.get(name) for name in "ab"] == [None, None]
    if not idle:
        house.worker().say(done("other"))
        house.ended("other")
    run(house, "a")
    assert house.worker().hears_nothing()
    assert house.worker().signals == []


@pytest.mark.parametrize("what", ["refresh", "pause"])
def test_what_is_asked_of_a_slot_while_the_disk_holds_the_turns_is_refused_and_never_happens(
    house, fill_the_disk, what
):
    run(house)
    free = fill_the_disk()
    house.worker().say(done())  # which must be on disk before anything goes on
    house.until(lambda: house.engine._loop.refusal is not None)
    house.settle()
    refused(house, getattr(house.engine.slots, what)("cpu0"))
    free()
    assert house.ended().status is JobStatus.COMPLETED
    house.settle()
    assert house.pool.slots["cpu0"].state.value == "idle"
    assert house.pool.slots["cpu0"].generation == 1
    house.wait(getattr(house.engine.slots, what)("cpu0"))


def test_a_reload_that_comes_while_the_disk_holds_the_turns_is_done_afterwards(house, fill_the_disk):
    run(house)
    free = fill_the_disk()
    house.worker().say(done())
    house.until(lambda: house.engine._loop.refusal is not None)
    house.engine.reload()
    house.settle()
    assert house.pool.slots["cpu0"].generation == 1
    free()
    house.until(lambda: house.worker().hears_nothing() is False)  # asked to exit


def test_what_the_clock_demands_is_done_once_there_is_room(house, fill_the_disk):
    run(house, timeout_ms=5_000)
    free = fill_the_disk()
    house.clock.now += 6
    house.settle()
    assert house.worker().signals == []  # nobody was told that it is out of time
    free()
    assert house.ended().status is JobStatus.TIMED_OUT
    house.until(lambda: house.worker().signals)


def test_an_unknown_job_cannot_be_run_again(house):
    assert house.wait(house.engine.retry("nobody")) is None


# --- purge -----------------------------------------------------------------------------------------------------------------


def test_a_purge_cancels_what_is_queued_and_nothing_else(house):
    run(house, "running")
    count = PURGE_PIECE * 2 + 3
    for number in range(count):
        house.engine.submit(msgspec.structs.replace(_request(f"job-{number}"), low_priority=number % 2 == 1))
    house.submit("last")
    removed = house.engine.purge()
    later = house.engine.submit(_request("later"))
    assert house.wait(removed) == count + 1
    house.wait(later)
    assert statuses(house, "running", "job-0", "job-7", "last", "later") == [
        "IN_PROGRESS",
        "CANCELLED",
        "CANCELLED",
        "CANCELLED",
        "IN_QUEUE",
    ]
    house.worker().say(done("running"))
    house.ended("running")
    assert house.worker().heard().job == "later"


def test_a_purge_of_nothing_is_done_at_once(house):
    assert house.wait(house.engine.purge()) == 0


def _request(job_id):
    return JobRequest(job_id, b'{"n":1}')


def test_what_else_is_asked_in_a_turn_takes_no_place_in_the_queue(make_house):
    house = make_house(max_queue=1)
    house.start()
    run(house, "running")
    house.engine.abandon("nobody")
    house.engine.cancel("nobody")
    assert house.submit("queued").status is JobStatus.IN_QUEUE
    with pytest.raises(RequestError, match="--max-queue"):
        house.submit("one too many")


# --- pages -----------------------------------------------------------------------------------------------------------------


def test_pages_show_the_newest_first_without_gaps(house):
    for number in range(5):
        run(house, f"job-{number}")
        house.worker().say(
            done(f"job-{number}", "FAILED" if number % 2 else "COMPLETED", error="why" if number % 2 else None)
        )
        house.ended(f"job-{number}")
    first = house.engine.requests(None, 2, None)
    second = house.engine.requests(None, 2, first.next)
    third = house.engine.requests(None, 2, second.next)
    assert [job.id for page in (first, second, third) for job in page.jobs] == [f"job-{n}" for n in (4, 3, 2, 1, 0)]
    assert third.next is None
    assert all((job.input, job.output) == (b"", None) for job in first.jobs)
    assert [job.id for job in house.engine.requests(JobStatus.FAILED, 9, None).jobs] == ["job-3", "job-1"]
    assert [job.id for job in house.engine.requests(None, 9, "job-1").jobs] == ["job-0"]
    with pytest.raises(RequestError) as caught:
        house.engine.requests(None, 9, "nobody")
    assert caught.value.status == 404


# --- logs ------------------------------------------------------------------------------------------------------------------


def test_what_a_job_printed_is_there_once_it_ended_to_the_last_word(house):
    run(house)
    house.worker().prints("one\ntwo\n")
    house.until(lambda: house.engine.logs.read("a").text == b"one\ntwo\n")
    house.worker().prints("thr")
    house.worker().say(done())
    house.ended()
    assert house.engine.logs.read("a").text == b"one\ntwo\nthr\n"
    assert house.engine.logs.read("a", 4).text == b"two\nthr\n"
    assert house.engine.logs.read("nobody") is None


def test_who_follows_a_log_gets_more_of_it_and_its_end(house):
    run(house)
    waiting = asyncio.ensure_future(_soon(house.engine.logs.follow("a", 0, 9)), loop=house.loop)
    house.settle()
    house.worker().prints("one\n")
    part = house.wait(waiting)
    assert (part.text, part.end, part.job.status.value) == (b"one\n", 4, "IN_PROGRESS")
    waiting = asyncio.ensure_future(_soon(house.engine.logs.follow("a", part.end, 9)), loop=house.loop)
    house.settle()
    house.worker().say(done())
    part = house.wait(waiting)
    assert (part.text, part.job.status.value) == (b"", "COMPLETED")


async def _soon(awaitable):
    return await awaitable


def test_a_long_log_goes_to_the_store_in_pieces_and_reads_as_one(house):
    run(house)
    lines = [f"line {number} {'x' * 50}\n" for number in range(4000)]
    for at in range(0, 4000, 500):
        house.worker().prints("".join(lines[at : at + 500]))
        house.settle()
    house.worker().say(done())
    house.ended()
    whole, at = b"", 0
    while text := house.engine.logs.read("a", at).text:
        whole, at = whole + text, at + len(text)
    assert whole == "".join(lines).encode()
    assert len(house.store.log(house.engine.job("a").seq, 0)) > 2


def test_a_log_over_its_limit_says_how_much_is_missing(make_house):
    house = make_house(max_log=100)
    house.start()
    run(house)
    house.worker().prints("x" * 59 + "\n")
    house.worker().prints("y" * 59 + "\n" + "z\n")
    house.worker().say(done())
    house.ended()
    assert house.engine.logs.read("a").text == b"x" * 59 + b"\n[62 more bytes were printed; --max-log keeps 100]\n"


def test_a_job_that_runs_again_goes_on_in_its_log(make_house):
    house = make_house(max_attempts=2)
    house.start()
    run(house)
    house.worker().prints("first\n")
    house.worker().dies(-9)
    house.until(lambda: house.template.workers["cpu0"].generation == 2)
    house.worker().ready()
    assert isinstance(house.worker().heard(), wire.Run)
    house.worker().prints("second\n")
    house.worker().say(done())
    house.ended()
    assert house.engine.logs.read("a").text == b"first\nsecond\n"


# --- webhooks --------------------------------------------------------------------------------------------------------------


def test_a_webhook_is_owed_from_the_moment_of_the_end_and_says_what_status_says(house):
    told = []
    house.engine.on_webhook = lambda: told.append(house.engine.job("a").status)
    run(house, extras=b'{"webhook":"http://x/"}')
    house.worker().say(done())
    job = house.ended()
    assert told == [JobStatus.COMPLETED]
    (webhook,) = house.engine.outbox.waiting("http://x", 9)
    assert (webhook.job, webhook.url, webhook.tries) == ("a", "http://x/", 0)
    assert house.engine.outbox.body(webhook.id) == status_body(job)
    house.wait(house.engine.write(DropWebhook(webhook.id)))
    assert house.engine.outbox.count() == 0


def test_a_job_that_is_run_again_owes_a_second_webhook(house):
    run(house, extras=b'{"webhook":"http://x/"}')
    house.worker().say(done(status="FAILED", output=None, error="why"))
    house.ended()
    house.wait(house.engine.retry("a"))
    house.worker().heard()
    house.worker().say(done())
    house.ended()
    ids = [webhook.id for webhook in house.engine.outbox.waiting("http://x", 9)]
    assert len(set(ids)) == 2
    assert [b'"FAILED"' in house.engine.outbox.body(webhook_id) for webhook_id in ids] == [True, False]


# --- chunks that stay ------------------------------------------------------------------------------------------------------


def test_chunks_that_were_only_looked_at_stay_for_others_but_are_not_shown_twice_by_a_second_run(house):
    run(house)
    house.worker().say(wire.Chunk("a", 0, b'"x"'), wire.Chunk("a", 1, b'"y"'))
    house.until(lambda: house.engine.job("a").chunks == 2)
    seen = house.wait(house.engine.streams.read("a", 1, 9))
    assert (seen.first, seen.values, seen.end) == (1, [b'"y"'], 2)
    assert house.wait(house.engine.streams.take("a", 9)).chunks.values == [b'"x"', b'"y"']
    house.worker().dies(-9)
    job = house.ended()
    assert job.status is JobStatus.FAILED


def test_a_look_at_chunks_keeps_a_killed_supervisor_from_running_the_job_again(make_house):
    first = make_house()
    first.start()
    run(first)
    first.worker().say(wire.Chunk("a", 0, b'"x"'))
    first.until(lambda: first.engine.job("a").chunks == 1)
    assert first.wait(first.engine.streams.read("a", 0, 9)).values == [b'"x"']
    first.engine.close()
    first.store.close()
    second = make_house()
    second.start()
    assert second.ended().status is JobStatus.FAILED


# --- pauses ----------------------------------------------------------------------------------------------------------------


def test_a_paused_slot_ends_its_worker_and_takes_no_job_until_it_is_resumed(house):
    house.wait(house.engine.slots.pause("cpu0"))
    assert isinstance(house.worker().heard(), wire.Exit)
    house.worker().dies(0)
    house.until(lambda: house.pool.slots["cpu0"].state.value == "parked")
    assert house.pool.slots["cpu0"].cause == PausedByHand()
    house.submit()
    assert statuses(house, "a") == ["IN_QUEUE"]
    house.wait(house.engine.slots.resume("cpu0"))
    house.until(lambda: house.template.workers["cpu0"].generation == 2)
    house.worker().ready()
    assert isinstance(house.worker().heard(), wire.Run)
    assert house.pool.slots["cpu0"].restarts == 0


@pytest.mark.parametrize("ends", ["well", "by a crash"])
def test_a_pause_waits_for_the_running_job(house, ends):
    run(house)
    house.wait(house.engine.slots.pause("cpu0"))
    house.submit("b")
    assert statuses(house, "a", "b") == ["IN_PROGRESS", "IN_QUEUE"]
    if ends == "well":
        house.worker().say(done())
        assert isinstance(house.worker().heard(), wire.Exit)
        house.worker().dies(0)
    else:
        house.worker().dies(-9)
    house.ended()
    house.until(lambda: house.pool.slots["cpu0"].state.value == "parked")
    assert statuses(house, "b") == ["IN_QUEUE"]


def test_a_pause_that_is_taken_back_in_time_changes_nothing(house):
    run(house)
    house.wait(house.engine.slots.pause("cpu0"))
    house.wait(house.engine.slots.resume("cpu0"))
    house.worker().say(done())
    house.ended()
    house.submit("b")
    assert house.worker().heard().job == "b"


def test_a_slot_that_is_not_paused_cannot_be_resumed(house):
    with pytest.raises(RequestError, match="not paused") as caught:
        house.wait(house.engine.slots.resume("cpu0"))
    assert caught.value.status == 409


# --- jobs that nobody waits for any more -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "status"), [("coroutine", "CANCELLED"), ("function", "IN_PROGRESS")])
def test_an_abandoned_job_is_cancelled_unless_its_worker_would_go_with_it(make_house, kind, status):
    house = make_house()
    house.start(kind=kind)
    run(house, "runs")
    house.submit("waits")
    for job_id in ("runs", "waits", "unknown"):
        house.engine.abandon(job_id)
    house.settle()
    assert statuses(house, "runs", "waits") == [status, "CANCELLED"]
    assert house.worker().signals == []
    house.worker().say(done("runs"))
    house.ended("runs")
    house.engine.abandon("runs")
    house.settle()
    assert statuses(house, "runs") == [{"IN_PROGRESS": "COMPLETED"}.get(status, status)]
