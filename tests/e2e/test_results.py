"""What a handler gives and what becomes of the job, over HTTP: results, streams, cancels, and the same request twice."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs

RESULTS = '''
import datetime, enum, pathlib, uuid, dataclasses
kept = {"refresh_worker": False, "kept": 1}

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int
    y: int

class Odd:
    pass

def handler(job):
    """Gives what the input, a Python expression, says; ``raise`` in front raises it."""
    text = job["input"]
    if text.startswith("raise "):
        raise eval(text[6:])
    return eval(text)
'''

GIVES: list[tuple[str, dict[str, Any]]] = [
    ("{'a': 1}", {"output": {"a": 1}}),
    ("{'a': 1, 'refresh_worker': False}", {"output": {"a": 1}}),
    ("kept", {"output": {"kept": 1}}),
    ("kept", {"output": {"kept": 1}}),  # not popped from the handler's own dict
    ("{'refresh_worker': 0}", {}),
    ("{}", {}),
    ("{'error': ''}", {}),
    ("None", {"output": None}),
    ("False", {"output": False}),
    ("0", {"output": 0}),
    ("''", {"output": ""}),
    ("[]", {"output": []}),
    ("[{'error': 'not looked into'}]", {"output": [{"error": "not looked into"}]}),
    ("'grüße 🚢'", {"output": "grüße 🚢"}),
    ("Point(1, 2)", {"output": {"x": 1, "y": 2}}),
    (
        "[Colour.RED, pathlib.Path('/a'), b'abc', uuid.UUID(int=1)]",
        {"output": ["red", "/a", "YWJj", "00000000-0000-0000-0000-000000000001"]},
    ),
    ("datetime.datetime(2024, 1, 2, 3, 4, 5)", {"output": "2024-01-02T03:04:05"}),
    ("'x' * 5_000_000", {"output": "x" * 5_000_000}),
    ("(x for x in 'ab')", {"output": []}),
    ("{'error': 'no good'}", {"error": "no good"}),
    ("{'error': 'no good', 'left': 1}", {"error": "no good", "output": {"left": 1}}),
    ("{'error': {'code': 7}}", {"error": '{"code":7}'}),
    ("{'images': [Odd()]}", {"error": "output.images[0]: cannot encode"}),
    ("Odd()", {"error": "output: cannot encode"}),
]


def test_the_table_of_results(supervise: Runs) -> None:
    run = supervise(supervise.write("results.py", RESULTS), "--gpus", "none", "--max-result", "6MB").ready()
    for expression, expected in GIVES:
        body = run.runsync(expression)
        status = "FAILED" if "error" in expected else "COMPLETED"
        found = {name: body[name] for name in ("output", "error") if name in body}
        if "cannot encode" in str(expected.get("error")):
            assert str(found["error"]).startswith(str(expected["error"])), (expression, body)
            assert "Odd" in found["error"]
        else:
            assert found == expected, expression
        assert body["status"] == status, (expression, body)
        assert body["workerId"] == "cpu0-1"
        assert type(body["delayTime"]) is type(body["executionTime"]) is type(body["retries"]) is int

    body = run.runsync("raise KeyError('höhe')")
    error = json.loads(body["error"])
    assert body["status"] == "FAILED"
    assert set(error) == {
        "error_type", "error_message", "error_traceback", "hostname", "worker_id", "supervisor_version",
    }  # fmt: skip
    assert (error["error_type"], error["error_message"]) == ("<class 'KeyError'>", "'höhe'")
    assert error["worker_id"] == "cpu0-1"
    assert "results.py" in error["error_traceback"]
    assert "worker/run.py" not in error["error_traceback"]

    body = run.runsync("'x' * 7_000_000")
    assert body["status"] == "FAILED"
    assert "--max-result" in body["error"]
    assert "output" not in body
    assert run.runsync("1")["workerId"] == "cpu0-1"
    assert run.stop() == 0


STREAMS = """
import {module} as runpod

