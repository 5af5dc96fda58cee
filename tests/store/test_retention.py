"""Old ended jobs are forgotten in small pieces, with all that belongs to them; their numbers are not given again."""

from __future__ import annotations

import pytest

from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.retention import PIECE_BYTES
from supervisor.store.store import Store
from supervisor.store.writes import (
    LARGE_INPUT,
    AddChunk,
    AddLog,
    AddWebhook,
    End,
    Insert,
    Requeue,
    StartJob,
    TakeChunks,
)
from tests.store.numbered import numbered


def test_only_what_ended_before_is_deleted_oldest_end_first(store, bring, delete):
    for seq, ended_ms in ((1, 300), (2, 100), (3, 200), (4, 400)):
        bring(store, seq, JobStatus.FAILED, ended_ms=ended_ms)
    bring(store, 5, JobStatus.IN_QUEUE)
    bring(store, 6, JobStatus.IN_PROGRESS)
    assert delete(store, 400, 2) == 2
    assert [seq for seq in range(1, 7) if numbered(store, seq)] == [1, 4, 5, 6]
    assert delete(store, 400, 2) == 1
    assert delete(store, 400, 2) == 0
    assert [seq for seq in range(1, 7) if numbered(store, seq)] == [4, 5, 6]
    assert delete(store, 10**15, 100) == 1
    assert store.get("job-4") is None


def test_nothing_that_belonged_to_a_deleted_job_stays(store, commit, sqlite_of, delete):
    commit(store, Insert(1, JobRequest("a", b"1" * LARGE_INPUT), 1), StartJob(1, 2, "w"))
    commit(store, AddChunk(1, 1, 0, b"0"), AddChunk(1, 1, 1, b"1"), AddLog(1, 0, b"line"), AddLog(1, 4, b"more"))
    commit(store, TakeChunks(1, 2), End(1, Outcome(JobStatus.COMPLETED, b"[]"), 3))
    commit(store, Insert(2, JobRequest("b", b"2" * LARGE_INPUT), 1))

    def numbers() -> dict[str, list[int]]:
        tables = ("jobs", "inputs", "chunks", "logs")
        rows = {table: sqlite_of(store).execute(f"SELECT DISTINCT seq FROM {table} ORDER BY 1") for table in tables}
        return {table: [seq for (seq,) in found] for table, found in rows.items()}

    assert numbers() == {"jobs": [1, 2], "inputs": [1, 2], "chunks": [1], "logs": [1]}
    assert delete(store, 4, 10) == 1
    assert numbers() == {"jobs": [2], "inputs": [2], "chunks": [], "logs": []}
    assert store.get("b").input == b"2" * LARGE_INPUT


def test_a_webhook_outlives_its_job(store, commit, bring, delete):
    job_id = bring(store, 1, JobStatus.COMPLETED)
    commit(store, AddWebhook("hook", job_id, "http://x/", 5, b"{}"))
    assert delete(store, 10**9, 1) == 1
    assert [hook.job for hook in store.outbox.waiting("http://x", 1)] == [job_id]


def test_counts_follow(store, commit, bring, delete):
    for seq, status in enumerate(JobStatus, 1):
        bring(store, seq, status)
    commit(store, Requeue(2, charged=True), StartJob(2, 20, "w"), End(2, Outcome(JobStatus.COMPLETED), 30))
    assert store.counts().retried == 1
    assert delete(store, 40, 1) == 1
    assert (store.counts().retried, store.counts().jobs[JobStatus.COMPLETED]) == (0, 1)
    delete(store, 10**9, 100)
    assert store.counts().jobs == {**dict.fromkeys(JobStatus, 0), JobStatus.IN_QUEUE: 1}


def test_a_number_is_never_given_twice(file, bring, delete):
    with Store.open(file) as store:
        for seq in (1, 2, 3):
            bring(store, seq, JobStatus.CANCELLED, ended_ms=10 * seq)
        assert delete(store, 100, 3) == 3
        assert store.next_seq == 4
    with Store.open(file) as store:
        assert store.next_seq == 4
        bring(store, 4, JobStatus.CANCELLED, ended_ms=10)
        bring(store, 5, JobStatus.IN_QUEUE)
        assert delete(store, 100, 3) == 1
        assert store.next_seq == 6


def test_the_space_of_what_is_deleted_is_used_again(file, commit, sqlite_of, delete):
    with Store.open(file) as store:
        sizes = []
        for seq in range(1, 9):
            job = Insert(seq, JobRequest(f"{seq}", b"1" * 100_000), 1, 2, "w")
            commit(store, job, End(seq, Outcome(JobStatus.COMPLETED, b"2" * 100_000), 3))
            assert delete(store, 4, 1) == 1
            sizes += sqlite_of(store).execute("PRAGMA page_count").fetchone()
    assert sizes[-1] == pytest.approx(sizes[1], rel=0.05)


def test_the_oldest_go_first_whenever_they_ended_and_live_ones_stay(store, bring, delete):
    for seq, ended_ms in ((1, 300), (2, 10**14), (3, 200)):
        bring(store, seq, JobStatus.COMPLETED, ended_ms=ended_ms)
    bring(store, 4, JobStatus.IN_QUEUE)
    bring(store, 5, JobStatus.IN_PROGRESS)
    left = []
    while number := delete(store, None, 1):
        assert number == 1
        left.append([seq for seq in range(1, 6) if numbered(store, seq)])
    assert left == [[1, 2, 4, 5], [2, 4, 5], [4, 5]]


def test_large_jobs_are_deleted_in_smaller_pieces(store, commit, delete):
    size = PIECE_BYTES // 2 - 50_000
    for seq in range(1, 7):
        ended = End(seq, Outcome(JobStatus.COMPLETED, b"1" * size), 10 + seq)
        commit(store, Insert(seq, JobRequest(f"{seq}", b"1"), 1, 2, "w"), ended)
    full = store.used
    assert full > 6 * size
    assert delete(store, 1000, 100) == 3
    assert [seq for seq in range(1, 7) if numbered(store, seq)] == [4, 5, 6]
    assert store.used == pytest.approx(full - 3 * size, rel=0.05)
    assert delete(store, 1000, 1) == 1
    assert delete(store, 1000, 100) == 2
    assert delete(store, 1000, 100) == 0
    assert store.used < 200_000


def test_the_file_stays_within_a_limit_that_is_kept_by_deleting(file, commit, sqlite_of):
    with Store.open(file) as store:
        for seq in range(1, 61):
            ended = End(seq, Outcome(JobStatus.COMPLETED, b"1" * 100_000), seq)
            commit(store, Insert(seq, JobRequest(f"{seq}", b"1"), 1, 2, "w"), ended)
            while store.used > 1_000_000 and store.retention.delete_oldest(1):
                pass
        assert 700_000 < store.used <= 1_000_000
        assert next(seq for seq in range(1, 61) if numbered(store, seq)) > 45
    assert file.stat().st_size < 1_300_000
