"""Why the program ended a job is kept as a value: through a restart, and in the words that were released."""

from __future__ import annotations

import msgspec
import pytest

from supervisor import cause as c
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.protocol.wording import error_of
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, Requeue, Retry, StartJob
from tests.protocol.causes import JOB_CAUSES

LOST = c.WorkerLost("gpu0", 41, c.Signalled(9), ("last words: ü\0",))


@pytest.mark.parametrize(("cause", "words", "text"), JOB_CAUSES)
def test_a_cause_is_stored_as_it_was_released(cause, words, text):
    assert msgspec.json.encode(cause).decode() == text
    assert msgspec.json.decode(text, type=c.JobCause) == cause


def failed(cause: c.JobCause) -> Outcome:
    return Outcome(JobStatus.FAILED, cause=cause)


@pytest.mark.parametrize("cause", [cause for cause, _, _ in JOB_CAUSES])
def test_every_cause_outlives_a_restart(file, commit, cause):
    with Store.open(file) as store:
        commit(store, Insert(1, JobRequest("a", b"1"), 10), StartJob(1, 11, "w"), End(1, failed(cause), 12))
    with Store.open(file) as store:
        job = store.get("a")
        assert (job.status, job.cause, job.error, job.output) == (JobStatus.FAILED, cause, None, None)
        assert store.facts("a").cause == store.newest_ended(1)[0].cause == store.page(9, 0, None, 1)[0].cause == cause


def test_a_job_that_ends_in_the_queue_has_its_cause(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10), End(1, Outcome(JobStatus.TIMED_OUT, cause=c.TtlPassed()), 12))
    assert store.get("a").cause == c.TtlPassed()


def test_a_retry_clears_it(store, commit):
    commit(store, Insert(1, JobRequest("a", b"1"), 10), StartJob(1, 11, "w"), End(1, failed(LOST), 12), Retry(1, 50))
    assert store.get("a").cause is None
    commit(store, StartJob(1, 51, "w"), Requeue(1, charged=True), StartJob(1, 52, "w"))
    commit(store, End(1, Outcome(JobStatus.FAILED, error="its own"), 53))
    assert (store.get("a").cause, store.get("a").error) == (None, "its own")


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"moon_phase","of":7}',
        '{"type":"worker_lost","slot":"gpu0","pid":1,"end":{"type":"evaporated"},"tail":[]}',
        '{"type":"execution_timed_out","limit_ms":"long"}',
    ],
)
def test_a_cause_that_only_a_later_version_knows_leaves_its_job_readable(store, commit, sqlite_of, text):
    commit(store, Insert(1, JobRequest("a", b"1"), 10), StartJob(1, 11, "w"), End(1, failed(LOST), 12))
    sqlite_of(store).execute("UPDATE jobs SET cause = ?", (text,))
    job = store.get("a")
    assert (job.status, job.cause) == (JobStatus.FAILED, c.UnknownCause(text))
    assert store.newest_ended(1)[0].cause == store.page(9, 0, None, 1)[0].cause == job.cause
    assert error_of(job) == f"the job ended for a reason that this version of supervise does not know: {text}"
    commit(store, Retry(1, 50))
    assert store.get("a").cause is None