def handler(job):
    given = job["input"]
    for number in range(3):
        yield {{"n": number}}
        if number == 1 and "gate" in given:
            open(given["gate"]).read()
        if number == 1 and "error" in given:
            yield {{"error": given["error"]}}
        if number == 1 and "raise" in given:
            raise ValueError("mid-stream")

if __name__ == "__main__":
    runpod.{start}({{"handler": handler, "return_aggregate_stream": {aggregate}}})
"""
CHUNKS = [{"output": {"n": number}} for number in range(3)]


@pytest.mark.parametrize(
    ("module", "start", "aggregate"),
    [("supervisor.serverless", "start", False), ("runpod", "serverless.start", True)],
)
def test_a_stream(supervise: Runs, make_gate: Callable[[], Gate], module: str, start: str, aggregate: bool) -> None:
    source = STREAMS.format(module=module, start=start, aggregate=aggregate)
    run = supervise(supervise.write("streams.py", source), "--gpus", "none").ready()
    gate = make_gate()
    job = run.run({"gate": gate.path})
    gate.reached()
    assert run.get(f"/stream/{job}?wait=20000&after=1")["stream"] == CHUNKS[1:2]  # both are on the disk now
    assert run.get(f"/stream/{job}") == {"status": "IN_PROGRESS", "stream": CHUNKS[:2]}
    assert run.get(f"/stream/{job}?wait=0") == {"status": "IN_PROGRESS", "stream": []}
    gate.open()
    ended = run.ended(job)
    assert ended["output"] == ([chunk["output"] for chunk in CHUNKS] if aggregate else [])
    assert run.post(f"/stream/{job}") == {"status": "COMPLETED", "stream": CHUNKS[2:]}
    assert run.get(f"/stream/{job}") == {"status": "COMPLETED", "stream": []}

    for given, words in (({"error": "no good"}, "no good"), ({"raise": 1}, "mid-stream")):
        job = run.run(given)
        assert words in run.ended(job)["error"]
        assert run.get(f"/stream/{job}") == {"status": "FAILED", "stream": CHUNKS[:2]}
    assert run.ask("GET", "/stream/unknown").status == 404
    assert run.workers()["cpu0"]["restarts"] == 0
    assert run.stop() == 0


ASYNC = """
import asyncio
from supervisor import serverless

cancelled = []

async def handler(job):
    serverless.progress_update(job, {"running": True})
    if job["input"] == "wait":
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(job["id"])
            raise
    return {"cancelled": list(cancelled)}

serverless.start({"handler": handler, "concurrency_modifier": lambda current: 3, "surplus": 1})
"""


def test_coroutines_together_and_cancelled(supervise: Runs) -> None:
    run = supervise(supervise.write("together.py", ASYNC), "--gpus", "none").ready()
    run.wait_for_line("cpu0: .*unknown keys in the config are ignored: surplus")
    jobs = [run.run("wait") for _ in range(4)]
    run.until(lambda: [run.status(job).get("output") for job in jobs[:3]] == [{"running": True}] * 3)
    assert run.status(jobs[3])["status"] == "IN_QUEUE"
    assert sorted(run.workers()["cpu0"]["running"]) == sorted(jobs[:3])

    # A queued one never starts; a running one gets its CancelledError and disturbs nobody.
    assert run.post(f"/cancel/{jobs[3]}") == {"id": jobs[3], "status": "CANCELLED"}
    assert run.post(f"/cancel/{jobs[0]}") == {"id": jobs[0], "status": "CANCELLED"}
    assert run.runsync("now")["output"] == {"cancelled": [jobs[0]]}
    ended = run.status(jobs[3])
    assert (ended["status"], ended["executionTime"], ended["workerId"]) == ("CANCELLED", 0, "")
    assert "output" not in run.status(jobs[0])
    for job in jobs[1:3]:
        assert run.status(job)["status"] == "IN_PROGRESS"
        assert run.post(f"/cancel/{job}")["status"] == "CANCELLED"
    assert run.post(f"/cancel/{jobs[0]}")["status"] == "CANCELLED"
    assert run.ask("POST", "/cancel/unknown").status == 404
    worker = run.workers()["cpu0"]
    assert (worker["restarts"], worker["generation"]) == (0, 1)
    assert run.stop() == 0


ORDER = """
def handler(job):
    open("order", "a").write(f"{job['input']} ")
    if isinstance(job["input"], str):
        open(job["input"]).read()
    return job["input"]
