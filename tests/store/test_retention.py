"""Old ended jobs are forgotten in small pieces, with all that belongs to them; their numbers are not given again."""

from __future__ import annotations

import pytest

from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.store import Store
from supervisor.store.writes import LARGE_INPUT, AddChunk, End, Insert, Requeue, Start, TakeChunks


def test_only_what_ended_before_is_forgotten_oldest_end_first(store, bring):
    for seq, ended_ms in ((1, 300), (2, 100), (3, 200), (4, 400)):
        bring(store, seq, JobStatus.FAILED, ended_ms=ended_ms)
    bring(store, 5, JobStatus.IN_QUEUE)
    bring(store, 6, JobStatus.IN_PROGRESS)
    assert store.forget(400, 2) == 2
    assert [seq for seq in range(1, 7) if store.by_seq(seq)] == [1, 4, 5, 6]
    assert store.forget(400, 2) == 1
    assert store.forget(400, 2) == 0
    assert [seq for seq in range(1, 7) if store.by_seq(seq)] == [4, 5, 6]
    assert store.forget(10**15, 100) == 1
    assert store.get("job-4") is None


def test_nothing_that_belonged_to_a_forgotten_job_stays(store, commit, sqlite_of):
    commit(store, Insert(1, JobRequest("a", b"1" * LARGE_INPUT), 1), Start(1, 2, "w"))
    commit(store, AddChunk(1, 1, 0, b"0"), AddChunk(1, 1, 1, b"1"))
    commit(store, TakeChunks(1, 2), End(1, Outcome(JobStatus.COMPLETED, b"[]"), 3))
    commit(store, Insert(2, JobRequest("b", b"2" * LARGE_INPUT), 1))

    def numbers() -> dict[str, list[int]]:
        tables = ("jobs", "inputs", "chunks")
        rows = {table: sqlite_of(store).execute(f"SELECT DISTINCT seq FROM {table} ORDER BY 1") for table in tables}
        return {table: [seq for (seq,) in found] for table, found in rows.items()}

    assert numbers() == {"jobs": [1, 2], "inputs": [1, 2], "chunks": [1]}
    assert store.forget(4, 10) == 1
    assert numbers() == {"jobs": [2], "inputs": [2], "chunks": []}
    assert store.get("b").input == b"2" * LARGE_INPUT


def test_counts_follow(store, commit, bring):
    for seq, status in enumerate(JobStatus, 1):
        bring(store, seq, status)
    commit(store, Requeue(2, charged=True), Start(2, 20, "w"), End(2, Outcome(JobStatus.COMPLETED), 30))
    assert store.counts().retried == 1
    assert store.forget(40, 1) == 1
    assert (store.counts().retried, store.counts().jobs[JobStatus.COMPLETED]) == (0, 1)
    store.forget(10**9, 100)
    assert store.counts().jobs == {**dict.fromkeys(JobStatus, 0), JobStatus.IN_QUEUE: 1}


def test_a_number_is_never_given_twice(file, bring):
    with Store.open(file) as store:
        for seq in (1, 2, 3):
            bring(store, seq, JobStatus.CANCELLED, ended_ms=10 * seq)
        assert store.forget(100, 3) == 3
        assert store.next_seq == 4
    with Store.open(file) as store:
        assert store.next_seq == 4
        bring(store, 4, JobStatus.CANCELLED, ended_ms=10)
        bring(store, 5, JobStatus.IN_QUEUE)
        assert store.forget(100, 3) == 1
        assert store.next_seq == 6


def test_the_room_of_what_is_forgotten_is_used_again(file, commit, sqlite_of):
    with Store.open(file) as store:
        sizes = []
        for seq in range(1, 9):
            job = Insert(seq, JobRequest(f"{seq}", b"1" * 100_000), 1, 2, "w")
            commit(store, job, End(seq, Outcome(JobStatus.COMPLETED, b"2" * 100_000), 3))
            assert store.forget(4, 1) == 1
            sizes += sqlite_of(store).execute("PRAGMA page_count").fetchone()
    assert sizes[-1] == pytest.approx(sizes[1], rel=0.05)
