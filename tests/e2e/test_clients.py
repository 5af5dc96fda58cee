"""RunPod's own clients, unchanged: what they get from a supervisor is what they expect of RunPod."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parents[1] / "clients"
CLIENT_S = 60
"""How long a client may take; RunPod's look at a job once a second."""

SDK = os.environ.get("RUNPOD_SDK", "")
"""The folder in which ``npm install runpod-sdk`` was run."""

JOBS = {"completed", "failed", "inProgress", "inQueue", "retried"}
WORKERS = {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}


@pytest.fixture
def serving(supervise):
    """A supervisor with one worker, as a client's environment names it."""
    os.mkfifo(supervise.folder / "reached")
    return supervise(CLIENTS / "handler.py", "--gpus", "none", "--grace", "0.5").ready()


def said_by(serving, supervise, *command: object) -> Any:
    """What a client program printed in the end, as JSON."""
    base = f"http://127.0.0.1:{serving.port}/v2"
    environ = {**supervise.environ, "RUNPOD_ENDPOINT_BASE_URL": base, "RUNPOD_SDK": SDK}
    words = [*map(str, command), str(supervise.folder / "reached")]
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=CLIENT_S)
    assert ended.returncode == 0, f"{ended.stderr}\n{serving}"
    return json.loads(ended.stdout.splitlines()[-1])


def check_the_end(said: Any) -> None:
    """What every client sees of a job that runs, one that waits, and their cancellation."""
    assert said["in_progress"] == "IN_PROGRESS"
    assert set(said["health"]["jobs"]) == JOBS
    assert set(said["health"]["workers"]) == WORKERS
    assert said["health"]["jobs"]["inQueue"] == 1
    assert (said["purged"], said["cancelled"]) == ("CANCELLED", "CANCELLED")


def needs_runpod() -> None:
    if importlib.util.find_spec("runpod") is None:
        pytest.skip("the package runpod is not installed")


def test_the_python_client(serving, supervise):
    needs_runpod()
    said = said_by(serving, supervise, sys.executable, CLIENTS / "runpod_sync.py")
    assert said["output"] == {"echo": {"kind": "echo", "n": 1}}
    assert said["status"] == "COMPLETED"
    assert said["run_sync"] == {"echo": {"kind": "echo", "n": 2}}
    assert said["wrapped"] == {"echo": {"kind": "echo"}}
    assert (said["failed"], said["failed_output"]) == ("FAILED", None)
    assert said["stream"] == ["chunk 0", "chunk 1", "chunk 2"]
    assert said["purge_queue"] == {"removed": 1, "status": "completed"}
    assert said["cancel"]["status"] == "CANCELLED"
    check_the_end(said)


def test_the_python_client_with_asyncio(serving, supervise):
    needs_runpod()
    said = said_by(serving, supervise, sys.executable, CLIENTS / "runpod_async.py")
    assert said["output"] == {"echo": {"kind": "echo", "n": 1}}
    assert said["status"] == "COMPLETED"
    assert said["stream"] == ["chunk 0", "chunk 1", "chunk 2"]
    assert said["purge_queue"] == {"removed": 1, "status": "completed"}
    assert said["cancel"]["status"] == "CANCELLED"
    check_the_end(said)


def test_the_javascript_client(serving, supervise):
    if shutil.which("node") is None or not Path(SDK, "node_modules/runpod-sdk").is_dir():
        pytest.skip("needs node, and RUNPOD_SDK: the folder in which `npm install runpod-sdk` was run")
    said = said_by(serving, supervise, "node", CLIENTS / "runpod_sdk.mjs")
    assert said["run"] == "IN_QUEUE"
    assert said["output"] == {"echo": {"kind": "echo", "n": 1}}
    assert said["runSync"] == {"echo": {"kind": "echo", "n": 2}}
    assert said["failed"] == "FAILED"
    assert said["stream"] == ["chunk 0", "chunk 1", "chunk 2"]
    assert said["purgeQueue"]["removed"] == 1
    assert said["cancel"] == "CANCELLED"
    check_the_end(said)