"""


def test_the_oldest_is_first_and_a_client_may_leave(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(supervise.write("order.py", ORDER), "--gpus", "none").ready()
    gate = make_gate()
    first = run.run(gate.path)
    gate.reached()
    jobs = [run.run(number, policy={"lowPriority": number % 3 == 0}) for number in range(7)]
    with socket.create_connection(("127.0.0.1", run.port)) as leaving:
        body = b'{"input": 7, "id": "left"}'
        leaving.sendall(
            b"POST /runsync HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        run.until(lambda: run.ask("GET", "/status/left").status == 200)
    gate.open()
    assert [run.ended(job)["output"] for job in (first, *jobs, "left")] == [gate.path, *range(8)]
    assert (supervise.folder / "order").read_text().split() == [gate.path, *"12457036"]

    large = "x" * (19 << 20)
    job = run.run([large])
    assert run.ended(job)["output"] == [large]
    assert run.stop() == 0


PROCESSES = """
import multiprocessing
import time
from supervisor import serverless

def square(number):
    return number * number

def handler(job):
    context = multiprocessing.get_context(job["input"])
    with context.Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    context.Process(target=time.sleep, args=(3600,)).start()
    return {"squares": squares, "refresh_worker": True}

serverless.start({"handler": handler})
"""


def test_processes_of_a_handler_end_with_its_worker(supervise: Runs) -> None:
    run = supervise(supervise.write("processes.py", PROCESSES), "--gpus", "none").ready()
    supervise.come_to(len(("supervisor", "template", "worker", "the next worker, forked ahead")))
    for method in ("fork", "spawn", "forkserver"):
        said = len(run.stderr.lines)
        assert run.runsync(method)["output"] == {"squares": [1, 4, 9]}
        run.wait_for_line("cpu0: refreshed in ", start=said)
        supervise.come_to(4)
    assert run.stop() == 0


def test_the_same_request_twice_is_one_job(supervise: Runs) -> None:
    handler = supervise.write(
        "echo.py", "def handler(job):\n    return {**job, 's3Config': sorted(job.get('s3Config', ()))}\n"
    )
    run = supervise(handler, "--gpus", "none").ready()
    bodies: list[Any] = [run.post("/runsync", {"input": number, "id": "mine"}) for number in (1, 2)]
    assert bodies[0] == bodies[1]
    assert bodies[0]["output"] == {"id": "mine", "input": 1, "s3Config": []}
    keyed = [run.ask("POST", "/run", {"input": number}, {"Idempotency-Key": "a key"}).json["id"] for number in (1, 2)]
    assert keyed[0] == keyed[1]
    assert run.ended(keyed[0])["output"]["input"] == 1
    assert run.get("/health")["jobs"]["completed"] == 2

    # What else a request may have reaches the handler; what is secret lies in a file of its own until the job ends.
    secret = {"accessId": "an-id", "accessSecret": "very-secret"}
    body = run.post("/runsync", {"input": 1, "s3Config": secret, "policy": {"lowPriority": True}})
    assert (body["output"]["s3Config"], body["output"]["policy"]) == (
        ["accessId", "accessSecret"],
        {"lowPriority": True},
    )
    files = [path for path in supervise.folder.rglob("store.db*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not any(b"very-secret" in path.read_bytes() for path in files)
    assert not [path for path in supervise.folder.rglob("store.db.secrets/*") if path.is_file()]
    assert "very-secret" not in str(run.stderr)
    # It survives the end of the program as well.
    assert run.stop() == 0
    run = supervise(handler, "--gpus", "none").ready()
    assert run.post("/runsync", {"input": 3, "id": "mine"}) == bodies[0]
    assert run.stop() == 0
