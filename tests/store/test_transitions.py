"""No write and no SQL can take a job where tests/store/transitions.py does not."""

from __future__ import annotations

import sqlite3
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import StoreError, TransitionError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.store.writes import AddChunk, End, Insert, Requeue, Retry, StartJob, Write
from tests.store.numbered import numbered
from tests.store.transitions import TRANSITIONS

PAIRS = list(product(JobStatus, JobStatus))


def test_the_schema_has_this_table(store, sqlite_of):
    rows = sqlite_of(store).execute("SELECT before, after FROM transitions").fetchall()
    assert {(before, after) for before, after in rows} == {
        (before.value, after.value) for before, followers in TRANSITIONS.items() for after in followers
    }


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_sql_from_anywhere_is_refused_an_illegal_step(store, bring, sqlite_of, before, after):
    bring(store, 1, before)
    # All that the columns' own rules ask of the new state, so that only the step itself can be refused.
    update = "UPDATE jobs SET status = ?, ended_ms = ?, started_ms = 5, attempts = 1 WHERE seq = 1"
    row = (after.value, 6 if after.terminal else None)
    if after in TRANSITIONS[before]:
        sqlite_of(store).execute(update, row)
        assert numbered(store, 1).status is after
    else:
        with pytest.raises(sqlite3.IntegrityError, match="illegal"):
            sqlite_of(store).execute(update, row)
        assert numbered(store, 1).status is before


def writes_to(after: JobStatus) -> list[Write]:
    """Every write that would bring job number 1 to ``after``."""
    if after is JobStatus.IN_PROGRESS:
        return [StartJob(1, 20, "gpu1-2")]
    if after is JobStatus.IN_QUEUE:
        return [Requeue(1, charged=True), Requeue(1, charged=False), Retry(1, 50)]
    return [End(1, Outcome(after, b"2", "new"), 30)]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_writes_make_the_legal_steps_and_no_others(before, after, commit, bring):
    for write in writes_to(after):
        with Store.open(MEMORY) as store:
            bring(store, 1, before)
            job, counts = numbered(store, 1), store.counts()
            starts_here = not isinstance(write, (Requeue, Retry)) or isinstance(write, Retry) == before.terminal
            if after in TRANSITIONS[before] and starts_here:
                commit(store, write)
                assert numbered(store, 1).status is after
            else:
                with pytest.raises(TransitionError):
                    commit(store, write)
                assert (numbered(store, 1), store.counts()) == (job, counts)


@pytest.mark.parametrize("status", list(JobStatus))
def test_only_a_running_job_gets_chunks(store, commit, bring, status):
    bring(store, 1, status)
    if status is JobStatus.IN_PROGRESS:
        commit(store, AddChunk(1, 1, 0, b"0"))
    else:
        with pytest.raises(TransitionError):
            commit(store, AddChunk(1, numbered(store, 1).attempts, 0, b"0"))
        assert store.chunks(1) == []


@pytest.mark.parametrize("before", [JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS])
@pytest.mark.parametrize("after", [JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS])
def test_an_outcome_is_terminal(store, commit, bring, before, after):
    bring(store, 1, before)
    with pytest.raises(TransitionError):
        commit(store, End(1, Outcome(after), 30))
    assert numbered(store, 1).status is before


@pytest.mark.parametrize(
    "write", [StartJob(9, 1, "w"), End(9, Outcome(JobStatus.FAILED), 1), Requeue(9, True), Retry(9, 50)]
)
def test_a_job_that_is_not_there_goes_nowhere(store, commit, write):
    with pytest.raises(TransitionError, match="number 9"):
        commit(store, write)


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "COMPLETED", "ended_ms": 1},
        {"status": "IN_QUEUE", "ended_ms": 1},
        {"status": "IN_PROGRESS"},
        {"status": "RUNNING", "ended_ms": 1},
        {"status": "IN_QUEUE", "attempts": -1},
        {"status": "IN_QUEUE", "input": None, "id": None},
    ],
)
def test_sql_from_anywhere_is_refused_an_illegal_job(store, sqlite_of, columns):
    row = {"id": "a", "low_priority": 0, "has_s3_config": 0, "created_ms": 1, "input": b"1", **columns}
    insert = f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
    with pytest.raises(sqlite3.IntegrityError):
        sqlite_of(store).execute(insert, tuple(row.values()))


SEQS = st.integers(1, 3)
WRITES = st.one_of(
    st.builds(lambda seq: Insert(seq, JobRequest(f"j{seq}", b"1"), 10), SEQS),
    st.builds(lambda seq: Insert(seq, JobRequest(f"j{seq}", b"1"), 10, 11, "w"), SEQS),
    st.builds(StartJob, SEQS, st.just(20), st.just("w")),
    st.builds(
        lambda seq, status: End(seq, Outcome(status), 30), SEQS, st.sampled_from([s for s in JobStatus if s.terminal])
    ),
    st.builds(Requeue, SEQS, st.booleans()),
    st.builds(Retry, SEQS, st.just(50)),
    st.builds(AddChunk, SEQS, st.integers(0, 2), st.integers(0, 2), st.just(b"0")),
)


@given(st.lists(st.lists(WRITES, min_size=1, max_size=4), max_size=20))
@settings(max_examples=80, deadline=None)
def test_whatever_is_written_the_store_stays_whole(batches):
    with Store.open(MEMORY) as store:
        for batch in batches:
            before = {seq: numbered(store, seq) for seq in (1, 2, 3)}
            answers: list[StoreError | None] = []
            store.commit(batch, answers.append)
            after = {seq: numbered(store, seq) for seq in (1, 2, 3)}
            if answers != [None]:
                assert after == before
        jobs = [job for job in after.values() if job] if batches else []
        assert store.counts().retried == sum(job.retries for job in jobs)
        for status, number in store.counts().jobs.items():
            assert number == sum(job.status is status for job in jobs)
        for job in jobs:
            assert [index for index, _ in store.chunks(job.seq)] == list(range(job.chunks))
            assert job.status is not JobStatus.IN_QUEUE or (job.chunks, job.worker_id, job.output) == (0, None, None)
