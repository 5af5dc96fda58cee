"""Supervisors in this process, over real workers; and programs that have one, in processes of their own."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0

HANDLER = """
import os, signal, sys, time
from supervisor import serverless

def handler(job):
    given = job["input"]
    if not isinstance(given, dict):
        return given
    if "raise" in given:
        raise ValueError(given["raise"])
    if "signal" in given:
        print("last words", flush=True)
        os.kill(os.getpid(), given["signal"])
    if "exit" in given:
        sys.exit(given["exit"])
    if "hold" in given:
        serverless.progress_update(job, {"pid": os.getpid()})
        while not os.path.exists(given["hold"]):
            time.sleep(0.005)
    if "seen" in given:
        return {name: job.get(name) for name in ("webhook", "policy", "s3Config")}
    return given

serverless.start({"handler": handler})
"""

STREAM = """
def handler(job):
    for number in range(job["input"]["count"]):
        yield {"number": number}
    if "raise" in job["input"]:
        raise ValueError(job["input"]["raise"])
"""


@pytest.fixture
def write(tmp_path):
    """``write(source, name)``: a handler file."""

    def make(source, name="house_handler.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source))
        return str(path)

    return make


@pytest.fixture
def make(write, tmp_path):
    """``make(source=HANDLER, **options)``: a supervisor on the CPU that has not started."""

    def supervisor(source=HANDLER, **options):
        return Supervisor(write(source), **{"gpus": "none", "grace": 0.5, **options})

    return supervisor


@pytest.fixture(scope="module")
def sv(tmp_path_factory):
    """One worker, for all tests of a file."""
    with _shared(tmp_path_factory, HANDLER) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def stream_sv(tmp_path_factory):
    """One worker with a generator, for all tests of a file."""
    with _shared(tmp_path_factory, STREAM) as supervisor:
        yield supervisor


def _shared(tmp_path_factory, source):
    path = tmp_path_factory.mktemp("shared") / "house_handler.py"
    path.write_text(source)
    return Supervisor(str(path), gpus="none", grace=0.5)


@pytest.fixture
def held(tmp_path):
    """An input whose job runs until ``held.release()``, and how to wait until it runs."""
    held = Held(tmp_path / "go")
    yield held
    held.release()  # a supervisor that drains waits for the job


class Held:
    def __init__(self, path):
        self.input = {"hold": str(path)}
        self.release = path.touch

    @staticmethod
    def runs(job):
        """Wait until the job runs and has said its worker's pid."""
        until(lambda: job.progress() is not None)
        return job.progress()["pid"]


def until(reached):
    """Wait, with a deadline, for what no descriptor tells."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


@pytest.fixture
def wait_until():
    return until


@pytest.fixture
def run_program(write, tmp_path):
    """``run_program(source)`` runs a program with the handler's path as its argument; gives the process, its output in a pipe."""
    processes = []

    def run(source, *arguments):
        program = write(source, "program.py")
        process = subprocess.Popen(
            [sys.executable, program, write(HANDLER), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
