"""The description against the running program: schemathesis asks what `/openapi.json` allows, and what it does not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Runs, Supervise

HANDLER = """
def handler(job):
    print("got", job["input"])
    given = job["input"]
    if given == "fail":
        raise ValueError("as told")
    if given == "stream":
        return (number for number in range(3))
    return given
"""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)

DEADLINE_S = 120.0
"""How long that may take: seconds of computing, on a machine with other things to do."""


@pytest.fixture
def run(supervise: Runs) -> Supervise:
    """Two slots: one may be paused, and the jobs go on."""
    handler = supervise.write("echo.py", HANDLER)
    return supervise(handler, "--simulate-gpus", 2, "--api-key", "secret").ready("gpu0", "gpu1")


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
def test_every_answer_is_described(run: Supervise, supervise: Runs, phase: str) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis, which tests an API by its description, is not installed")
    run.headers["authorization"] = "Bearer secret"
    for given in ("stream", "fail", {"refresh_worker": True}):
        run.runsync(given)
    tested = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{run.port}/openapi.json"),
            *("--header", "Authorization: Bearer secret"),
            *("--phases", phase, "--max-examples", "2", "--generation-deterministic"),
            *("--checks", ",".join(CHECKS), "--request-timeout", "20", "--suppress-health-check", "all", "--no-color"),
        ],
        cwd=supervise.folder,
        env=supervise.environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    operations = sum(len(set(item) - {"servers"}) for item in run.get("/openapi.json")["paths"].values())
    assert f"Tested: {operations - 1}" in tested.stdout, (
        tested.stdout
    )  # all but the one that was asked for the description
    assert run.stop() == 0


def test_metrics_count_what_happened(run: Supervise) -> None:
    run.headers["authorization"] = "Bearer secret"
    run.runsync("a")
    run.runsync("fail")
    run.runsync({"refresh_worker": True})
    run.until(lambda: any(worker["lastRefresh"] for worker in run.get("/workers")))
    answer = run.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = values(answer.body.decode())
    assert found['supervise_jobs_ended_total{status="COMPLETED"}'] == 2
    assert found['supervise_jobs_ended_total{status="FAILED"}'] == 1
    assert found["supervise_job_execution_seconds_count"] == 3
    assert found['supervise_refresh_seconds_count{step="start"}'] == 1
    assert 0 < found['supervise_refresh_seconds_sum{step="end"}'] < 20
    assert found['supervise_slots{state="idle"}'] == 2
    assert found["supervise_ready"] == 1
    assert found["supervise_webhooks_pending"] == 0
    assert found["process_open_fds"] > 2


def values(text: str) -> dict[str, Any]:
    return {name: float(value) for name, value in re.findall(r"^([a-z]\S*) (\S+)$", text, re.MULTILINE)}
