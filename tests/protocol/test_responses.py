from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from supervisor.job import Job, JobStatus
from supervisor.protocol import responses
from supervisor.protocol.views import WorkerCounts, WorkerView

JOB = Job(1, "a", JobStatus.IN_QUEUE, b"1", created_ms=1000)
RAN: dict[str, Any] = {"started_ms": 1005, "ended_ms": 1012, "worker_id": "gpu0-1"}

BODIES = [
    ({}, None, '{"id":"a","status":"IN_QUEUE","delayTime":900,"retries":0}'),
    ({"retries": 2, "started_ms": 1005}, None, '{"id":"a","status":"IN_QUEUE","delayTime":900,"retries":2}'),
    (
        {"status": JobStatus.IN_PROGRESS, "started_ms": 1005, "worker_id": "gpu0-1"},
        b'{"p": 1 }',
        '{"id":"a","status":"IN_PROGRESS","delayTime":5,"workerId":"gpu0-1","output":{"p": 1 },"retries":0}',
    ),
    (
        {"status": JobStatus.COMPLETED, "output": b"null", **RAN},
        b'"old progress"',
        '{"id":"a","status":"COMPLETED","delayTime":5,"executionTime":7,"workerId":"gpu0-1","output":null,"retries":0}',
    ),
    (
        {"status": JobStatus.COMPLETED, **RAN},
        None,
        '{"id":"a","status":"COMPLETED","delayTime":5,"executionTime":7,"workerId":"gpu0-1","retries":0}',
    ),
    (
        {"status": JobStatus.FAILED, "output": b"[1]", "error": 'a "b"\nč', **RAN},
        None,
        (
            '{"id":"a","status":"FAILED","delayTime":5,"executionTime":7,"workerId":"gpu0-1","output":[1],'
            '"error":"a \\"b\\"\\nč","retries":0}'
        ),
    ),
    (
        {"status": JobStatus.CANCELLED, "ended_ms": 1300},
        None,
        '{"id":"a","status":"CANCELLED","delayTime":300,"executionTime":0,"workerId":"","retries":0}',
    ),
    (
        {"status": JobStatus.TIMED_OUT, "started_ms": 900, "ended_ms": 800, "worker_id": "w"},
        None,
        '{"id":"a","status":"TIMED_OUT","delayTime":0,"executionTime":0,"workerId":"w","retries":0}',
    ),
]


@pytest.mark.parametrize(("changes", "progress", "body"), BODIES)
def test_status_body(changes: dict[str, Any], progress: bytes | None, body: str) -> None:
    made = responses.status_body(JOB.replace(**changes), progress, now_ms=1900)
    assert made.decode() == body
    json.loads(made)


@pytest.mark.parametrize("status", [status for status in JobStatus if status.terminal])
def test_a_final_body_has_what_runpods_clients_insist_on(status: JobStatus) -> None:
    body = json.loads(responses.status_body(JOB.replace(status=status, ended_ms=1001)))
    assert isinstance(body["workerId"], str)
    assert [type(body[name]) for name in ("delayTime", "executionTime", "retries")] == [int, int, int]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (JobStatus.IN_QUEUE, "IN_QUEUE"),
        (JobStatus.IN_PROGRESS, "IN_QUEUE"),
        (JobStatus.COMPLETED, "COMPLETED"),
    ],
)
def test_accepted_body(status: JobStatus, said: str) -> None:
    assert json.loads(responses.accepted_body(JOB.replace(status=status))) == {"id": "a", "status": said}


def test_stream_body() -> None:
    assert responses.stream_body(JOB, ()) == b'{"status":"IN_QUEUE","stream":[]}'
    assert responses.stream_body(JOB, [b"1", b'"x"']) == b'{"status":"IN_QUEUE","stream":[{"output":1},{"output":"x"}]}'


def test_requests_body() -> None:
    assert json.loads(responses.requests_body([], None)) == {"requests": [], "next": None}
    ended = JOB.replace(id="b", status=JobStatus.FAILED, error='"', ended_ms=1100)
    body = json.loads(responses.requests_body([ended, JOB], "7"))
    assert ([job["id"] for job in body["requests"]], body["requests"][0]["error"], body["next"]) == (
        ["b", "a"],
        '"',
        "7",
    )


COUNTS = {
    "starting": {"initializing": 1},
    "idle": {"idle": 1, "ready": 1},
    "busy": {"running": 1, "ready": 1},
    "ending": {"initializing": 1},
    "releasing": {"initializing": 1},
    "backoff": {"unhealthy": 1},
    "broken": {"unhealthy": 1},
    "held": {"unhealthy": 1},
    "lost": {"unhealthy": 1},
    "parked": {"throttled": 1},
    "something new": {"unhealthy": 1},
}


def _worker(state: str) -> WorkerView:
    return WorkerView("w", "gpu0", (0,), state, None, 1, 0, 0, 0)


@pytest.mark.parametrize(("state", "counts"), COUNTS.items())
def test_every_slot_state_counts_as_something(state: str, counts: dict[str, int]) -> None:
    assert responses.count_workers([_worker(state)]) == WorkerCounts(**counts)


@pytest.mark.parametrize(("state", "counts"), [("parked", {"idle": 1}), ("held", {"unhealthy": 1})])
def test_a_spare_slot_is_idle_as_far_as_nothing_is_wrong(state: str, counts: dict[str, int]) -> None:
    worker = msgspec.structs.replace(_worker(state), spare=True)
    assert responses.count_workers([worker]) == WorkerCounts(**counts)


def test_counts_add_up() -> None:
    counted = responses.count_workers([_worker("idle"), _worker("busy"), _worker("busy"), _worker("held")])
    assert counted == WorkerCounts(idle=1, running=2, ready=3, unhealthy=1)


def test_no_state_is_forgotten() -> None:
    assert set(responses.COUNTED_AS) | {"something new"} == set(COUNTS)
