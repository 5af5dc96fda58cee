"""What every store does, with a file or without one."""

from __future__ import annotations

import msgspec
import pytest

from supervisor.errors import StoreError, TransitionError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.store.opening import MEMORY
from supervisor.store.outbox import Webhook
from supervisor.store.store import Store
from supervisor.store.writes import (
    LARGE_INPUT,
    AddChunk,
    AddLog,
    AddWebhook,
    DropWebhook,
    End,
    Insert,
    PutOffWebhook,
    Requeue,
    Retry,
    ShowChunks,
    StartJob,
    TakeChunks,
)
from tests.store.numbered import numbered

COMPLETED = Outcome(JobStatus.COMPLETED, b"[1]")


def test_the_whole_life_of_a_job(store, commit):
    request = JobRequest(
        "a", b'{"n": 1}', extras=b'{"webhook": "http://x"}', s3_config=b'{"key": 1}', low_priority=True
    )
    queued = Job(1, "a", JobStatus.IN_QUEUE, request.input, 10, request.extras, has_s3_config=True, low_priority=True)
    started = queued.replace(status=JobStatus.IN_PROGRESS, attempts=1, started_ms=20, worker_id="gpu0-1")
    ended = started.replace(status=JobStatus.FAILED, ended_ms=30, output=b"[1]", error="broke: é")

    commit(store, Insert(1, request, 10))
    assert store.get("a") == numbered(store, 1) == queued
    commit(store, StartJob(1, 20, "gpu0-1"))
    assert store.get("a") == numbered(store, 1) == started
    commit(store, End(1, Outcome(JobStatus.FAILED, b"[1]", "broke: é"), 30))
    assert store.get("a") == numbered(store, 1) == ended


def test_types_come_back_exactly(store, commit):
    commit(store, Insert(1, JobRequest("a", b"null"), 10))
    job = store.get("a")
    assert msgspec.convert(msgspec.to_builtins(job), Job) == job  # strict: 1 is not taken for True
    assert isinstance(job.status, JobStatus)
    assert job.has_s3_config is False
    assert job.low_priority is False


def test_a_job_for_an_idle_worker_starts_as_it_is_inserted(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, started_ms=11, worker_id="cpu0-3"))
    assert store.get("a") == Job(1, "a", JobStatus.IN_PROGRESS, b"1", 10, attempts=1, started_ms=11, worker_id="cpu0-3")
    assert store.queued(False, 0, 10) == []


def test_unknown_jobs(store):
    assert store.get("nobody") is None
    assert numbered(store, 7) is None
    assert store.chunks(7) == []


@pytest.mark.parametrize("size", [0, LARGE_INPUT - 1, LARGE_INPUT, 1_000_000])
def test_values_of_any_size_come_back_whole(store, commit, size):
    value = b'"' + b"x" * size + b'"'
    commit(store, Insert(1, JobRequest("a", value), 10))
    assert [job.input for job in store.queued(False, 0, 1)] == [value if len(value) < LARGE_INPUT else b""]
    commit(store, StartJob(1, 11, "w"), AddChunk(1, 1, 0, value), End(1, Outcome(JobStatus.FAILED, value, "e"), 12))
    job = store.get("a")
    assert (job.input, job.output) == (value, value)
    assert store.chunks(1) == [(0, value)]
    assert store.facts("a") == job.replace(input=b"", output=None)


def test_the_queue_is_oldest_first_per_priority(store, commit):
    for seq in (3, 1, 2, 5, 4):
        commit(store, Insert(seq, JobRequest(f"j{seq}", b"1", low_priority=seq in (2, 4)), 10))
    commit(store, StartJob(3, 11, "w"))
    assert [job.seq for job in store.queued(False, 0, 10)] == [1, 5]
    assert [job.seq for job in store.queued(True, 0, 10)] == [2, 4]
    assert [job.seq for job in store.queued(False, 1, 10)] == [5]
    assert [job.seq for job in store.queued(False, 0, 1)] == [1]
    assert [job.seq for job in store.running()] == [3]
    commit(store, Requeue(3, charged=True))
    assert [job.seq for job in store.queued(False, 0, 10)] == [1, 3, 5]
    assert store.running() == []


def test_lists_to_look_at_leave_out_the_payload(store, bring):
    bring(store, 1, JobStatus.IN_PROGRESS)
    for seq, ended_ms in ((2, 30), (3, 50), (4, 40), (5, 40)):
        bring(store, seq, JobStatus.FAILED, ended_ms=ended_ms)
    assert [(job.seq, job.input) for job in store.running()] == [(1, b"")]
    ended = store.newest_ended(3)
    assert [job.seq for job in ended] == [3, 5, 4]
    assert [(job.input, job.output, job.error) for job in ended] == [(b"", None, "why")] * 3


