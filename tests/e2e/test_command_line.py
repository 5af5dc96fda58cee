"""One test job, and the places that options come from, through the real program."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Runs

SAYS = """
import os, sys
print("on stdout", flush=True)

def handler(job):
    print("to stderr", file=sys.stderr)
    if job["input"] == "fail":
        return {"error": "as asked"}
    if job["input"] == "die":
        os._exit(3)
    return {"input": job["input"], "argv": sys.argv[1:], "endpoint": os.environ["RUNPOD_ENDPOINT_ID"], "refresh_worker": True}
"""
CPU = ("--gpus", "none")


@pytest.mark.parametrize(
    ("given", "code", "status"),
    [("{}", 0, "COMPLETED"), ('{"n": [1, 2.5, "ü"]}', 0, "COMPLETED"), ('"fail"', 1, "FAILED"), ('"die"', 1, "FAILED")],
)
def test_one_job(supervise: Runs, given: str, code: int, status: str) -> None:
    done = supervise.to_the_end(supervise.write("says.py", SAYS), *CPU, "--test-input", given, "--", "--fp16", "x")
    assert done.returncode == code, done.stderr
    body = json.loads(done.stdout)  # that and nothing else
    assert done.stdout.count("\n") == 1
    assert body["status"] == status
    if code == 0:
        assert body["output"] == {"input": json.loads(given), "argv": ["--fp16", "x"], "endpoint": "says"}
    else:
        assert body["error"]
    assert "on stdout" in done.stderr
    assert "to stderr" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_job_of_a_handler_that_cannot_be_loaded(supervise: Runs) -> None:
    done = supervise.to_the_end(supervise.write("bad.py", "raise ValueError('no')\n"), *CPU, "--test-input", "{}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "ValueError: no" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_one_job_that_is_interrupted_does_not_wait_for_the_next_start(supervise: Runs, signum: int) -> None:
    handler = supervise.write(
        "says.py", "import time\n\ndef handler(job):\n    print('at work')\n    time.sleep(3600)\n"
    )
    run = supervise(handler, *CPU, "--test-input", "1")
    run.wait_for_line("at work")
    run.kill(signum)
    assert run.wait() == 1
    run = supervise(handler, *CPU).ready()
    jobs = run.get("/health")["jobs"]
    assert (jobs["inQueue"], jobs["inProgress"]) == (0, 0)
    assert run.stop() == 0


def test_without_standard_streams(supervise: Runs, free_port: int) -> None:
    command = supervise.command(supervise.write("says.py", SAYS), *CPU, "--port", free_port)
    run = supervise.start(["bash", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "bash", *command])
    run.port = free_port

    def answers() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return run.ask("GET", "/readyz").status == 200
        return False

    run.until(answers)
    assert run.runsync(1)["status"] == "COMPLETED"
    assert run.stop() == 0


def test_where_options_come_from(supervise: Runs) -> None:
    supervise.write("serve.py", SAYS)
    config = supervise.write(
        "supervise.toml", 'gpus = "none"\nworkers = 3\nendpoint-id = "from-the-file"\nhandler_args = ["a", "b"]\n'
    )
    env = {"SUPERVISE_WORKERS": "2", "SUPERVISE_CONFIG": str(config), "SUPERVISE_REFRESH_AFTER_JOBS": "1"}
    run = supervise("--max-queue", 7, "serve.py", env=env).ready("cpu0", "cpu1")
    assert sorted(run.workers()) == ["cpu0", "cpu1"]
    body = run.runsync(1)
    assert body["output"] == {"input": 1, "argv": ["a", "b"], "endpoint": "from-the-file"}
    assert run.get("/v2/from-the-file/health")["jobs"]["completed"] == 1
    assert run.stop() == 0


def test_a_handler_with_the_name_of_a_command(supervise: Runs) -> None:
    supervise.write("top.py", SAYS)
    done = supervise.to_the_end("serve", "top", *CPU, "--test-input", "1")
    assert json.loads(done.stdout)["output"]["endpoint"] == "top"


def test_the_default_store_and_help(supervise: Runs, tmp_path: Path) -> None:
    supervise.write("says.py", SAYS)
    command = supervise.command("says.py", *CPU)
    at = command.index("--store")
    del command[at : at + 2]
    run = supervise.start(command).ready()
    assert run.runsync(1)["status"] == "COMPLETED"
    assert run.stop() == 0
    folder = tmp_path / ".supervise"
    assert (folder / "says.db").exists()
    assert folder.stat().st_mode & 0o077 == 0
    done = supervise.to_the_end("--help")
    assert done.returncode == 0
    assert "--simulate-gpus" in done.stdout
