"""Jobs as futures."""

import asyncio
import concurrent.futures
import logging
import pickle
import queue
import signal
import threading

import pytest

from supervisor.errors import JobCancelled, JobError, JobFailed, JobTimedOut, RequestError, StoreError, WorkerDied
from supervisor.job import JobStatus
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert
from tests.embed.conftest import until

SOON = 20.0


@pytest.mark.parametrize("value", [{"n": 1}, [1, "two", None], "text", 0, False, None, {"ü": "你好"}, 1.5])
def test_the_output_is_what_the_handler_returned(sv, value):
    job = sv.submit(value)
    assert job.result(timeout=SOON) == value
    assert job.done()
    assert not job.running()
    assert not job.cancelled()
    assert job.exception() is None
    assert job.status is JobStatus.COMPLETED
    assert job.result() is job.result(), "decoded once"


def test_a_handler_that_raises(sv):
    job = sv.submit({"raise": "boom"})
    with pytest.raises(JobFailed, match="ValueError: boom") as caught:
        job.result(timeout=SOON)
    error = caught.value
    assert not isinstance(error, WorkerDied)
    assert (error.id, error.status) == (job.id, "FAILED")
    assert '"error_type"' in error.error, "the whole of it, as /status has it"
    assert 'raise ValueError(given["raise"])' in str(error.__cause__), "the handler's own traceback"
    assert job.exception() is error


def test_an_error_that_is_returned(sv):
    with pytest.raises(JobFailed) as caught:
        sv.submit({"error": "no such prompt"}).result(timeout=SOON)
    assert caught.value.error == "no such prompt"
    assert "no such prompt" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "how"), [({"signal": signal.SIGKILL}, "was killed by SIGKILL"), ({"exit": 3}, "exited with code 3")]
)
def test_a_worker_that_dies(sv, given, how):
    with pytest.raises(WorkerDied, match=how) as caught:
        sv.submit(given).result(timeout=SOON)
    assert isinstance(caught.value, JobFailed)
    assert ("last words" in caught.value.error) == ("signal" in given)
    assert sv.submit(1).result(timeout=SOON) == 1, "another worker came"


@pytest.mark.parametrize(
    "words", ["worker cpu0 (pid 1) was killed by SIGKILL", "the supervisor stopped while the job ran"]
)
def test_a_handlers_own_words_are_never_taken_for_ours(sv, words):
    with pytest.raises(JobFailed) as caught:
        sv.submit({"error": words}).result(timeout=SOON)
    assert type(caught.value) is JobFailed
    assert caught.value.error == words


def test_a_worker_that_died_is_told_apart_after_a_restart_too(make, tmp_path):
    store, mine = tmp_path / "kept.db", "worker cpu0 (pid 1) was killed by SIGKILL"
    with make(store=store) as sv, pytest.raises(WorkerDied, match="last words") as before:
        sv.submit({"signal": signal.SIGKILL}, id="killed").result(timeout=SOON)
    with make(store=store) as sv, pytest.raises(JobFailed):
        sv.submit({"error": mine}, id="mine").result(timeout=SOON)
    with make(store=store) as sv:
        with pytest.raises(WorkerDied) as killed:
            sv.submit(None, id="killed").result(timeout=SOON)
        assert killed.value.error == before.value.error
        with pytest.raises(JobFailed, match="was killed") as failed:
            sv.submit(None, id="mine").result(timeout=SOON)
        assert type(failed.value) is JobFailed


def test_what_the_program_says_of_a_job_is_its_error(make):
    with make(max_result="1KiB") as sv:
        with pytest.raises(JobFailed, match="the result is 2002 bytes long, more than --max-result allows") as caught:
            sv.submit("x" * 2000).result(timeout=SOON)
        assert type(caught.value) is JobFailed
        with pytest.raises(JobTimedOut, match=r"longer than its execution time-out of 0\.1 s"):
            sv.submit({"hold": "/nowhere"}, policy={"executionTimeout": 100}).result(timeout=SOON)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(WorkerDied("a", "FAILED", "worker cpu0 died", "job a is FAILED")))
    assert (type(error), error.id, error.status, error.error) == (WorkerDied, "a", "FAILED", "worker cpu0 died")
    assert str(error) == "job a is FAILED"
    assert issubclass(JobTimedOut, JobError)


def test_a_result_that_takes_too_long(sv, held):
    job = sv.submit(held.input)
    with pytest.raises(TimeoutError, match=job.id):
        job.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        job.exception(timeout=0)
    held.release()
    assert job.result(timeout=SOON) == held.input