@pytest.mark.parametrize(("charged", "attempts"), [(True, 1), (False, 0)])
def test_a_requeued_job_waits_as_it_did_before(store, commit, charged, attempts):
    commit(store, Insert(1, JobRequest("a", b"1"), 10))
    queued = store.get("a")
    commit(store, StartJob(1, 11, "w"), AddChunk(1, 1, 0, b"0"), AddChunk(1, 1, 1, b"1"), TakeChunks(1, 1))
    assert (store.get("a").chunks, store.get("a").chunks_taken) == (2, 1)
    commit(store, Requeue(1, charged=charged))
    assert store.get("a") == queued.replace(attempts=attempts, retries=1)
    assert store.chunks(1) == []


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.TIMED_OUT])
def test_a_retried_job_is_as_new(store, commit, status):
    commit(store, Insert(1, JobRequest("a", b"1"), 10))
    queued = store.get("a")
    commit(store, StartJob(1, 11, "w"), Requeue(1, charged=True), StartJob(1, 12, "w"), AddChunk(1, 2, 0, b"0"))
    commit(store, TakeChunks(1, 1), End(1, Outcome(status, b"{}", "e"), 13), Retry(1, 50))
    assert store.get("a") == queued.replace(retries=2, created_ms=50)
    assert store.newest_ended(1) == []


def test_chunks_belong_to_their_attempt_and_keep_their_order(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10), Insert(2, JobRequest("b", b"1"), 10))
    commit(store, StartJob(1, 11, "w"), StartJob(2, 11, "w"))
    commit(store, *(AddChunk(seq, 1, index, b"%d" % index) for index in range(300) for seq in (1, 2)))
    assert store.chunks(1) == [(index, b"%d" % index) for index in range(300)]
    assert [index for index, _ in store.chunks(2, 297)] == [297, 298, 299]

    commit(store, Requeue(1, charged=True), StartJob(1, 12, "w"))
    with pytest.raises(TransitionError):
        commit(store, AddChunk(1, 1, 0, b'"of the dead attempt"'))
    commit(store, AddChunk(1, 2, 0, b'"new"'))
    assert store.chunks(1) == [(0, b'"new"')]
    assert store.get("a").chunks == 1
    assert store.get("b").chunks == 300

    commit(store, End(1, Outcome(JobStatus.FAILED, error="e"), 13))
    assert store.chunks(1) == [(0, b'"new"')]


@pytest.mark.parametrize("index", [1, 3, -1])
def test_chunks_come_without_gap_or_repeat(store, commit, index):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, 11, "w"), AddChunk(1, 1, 0, b"0"), AddChunk(1, 1, 1, b"1"))
    with pytest.raises(TransitionError):
        commit(store, AddChunk(1, 1, index, b"x"))
    assert store.chunks(1) == [(0, b"0"), (1, b"1")]


def test_chunks_taken_can_be_given_back_but_not_exceed_what_there_is(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, 11, "w"), AddChunk(1, 1, 0, b"0"), End(1, COMPLETED, 12))
    for taken in (1, 0, 1):
        commit(store, TakeChunks(1, taken))
        assert store.get("a").chunks_taken == taken
    for write in (TakeChunks(1, 2), TakeChunks(1, -1), TakeChunks(2, 0)):
        with pytest.raises(TransitionError):
            commit(store, write)
    assert store.get("a").chunks_taken == 1


def test_chunks_are_read_in_pieces(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, 11, "w"), *(AddChunk(1, 1, at, b"%d" % at) for at in range(5)))
    assert store.chunks(1, 1, 2) == [(1, b"1"), (2, b"2")]
    assert store.chunks(1, 4, 2) == [(4, b"4")]
    assert store.chunks(1, 0, 0) == []
    assert store.chunks(1, 1, enough=2) == [(1, b"1"), (2, b"2")]
    assert store.chunks(1, 1, 1, enough=2) == [(1, b"1")]
    assert store.chunks(1, 3, enough=99) == [(3, b"3"), (4, b"4")]
    assert (len(store.chunks(1, retries=0)), store.chunks(1, retries=1)) == (5, [])


