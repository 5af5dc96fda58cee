"""Every cause has words, and it is those that clients, lists and screens show."""

from __future__ import annotations

import typing

import msgspec
import pytest

from supervisor import cause as c
from supervisor.job import Job, JobStatus
from supervisor.protocol import wording
from supervisor.protocol.job_error import ERROR_CHARS
from supervisor.protocol.responses import status_body
from tests.protocol.causes import EXITED, JOB_CAUSES, KILLED, WORDS


def members(union: object) -> set[type]:
    return set(typing.get_args(union))


@pytest.mark.parametrize(("cause", "words"), [*WORDS, *((cause, words) for cause, words, _ in JOB_CAUSES)])
def test_words(cause, words):
    assert wording.words(cause) == words


def test_no_cause_is_without_words_or_without_a_line_in_the_tables():
    shown = {type(cause) for cause, _ in WORDS} | {type(cause) for cause, _, _ in JOB_CAUSES}
    assert shown == members(wording.Cause)
    assert {type(cause) for cause, _, _ in JOB_CAUSES} == members(c.JobCause)
    assert {cause for cause, _ in WORDS if isinstance(cause, c.EndedBecause)} == set(c.EndedBecause)
    assert {cause.by for cause, _ in WORDS if isinstance(cause, c.RefreshCause)} == set(c.RefreshBy)


@pytest.mark.parametrize("end", [cause for cause, _ in WORDS if type(cause) in members(c.WorkerEnd)])
def test_a_worker_may_have_ended_by_any_of_its_ends(end):
    lost = c.WorkerLost("cpu0", 7, end)
    assert wording.words(lost).startswith("worker cpu0 (pid 7) ")
    assert wording.words(end) in wording.words(lost)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (c.EndedBecause.CANCELLED_JOB_RAN, "was stopped because a cancelled job was still running"),
        (c.EndedBecause.SUPERVISOR_STOPS, "was stopped because the supervisor is stopping"),
        (EXITED, "exited with code 3"),
        (c.ForkRefused("no memory"), "could not be forked: no memory"),
    ],
)
def test_what_follows_the_name_of_a_worker(end, words):
    assert wording.of_worker(end) == words


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (c.Unknown.NO_COUNTER, "NVML has no counter of this GPU's memory"),
        (c.Unknown.NO_READING, "NVML gave no reading of its memory"),
        (c.Unknown.NO_BASELINE, "NVML gave no reading from before the worker started"),
        (c.Unknown.NO_PROCESSES, "900 MiB more in use than before, and NVML lists no processes"),
        (c.Unknown.NOT_SHOWN, "900 MiB more in use than before, and NVML does not show whose it is"),
        (
            c.Unknown.NEIGHBOUR_ENDED,
            "another worker on it has ended meanwhile, and NVML does not show whose memory came back",
        ),
        (c.Unknown.UNSEEN, "900 MiB more in use than before, and NVML lists pid 7, 8, unknown here"),
    ],
)
def test_why_memory_is_unverified(why, words):
    unseen = (7, 8) if why is c.Unknown.UNSEEN else ()
    assert wording.unknown_memory((c.UnknownGpu(why, 900, unseen),)) == words
    both = (c.UnknownGpu(why, 900, unseen, "gpu0"), c.UnknownGpu(why, 900, unseen, "gpu1"))
    assert wording.unknown_memory(both) == f"gpu0: {words}; gpu1: {words}"


def job(**fields) -> Job:
    return Job(1, "a", JobStatus.FAILED, b"1", 10, started_ms=20, ended_ms=30, worker_id="gpu0-1", **fields)


def test_the_error_of_a_job_is_the_handlers_text_or_the_words_of_its_cause():
    assert wording.error_of(job()) is None
    assert wording.error_of(job(error="no such prompt")) == "no such prompt"
    lost = job(cause=c.WorkerLost("gpu0", 41, KILLED, ("last", "words")))
    error = "worker gpu0 (pid 41) was killed by SIGKILL; it may have run out of memory; its last output:\nlast\nwords"
    assert wording.error_of(lost) == error
    assert msgspec.json.decode(status_body(lost))["error"] == error


def test_a_line_of_it_for_lists():
    assert wording.error_line(job()) is None
    assert wording.error_line(job(error="one\ntwo")) == "one"
    assert wording.error_line(job(error='{"error_type": "<class \'ValueError\'>", "error_message": "no"}')) == (
        "ValueError: no"
    )
    lost = wording.error_line(job(cause=c.WorkerLost("gpu0", 41, EXITED, ("last words",))))
    assert lost == "worker gpu0 (pid 41) exited with code 3"
    assert len(wording.error_line(job(error="x" * 1000))) == ERROR_CHARS