def test_progress_and_state_while_it_runs(sv, held):
    job, waiting = sv.submit(held.input), sv.submit(2)
    pid = held.runs(job)
    assert pid == sv.workers()[0].pid
    assert job.running()
    assert job.status is JobStatus.IN_PROGRESS
    assert (waiting.running(), waiting.status, waiting.progress()) == (False, JobStatus.IN_QUEUE, None)
    held.release()
    assert waiting.result(timeout=SOON) == 2
    assert job.progress() is None, "the result has taken its place"


def test_cancel_a_queued_job(sv, held):
    running, queued = sv.submit(held.input), sv.submit(2)
    assert queued.cancel()
    assert queued.cancelled()
    assert queued.cancel(), "as any future's"
    with pytest.raises(JobCancelled) as caught:
        queued.result(timeout=SOON)
    assert caught.value.status == "CANCELLED"
    held.release()
    assert running.result(timeout=SOON) == held.input
    assert not running.cancel()
    assert not running.cancelled()


def test_cancel_a_running_job(sv, held):
    job = sv.submit(held.input)
    before = held.runs(job)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.exception()
    assert sv.submit(1).result(timeout=SOON) == 1
    assert sv.workers()[0].pid != before


def test_callbacks(sv, held, caplog):
    job, told, done = sv.submit(held.input), [], threading.Event()
    job.add_done_callback(lambda ended: told.append((ended, threading.current_thread().name)))
    job.add_done_callback(lambda ended: 1 / 0)
    job.add_done_callback(lambda ended: done.set())
    held.release()
    assert done.wait(SOON)
    assert told == [(job, "supervise house_handler")]
    assert "ZeroDivisionError" in caplog.text
    assert sv.submit(1).result(timeout=SOON) == 1


def test_a_callback_may_submit_and_cancel_but_not_wait(sv, held):
    errors, more, done = [], [], threading.Event()

    def callback(_):
        more.append(sv.submit(2))
        more[0].cancel()
        for wait in (lambda: next(more[0].stream()), sv.close):
            with pytest.raises(RuntimeError, match="callback") as caught:
                wait()
            errors.append(caught.value)
        assert len(sv.workers()) == 1
        done.set()

    sv.submit(held.input).add_done_callback(callback)
    held.release()  # not before: of a job that has ended it would be called here
    assert done.wait(SOON)
    assert len(errors) == 2
    with pytest.raises(JobCancelled):
        more[0].result(timeout=SOON)


def test_a_callback_that_exits_ends_nothing(sv, held):
    def callback(_):
        raise SystemExit(3)

    job = sv.submit(held.input)
    job.add_done_callback(callback)
    held.release()
    assert job.result(timeout=SOON) == held.input
    assert sv.submit(2).result(timeout=SOON) == 2


def test_it_is_a_future_of_concurrent_futures(sv, held):
    jobs = [sv.submit(number) for number in range(5)]
    assert sorted(job.result() for job in concurrent.futures.as_completed(jobs, timeout=SOON)) == [0, 1, 2, 3, 4]
    running, queued = sv.submit(held.input), sv.submit(1)
    queued.cancel()
    done, pending = concurrent.futures.wait([running, queued], SOON, concurrent.futures.FIRST_COMPLETED)
    assert (done, pending) == ({queued}, {running})
    held.release()


def test_asyncio_can_await_it(sv, held):
    async def main():
        both = await asyncio.gather(*(asyncio.wrap_future(sv.submit(number)) for number in (1, 2)))
        with pytest.raises(JobFailed, match="boom"):
            await asyncio.wrap_future(sv.submit({"raise": "boom"}))
        job = sv.submit(held.input)
        waiting = asyncio.wrap_future(job)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return both, job

    both, job = asyncio.run(main())
    assert both == [1, 2]
    assert job.cancelled(), "a task that is cancelled cancels its job"


def test_the_same_id_is_the_same_job(sv, held):
    jobs = [sv.submit(held.input, id="a"), sv.submit("other", id="a")]
    held.release()
    assert [job.result(timeout=SOON) for job in jobs] == [held.input] * 2
    assert sv.submit("third", id="a").result(timeout=SOON) == held.input, "also when it has ended"


def test_options_reach_the_handler(make):
    options = {"webhook": "http://127.0.0.1:1/", "policy": {"lowPriority": True}, "s3Config": {"accessId": "x"}}
    with make(webhook_retries=0) as sv:  # nobody listens there
        assert sv.submit({"seen": 1}, **options).result(timeout=SOON) == options


@pytest.mark.parametrize("options", [{"webhook": "ftp://x"}, {"id": "not an id"}, {"policy": {"ttl": -1}}])
def test_options_are_checked_at_once(sv, options):
    with pytest.raises(RequestError, match=next(iter(options))):
        sv.submit(1, **options)