@pytest.mark.parametrize("write", [ShowChunks(1), TakeChunks(1, 1)])
def test_who_was_shown_a_chunk_is_known_until_the_job_is_queued_again(store, commit, write):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, 11, "w"), AddChunk(1, 1, 0, b"0"))
    assert store.get("a").streamed is False
    commit(store, write)
    assert store.get("a").streamed is True
    assert store.chunks(1) == [(0, b"0")]
    commit(store, Requeue(1, charged=False))
    assert store.get("a").streamed is False
    commit(store, StartJob(1, 12, "w"), ShowChunks(1), End(1, Outcome(JobStatus.FAILED), 13), Retry(1, 50))
    assert store.get("a").streamed is False


def test_to_show_chunks_of_a_job_that_is_gone_is_no_error(store, commit):
    commit(store, ShowChunks(9))


def test_a_job_keeps_its_own_times(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, timeout_ms=5_000, expires_ms=60_010))
    assert (store.get("a").timeout_ms, store.get("a").expires_ms) == (5_000, 60_010)
    commit(store, StartJob(1, 11, "w"), End(1, Outcome(JobStatus.TIMED_OUT), 12), Retry(1, 50, 60_050))
    job = store.get("a")
    assert (job.timeout_ms, job.created_ms, job.expires_ms) == (5_000, 50, 60_050)
    commit(store, StartJob(1, 51, "w"), End(1, Outcome(JobStatus.FAILED), 52), Retry(1, 70))
    assert store.get("a").expires_ms is None
    commit(store, Insert(2, JobRequest("b", b"1"), 10, 11, "w", timeout_ms=7, expires_ms=9))
    assert (store.get("b").timeout_ms, store.get("b").expires_ms) == (7, 9)


def test_who_times_out_next(store, commit):
    assert (store.next_expiry(), store.expired(10**15, 10)) == (None, [])
    for seq, expires_ms in enumerate((300, None, 100, 200, 400), 1):
        commit(store, Insert(seq, JobRequest(f"j{seq}", b"1"), 10, expires_ms=expires_ms))
    commit(store, StartJob(4, 11, "w"))
    assert store.next_expiry() == 100
    assert store.expired(99, 10) == []
    assert store.expired(300, 10) == ["j3", "j4", "j1"]  # queued or running
    assert store.expired(300, 2) == ["j3", "j4"]
    commit(store, End(3, Outcome(JobStatus.TIMED_OUT), 101), End(4, COMPLETED, 102))
    assert store.expired(10**15, 10) == ["j1", "j5"]
    assert store.next_expiry() == 300


def test_a_page_of_jobs_is_newest_first_without_payload(store, bring):
    for seq, status in enumerate((*JobStatus, JobStatus.FAILED), 1):
        bring(store, seq, status)
    assert [job.seq for job in store.page(10**9, 0, None, 100)] == [7, 6, 5, 4, 3, 2, 1]
    assert [job.seq for job in store.page(6, 3, None, 100)] == [5, 4, 3]
    assert [job.seq for job in store.page(6, 0, None, 2)] == [5, 4]
    failed = store.page(10**9, 0, JobStatus.FAILED, 100)
    assert [(job.seq, job.input, job.output, job.error) for job in failed] == [
        (7, b"", None, "why"),
        (4, b"", None, "why"),
    ]


def test_a_log_is_read_from_the_piece_that_holds_a_byte(store, commit):
    assert (store.log(1, 0), store.log_end(1)) == ([], 0)
    pieces = [(0, b"one\n"), (4, "zwölf\n".encode()), (11, b"\xff\0")]
    commit(store, Insert(1, JobRequest("a", b"1"), 10), *(AddLog(1, at, text) for at, text in pieces))
    commit(store, Insert(2, JobRequest("b", b"1"), 10), AddLog(2, 0, b"other"))
    assert store.log_end(1) == 13  # bytes, not letters
    for start, first in ((0, 0), (3, 0), (4, 1), (10, 1), (11, 2), (12, 2), (99, 2)):
        assert store.log(1, start) == pieces[first:]
    assert store.log(1, 5, 1) == pieces[1:2]
    with pytest.raises(TransitionError):
        commit(store, AddLog(1, 4, b"again"))


def test_a_log_outlives_attempts_but_not_a_retry(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10, 11, "w"), AddLog(1, 0, b"first"), Requeue(1, charged=True))
    commit(store, StartJob(1, 12, "w"), AddLog(1, 5, b"second"), End(1, Outcome(JobStatus.FAILED), 13))
    assert store.log(1, 0) == [(0, b"first"), (5, b"second")]
    commit(store, Retry(1, 50))
    assert (store.log(1, 0), store.log_end(1)) == ([], 0)


