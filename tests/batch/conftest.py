"""What the tests of batches share: a folder with a handler, and ``supervise --input`` run there as a person would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0

ECHO = """
import os

def handler(job):
    with open("calls", "a") as calls:
        calls.write(job["id"] + "\\n")
    value = job["input"]
    if isinstance(value, dict) and "gate" in value and os.path.exists(value["gate"]):
        open(value["gate"]).read()
    if value == "raise":
        raise ValueError("as told")
    if value == "exit":
        os._exit(7)
    return {"id": job["id"], "got": value}
"""


class Batches:
    """Runs batches in ``folder``, on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._running: list[subprocess.Popen[bytes]] = []
        self.handler = "echo.py"
        (folder / self.handler).write_text(ECHO)

    def command(self, *arguments: object) -> list[str]:
        own = [
            sys.executable,
            ROOT / "bin/supervise",
            self.handler,
            "--gpus",
            "none",
            "--lock-dir",
            self.folder / "locks",
        ]
        return list(map(str, [*own, *arguments]))

    def start(self, *arguments: object, **streams: Any) -> subprocess.Popen[bytes]:
        """Start one and wait for nothing."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISE_")}
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **streams,
        }
        run = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env={**environ, "TMPDIR": str(self.temporary), "TERM": "xterm"},
            start_new_session=True,
            **options,
        )
        self._running.append(run)
        return run

    def __call__(self, *arguments: object, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run one to its end, with ``given`` on its standard input."""
        run = self.start(*arguments, stdin=subprocess.DEVNULL if given is None else subprocess.PIPE)
        out, err = run.communicate(given, timeout=DEADLINE_S)
        return subprocess.CompletedProcess(run.args, run.returncode, out, err)

    def write(self, *lines: object, name: str = "in.jsonl") -> Path:
        """A file of ``lines``: bytes as they are, other things as JSON."""
        path = self.folder / name
        path.write_bytes(
            b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        )
        return path

    def results(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """The output's lines in the order of the input; each must be there once."""
        return in_order((self.folder / name).read_bytes())

    def calls(self) -> list[str]:
        """The ids of the jobs that the handler was called for."""
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"echo.py", "tmp", "calls", "locks", "__pycache__"}

    def until(self, reached: Callable[[], object]) -> None:
        """Wait for what another process does to a file: there is nothing that would tell."""
        deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
        while not reached():
            assert time.monotonic() < deadline, "it did not come to that"
            pause.wait(0.01)

    def close(self) -> None:
        for run in self._running:
            if run.poll() is None:
                run.kill()
            run.wait()
            for stream in (run.stdin, run.stdout, run.stderr):
                if stream is not None:
                    stream.close()


def in_order(output: bytes) -> list[dict[str, Any]]:
    assert output.endswith(b"\n") or not output
    results: list[dict[str, Any]] = sorted(map(json.loads, output.splitlines()), key=lambda result: result["line"])
    numbers = [result["line"] for result in results]
    assert len(set(numbers)) == len(numbers), "a line was answered twice"
    return results


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batches]:
    batches = Batches(tmp_path)
    yield batches
    batches.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO at which the handler waits while it is there; who opens it for writing lets the handler go on."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path
