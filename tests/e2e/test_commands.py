"""The client commands as a person uses them: real processes of their own, against a real supervisor."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.nvml import NO_PID_HERE, FakeNvml

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

DEADLINE_S = 20.0
ROOT = Path(__file__).parents[2]
HANDLER = '''
"""Takes memory of its GPU, prints, waits at a gate and prints again: all if told to."""
import os
from pathlib import Path

def handler(job):
    given = job["input"]
    print("begins with", given, flush=True)
    if "mib" in given:
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        Path(os.environ["FAKE_NVML"], "alloc", gpu, str(os.getpid())).write_text(str(given["mib"]))
    if "gate" in given:
        open(given["gate"]).read()
    if "fail" in given:
        raise ValueError(given["fail"])
    print("ends", flush=True)
    return given

'''
STREAMS = """
def handler(job):
    yield "a cat"
    open(job["input"]).read()
    yield " sat"
"""


class Process:
    """A client command."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdout, self.stderr = process.stdout, process.stderr
        self._process = process

    def says(self, text: str) -> None:
        """Wait until it has written ``text``, which must be next."""
        written = b""
        while written != text.encode():
            ready, _, _ = select.select([self.stdout], [], [], DEADLINE_S)
            piece = os.read(self.stdout.fileno(), len(text.encode()) - len(written)) if ready else b""
            assert piece, f"it says {written!r}, then no more"
            written += piece

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def ends(self) -> tuple[int, str, str]:
        """Exit code and the rest of its output, once it has ended."""
        out, said = self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode, out.decode(), said.decode()


class Commands:
    """Runs client commands."""

    def __init__(self, supervise: Runs, run: Supervise, **env: str) -> None:
        self._folder = supervise.folder
        self._environ = {**supervise.environ, "SUPERVISE_URL": f"http://127.0.0.1:{run.port}", **env}

    @contextlib.contextmanager
    def start(self, *arguments: object) -> Iterator[Process]:
        """A command that runs during the block, and no longer."""
        command = [sys.executable, str(ROOT / "bin/supervise"), *map(str, arguments)]
        # Started in the background of a script, these tests run with SIGINT ignored, and that is inherited.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heed,  # noqa: PLW1509 - it takes no lock
        ) as process:
            try:
                yield Process(process)
            finally:
                process.kill()

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code and output, once it has ended."""
        with self.start(*arguments) as process:
            return process.ends()

    def json(self, *arguments: object) -> list[dict[str, Any]]:
        """The lines that a command printed that must succeed."""
        code, out, said = self(*arguments)
        assert (code, said) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path / "nvml", gpus=2)


def test_a_day_with_it(supervise: Runs, fake: FakeNvml, make_gate: Callable[[], Gate]) -> None:
    run = supervise(supervise.write("work.py", HANDLER), env={**fake.env(), "SUPERVISE_API_KEYS": "very-secret"})
    run.headers["authorization"] = "Bearer very-secret"
    run.ready("gpu0", "gpu1")
    ask = Commands(supervise, run, **fake.env(), SUPERVISE_API_KEY="very-secret")

    gate = make_gate()
    code, job, said = ask("submit", f"gate={gate.path}", "mib:=2000")
    assert (code, said) == (0, "")
    job = job.strip()
    gate.reached()
    (status,) = ask.json("status", job)
    assert status["status"] == "IN_PROGRESS"
    slot = status["workerId"].partition("-")[0]

    # What NVML shows, who holds it, and which process belongs to whom.
    gpus = ask.json("gpus", "--lock-dir", supervise.folder / "locks")
    assert [(gpu["index"], gpu["uuid"]) for gpu in gpus] == [(0, fake.uuid(0)), (1, fake.uuid(1))]
    assert all(gpu["holder"]["pid"] == run.pid for gpu in gpus)
    pid = run.workers()[slot]["pid"]
    (process,) = gpus[int(slot[-1])]["processes"]
    assert (process["pid"], process["memoryMiB"], process["supervisor"]) == (pid, 2000, run.pid)
    fake.shift(NO_PID_HERE)
    gpus = ask.json("gpus", "--lock-dir", supervise.folder / "locks")
    (process,) = gpus[int(slot[-1])]["processes"]
    assert (process["pid"], process["visible"], process["supervisor"]) == (NO_PID_HERE + pid, False, None)

    with ask.start("logs", "-f", job) as following:
        following.says("begins with")
        gate.open()
        code, out, said = following.ends()
        assert (code, out.splitlines()[-1], said) == (0, "ends", "")
    (status,) = ask.json("status", job, "--wait")
    assert (status["status"], status["output"]) == ("COMPLETED", {"gate": gate.path, "mib": 2000})

    code, out, _ = ask("submit", "fail=no such prompt", "--id", "mine", "--wait")
    assert (code, json.loads(out)["status"]) == (1, "FAILED")
    assert [line["id"] for line in ask.json("jobs", "--status", "failed")] == ["mine"]
    assert ask.json("retry", "mine") == [{"id": "mine", "status": "IN_QUEUE"}]
    run.ended("mine")
    code, out, _ = ask("cancel", "mine")
    assert (code, json.loads(out)) == (1, {"id": "mine", "status": "FAILED"})

    assert ask.json("workers", "--refresh", slot) == [{"slot": slot, "status": "refreshing"}]
    run.until(lambda: run.workers()[slot]["refreshes"] == 1)
    assert {line["slot"] for line in ask.json("workers")} == {"gpu0", "gpu1"}


def test_a_log_is_followed_over_a_restart(supervise: Runs, make_gate: Callable[[], Gate], free_port: int) -> None:
    handler, gate = supervise.write("work.py", HANDLER), make_gate()
    options = (handler, "--gpus", "none", "--port", free_port)
    run = supervise(*options).ready()
    ask = Commands(supervise, run)
    job = run.run({"gate": gate.path})
    gate.reached()
    with ask.start("logs", "-f", job) as following:
        following.says("begins with")
        run.kill()
        run.wait()
        gate.close()
        supervise(*options).listening()
        gate.open()
        code, out, said = following.ends()
        assert (code, out.splitlines()[-1], said) == (0, "ends", "")


def test_chunks_come_as_they_are_yielded_and_ctrl_c_leaves_them(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    run = supervise(supervise.write("streams.py", STREAMS), "--gpus", "none").ready()
    ask = Commands(supervise, run)
    with ask.start("submit", json.dumps(gate.path), "--id", "j", "--stream") as submitting:
        submitting.says("a cat")
        with ask.start("stream", "j") as watching:
            watching.says("a cat")
            watching.interrupt()
            assert watching.ends() == (130, "\n", "\n")
        gate.open()
        assert submitting.ends() == (0, " sat\n", "")
    assert ask("logs", "j") == (0, "", "")


def test_a_reader_that_has_seen_enough(supervise: Runs) -> None:
    run = supervise(supervise.write("work.py", HANDLER), "--gpus", "none").ready()
    run.runsync({})
    with Commands(supervise, run).start("jobs") as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