def test_what_is_not_json_is_refused_at_once(sv):
    with pytest.raises(TypeError):
        sv.submit({"image": object()})


def test_a_full_queue(make, held):
    with make(max_queue=1) as sv:
        running = sv.submit(held.input)
        held.runs(running)
        waiting, refused = sv.submit(1), sv.submit(2)
        with pytest.raises(RequestError) as caught:
            refused.result(timeout=SOON)
        assert caught.value.status == 429
        held.release()
        assert waiting.result(timeout=SOON) == 1


def test_a_job_that_the_disk_refuses_is_told_so_and_later_ones_run(make, monkeypatch):
    commit, refusals = Store.commit, iter([StoreError("the disk is full")])

    def refuse_once(store, batch, done):
        error = next(refusals, None) if any(isinstance(write, Insert) for write in batch) else None
        if error is None:
            commit(store, batch, done)
        else:
            done(error)

    monkeypatch.setattr(Store, "commit", refuse_once)
    with make() as sv:
        with pytest.raises(RequestError, match="disk is full") as caught:
            sv.submit(1).result(timeout=SOON)
        assert caught.value.status == 503
        until(lambda: sv.submit(2).exception(timeout=SOON) is None)  # when the disk is tried again


def test_a_callback_hears_of_a_slot_that_is_not_there(sv):
    heard = queue.SimpleQueue()

    def ask(job):
        try:
            sv.refresh("nope")
        except RequestError as error:
            heard.put(str(error))

    sv.submit(1).add_done_callback(ask)
    assert heard.get(timeout=SOON).startswith("no slot 'nope'")


def test_what_is_refused_in_a_callback_stops_nobody(make):
    def ask(job):
        for _ in range(2):  # the second time there is no worker to refresh
            sv.refresh("cpu0")

    with make() as sv:
        sv.submit(1).add_done_callback(ask)
        until(lambda: sv.workers()[0].refreshes == 1)
        assert sv.submit(2).result(timeout=SOON) == 2


def test_a_cancel_in_a_callback_that_the_disk_refuses_stops_nobody(make, held, monkeypatch):
    commit, refusals = Store.commit, iter([StoreError("the disk is full")])

    def refuse_once(store, batch, done):
        cancels = any(isinstance(write, End) and write.outcome.status is JobStatus.CANCELLED for write in batch)
        error = next(refusals, None) if cancels else None
        if error is None:
            commit(store, batch, done)
        else:
            done(error)

    monkeypatch.setattr(Store, "commit", refuse_once)
    with make() as sv:
        first, running = sv.submit(1), sv.submit(held.input)
        waiting = sv.submit(2)
        first.add_done_callback(lambda _: waiting.cancel())
        held.release()
        assert waiting.result(timeout=SOON) == 2
        assert running.result(timeout=SOON) == held.input


@pytest.mark.parametrize("known", [False, True])
def test_a_refusal_is_for_the_one_who_asked(make, held, monkeypatch, known):
    """Another who waits for the job of the same id has it still."""
    commit, refusing = Store.commit, threading.Event()

    def refuse(store, batch, done):
        if refusing.is_set() and any(isinstance(write, Insert) for write in batch):
            refusing.clear()
            done(StoreError("the disk is full"))
        else:
            commit(store, batch, done)

    monkeypatch.setattr(Store, "commit", refuse)
    with make() as sv:
        first = sv.submit(held.input, id="same")
        held.runs(first)
        refusing.set()
        futures = [sv.submit(held.input, id="same" if known else "another"), sv.submit(1)]
        until(futures[1].done)
        held.release()
        assert first.result(timeout=SOON) == held.input


def test_chunks_come_as_a_stream(stream_sv):
    job = stream_sv.submit({"count": 3})
    assert list(job.stream()) == [{"number": number} for number in range(3)]
    assert job.result(timeout=SOON) == []
    assert list(job.stream()) == [], "each once"


def test_a_stream_that_fails_half_way(stream_sv):
    chunks = stream_sv.submit({"count": 2, "raise": "boom"}).stream()
    assert [next(chunks), next(chunks)] == [{"number": 0}, {"number": 1}]
    with pytest.raises(JobFailed, match="boom"):
        next(chunks)


def test_what_workers_print_is_logged(sv, caplog):
    with caplog.at_level(logging.INFO, "supervisor"), pytest.raises(WorkerDied):
        sv.submit({"signal": signal.SIGKILL}).result(timeout=SOON)
    lines = [record for record in caplog.records if record.name == "supervisor.output"]
    assert [(line.getMessage(), line.slot) for line in lines] == [("cpu0: last words", "cpu0")]
