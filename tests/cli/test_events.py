"""Which events become lines, and that a flood of jobs does not become a flood of lines."""

import asyncio

import pytest

from supervisor.cause import Exited, Signalled, WorkerLost
from supervisor.cli.serving import events as module
from supervisor.cli.serving.events import JOBS_PER_SECOND, LINES_AT_ONCE, EventLogger
from supervisor.job import Job, JobStatus
from supervisor.notice import TemplateRestarts, WorkerRestarts
from supervisor.pool import events


class KeptLines:
    """Lines as a list."""

    def __init__(self):
        self.said = []

    def event(self, at, kind, text, **fields):
        self.said.append((kind, text, fields))

    def log(self, at, slot, job, text):
        self.said.append(("log", text, {"slot": slot, "job": job}))


def job(job_id="a", status=JobStatus.COMPLETED, **fields):
    times = {"created_ms": 1_000, "started_ms": 1_010, "ended_ms": 1_030, "worker_id": "gpu0-1"}
    return Job(seq=1, id=job_id, status=status, input=b"1", **{**times, **fields})


@pytest.fixture
def lines():
    return KeptLines()


def log(lines, *happenings, and_then=None):
    """Log them all within one loop; ``and_then`` is called with the logger before the loop ends."""

    async def run():
        logger = EventLogger(lines)
        for happening in happenings:
            logger.observe(happening)
        if and_then is not None:
            await and_then(logger)
        logger.close()

    asyncio.run(run())


def test_an_end_says_how_long_and_where(lines):
    log(lines, job())
    ((kind, text, fields),) = lines.said
    assert (kind, text) == ("job", "job a COMPLETED in 20 ms on gpu0-1")
    assert fields == dict(id="a", status="COMPLETED", workerId="gpu0-1", delayTime=10, executionTime=20)


def test_a_failure_says_why_in_one_line(lines):
    log(lines, job(status=JobStatus.FAILED, error="no\nTraceback"))
    ((_, text, fields),) = lines.said
    assert text == "job a FAILED in 20 ms on gpu0-1: no"
    assert fields["error"] == "no"


def test_a_job_whose_worker_died_says_so_in_one_line(lines):
    log(lines, job(status=JobStatus.FAILED, cause=WorkerLost("gpu0", 41, Signalled(11), ("last words",))))
    ((_, text, fields),) = lines.said
    assert fields["error"] == "worker gpu0 (pid 41) crashed with SIGSEGV"
    assert text == f"job a FAILED in 20 ms on gpu0-1: {fields['error']}"


def test_a_job_that_never_started_ran_nowhere(lines):
    log(lines, job(status=JobStatus.CANCELLED, started_ms=None, worker_id=None))
    assert lines.said[0][1] == "job a CANCELLED"


def test_many_completed_jobs_are_counted_but_failures_are_all_said(lines):
    happenings = [job(str(number)) for number in range(JOBS_PER_SECOND + 30)]
    failed = [job(f"f{number}", JobStatus.FAILED, error="no") for number in range(40)]
    log(lines, *happenings, *failed)
    assert len([said for said in lines.said if said[0] == "job"]) == JOBS_PER_SECOND + 40
    assert lines.said[-1] == ("jobs", "30 more jobs completed", {"completed": 30})


def test_the_count_is_said_when_its_second_is_over_though_nothing_more_happens(lines, monkeypatch):
    monkeypatch.setattr(module, "SECOND", 0.0)

    async def second_over(logger):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert lines.said[-1][1] == "1 more jobs completed"
        logger.observe(job("next"))
        assert lines.said[-1][2]["id"] == "next"  # a new second, a new allowance

    log(lines, *(job(str(number)) for number in range(JOBS_PER_SECOND + 1)), and_then=second_over)


def test_prints_and_notices(lines):
    log(
        lines,
        events.Printed("gpu0", "a", ["one", "two"]),
        WorkerRestarts("gpu0", 7, Exited(1)),
        TemplateRestarts(Exited(1), left_behind=2),
    )
    assert lines.said == [
        ("log", "one", {"slot": "gpu0", "job": "a"}),
        ("log", "two", {"slot": "gpu0", "job": "a"}),
        ("restart", "gpu0: worker (pid 7) exited with code 1; restarting", {"slot": "gpu0"}),
        ("warning", "the template process exited with code 1; starting another", {"left_behind": 2}),
    ]


def test_while_the_dashboard_has_the_terminal_it_is_silent(lines):
    async def resume(logger):
        logger.resume()
        logger.event("note", "heard")

    async def paused():
        logger = EventLogger(lines)
        logger.pause()
        logger.observe(job())
        logger.event("note", "unheard")
        await resume(logger)

    asyncio.run(paused())
    assert [text for _, text, _ in lines.said] == ["heard"]


def test_of_a_flood_of_lines_that_came_at_once_the_last_are_said(lines):
    printed = [str(number) for number in range(LINES_AT_ONCE + 7)]
    log(lines, events.Printed("gpu0", "a", printed))
    said = [text for _, text, _ in lines.said]
    assert said == ["(7 lines that came at once with these are left out here)", *printed[7:]]
    lines.said.clear()
    log(lines, events.Printed("gpu0", "a", printed[7:]))
    assert len(lines.said) == LINES_AT_ONCE
