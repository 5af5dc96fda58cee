"""What is too long never leaves the worker: the limits on results, chunks, errors and progress."""

from __future__ import annotations

import pytest

from supervisor.cause import TooLarge
from supervisor.wire import messages as wire

LONG = "x" * 200


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        pytest.param(f"return {LONG!r}", TooLarge(202, 150), id="result"),
        pytest.param(f"return {{'error': {LONG!r}}}", TooLarge(200, 150), id="error"),
        pytest.param(f"return {{'error': 'e', 'rest': {LONG!r}}}", TooLarge(212, 150), id="beside an error"),
        pytest.param(f"yield 1; yield {LONG!r}", TooLarge(202, 150, 1), id="chunk"),
        pytest.param("for n in range(60): yield n", TooLarge(171, 150), id="aggregate"),
    ],
)
def test_what_is_too_long_fails_its_job_and_the_worker_goes_on(serve, body, cause):
    child = serve(
        f"""
        from supervisor import serverless
        def long(job):
            {body}
        def handler(job):
            return long(job) if job["input"] else "short"
        serverless.start({{"handler": handler, "return_aggregate_stream": True}})
        """,
        max_result=150,
    )
    done = child.job(True)
    assert (done.status, done.output, done.error, done.cause) == ("FAILED", None, None, cause)
    assert child.job(False, "next").output == b'"short"'


def test_a_result_of_just_the_limit_is_passed_on(serve):
    child = serve("def handler(job): return 'x' * 148", max_result=150)
    assert len(child.job().output) == 150


def test_a_progress_that_is_too_long_is_dropped_with_a_warning_and_the_job_goes_on(serve):
    child = serve(
        """
        from supervisor import serverless
        def handler(job):
            serverless.progress_update(job, "x" * job["input"])
            return "done"
        """
    )
    child.run(wire.MAX_PROGRESS)
    *said, done = child.receive_until(wire.Done)
    assert [type(message) for message in said] == [wire.Warning]
    assert f"{wire.MAX_PROGRESS + 2} bytes" in said[0].message
    assert done.output == b'"done"'