def test_webhooks_wait_in_the_order_of_their_time(store, commit):
    outbox = store.outbox
    assert (outbox.receivers(), outbox.waiting("http://h", 10), outbox.body("a"), outbox.count()) == ([], [], None, 0)
    for name, due_ms in (("a", 300), ("b", 100), ("c", 200)):
        commit(store, AddWebhook(name, "job", f"http://u:p@H/{name}?é", due_ms, b"{}"))
    assert outbox.waiting("http://h", 2) == [
        Webhook("b", "job", "http://u:p@H/b?é", "http://h", 0, 100, 2),
        Webhook("c", "job", "http://u:p@H/c?é", "http://h", 0, 200, 2),
    ]
    commit(store, PutOffWebhook("b", 250), PutOffWebhook("b", 350), DropWebhook("c"))
    waiting = outbox.waiting("http://h", 10)
    assert [(hook.id, hook.tries, hook.due_ms) for hook in waiting] == [("a", 0, 300), ("b", 2, 350)]
    commit(store, DropWebhook("c"), PutOffWebhook("c", 1))  # gone already: no error
    with pytest.raises(TransitionError):
        commit(store, AddWebhook("a", "job", "http://a/", 1, b"{}"))
    assert (outbox.count(), outbox.body("a"), outbox.body("c")) == (2, b"{}", None)


def test_each_receiver_has_an_order_of_its_own(store, commit):
    outbox = store.outbox
    for number, receiver in enumerate(("http://b:1", "http://a", "https://a", "http://b:1", "http://b:2")):
        commit(store, AddWebhook(str(number), "job", f"{receiver}/{number}", 100 - number, b"{}"))
    assert outbox.receivers() == [("http://b:2", 96), ("http://b:1", 97), ("https://a", 98), ("http://a", 99)]
    assert [hook.id for hook in outbox.waiting("http://b:1", 9)] == ["3", "0"]
    commit(store, *map(DropWebhook, "0123"))
    assert outbox.receivers() == [("http://b:2", 96)]


def test_a_batch_is_all_or_nothing_and_in_order(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10), StartJob(1, 11, "w"), End(1, COMPLETED, 12))
    before, counts = store.get("a"), store.counts()
    with pytest.raises(TransitionError, match="number 1 cannot start"):
        commit(store, Insert(2, JobRequest("b", b"2" * LARGE_INPUT), 10), StartJob(2, 11, "w"), StartJob(1, 12, "w"))
    assert store.get("b") is None
    assert store.get("a") == before
    assert store.counts() == counts
    commit(store, Insert(2, JobRequest("b", b"2"), 10))  # nothing of the refused batch is in the way


def test_an_empty_batch_is_done_at_once(store, commit):
    commit(store)


@pytest.mark.parametrize("again", [Insert(2, JobRequest("a", b"2"), 10), Insert(1, JobRequest("b", b"2"), 10)])
def test_an_id_and_a_number_are_given_once(store, commit, again):
    commit(store, Insert(1, JobRequest("a", b"1"), 10))
    with pytest.raises(TransitionError, match="UNIQUE"):
        commit(store, again)
    assert store.get("a").input == b"1"
    assert store.get("b") is None


def test_what_a_writer_raises_leaves_nothing_behind(store, commit):
    with pytest.raises(OverflowError):
        commit(store, Insert(1, JobRequest("a", b"1"), 10), Insert(2**64, JobRequest("b", b"1"), 10))
    assert store.get("a") is None
    commit(store, Insert(1, JobRequest("a", b"1"), 10))


def test_counts(store, commit, bring):
    for seq, status in enumerate(JobStatus, 1):
        bring(store, seq, status)
    assert store.counts().jobs == dict.fromkeys(JobStatus, 1)
    commit(store, Retry(4, 50), Requeue(2, charged=False))
    counts = store.counts()
    assert counts.retried == 2
    assert counts.jobs[JobStatus.IN_QUEUE] == 3
    assert counts.jobs[JobStatus.IN_PROGRESS] == counts.jobs[JobStatus.FAILED] == 0


def test_next_seq_follows_the_highest(store, commit):
    assert store.next_seq == 1
    commit(store, Insert(1, JobRequest("a", b"1"), 10), Insert(40, JobRequest("b", b"1"), 10))
    assert store.next_seq == 41


def test_two_stores_without_a_file_are_two(commit):
    with Store.open(MEMORY) as one, Store.open(MEMORY) as other:
        commit(one, Insert(1, JobRequest("a", b"1"), 10))
        assert other.get("a") is None


def test_a_closed_store_says_so_and_closes_again(store, commit):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get("a")
    with pytest.raises(StoreError, match="closed"):
        commit(store, Insert(1, JobRequest("a", b"1"), 10))
