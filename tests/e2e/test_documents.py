"""What the README and ``docs/`` show, run: the blocks of code that are marked ``run``, ``handler`` or ``client``.

The example handler is served as the pages say it is, on simulated GPUs, but its steps take no time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Runs, Supervise

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8900")
DEADLINE_S = 40.0


def blocks(page: Path, language: str, mark: str) -> list[str]:
    """The blocks of code of a page that are so marked."""
    return re.findall(rf"^```{language} {mark}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def marked(language: str, mark: str) -> list[Any]:
    """Those of all pages, as parameters of a test."""
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, language, mark))
    ]


class Shell:
    """Runs what a reader types, with ``supervise`` on the path and the server of this test at the address that is written."""

    def __init__(self, runs: Runs) -> None:
        program = runs.folder / "bin/supervise"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/bin/supervise" "$@"\n')
        program.chmod(0o755)
        self._runs = runs
        self.environ = {**runs.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        self._port = 8900

    def serve(self) -> Supervise:
        """The quick start's handler on two simulated GPUs."""
        source = (ROOT / "handlers/my_handler.py").read_text()
        quick = source.replace('"seconds", 2,', '"seconds", 0,')
        assert quick != source
        run = self._runs(self._runs.write("my_handler.py", quick), "--simulate-gpus", 2).ready("gpu0", "gpu1")
        self._port = run.port
        self.environ |= {
            "SUPERVISE_URL": f"http://127.0.0.1:{run.port}",
            "RUNPOD_ENDPOINT_BASE_URL": f"http://127.0.0.1:{run.port}/v2",
        }
        return run

    def run(self, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        here = [ADDRESS.sub(rf"\1:{self._port}", word) for word in command]
        return subprocess.run(here, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=DEADLINE_S)

    def python(self, source: str) -> str:
        """What a program prints that is run in a clone of the repository."""
        done = self.run(sys.executable, "-c", source)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def shell(supervise: Runs) -> Shell:
    return Shell(supervise)


def is_calm(run: Supervise) -> bool:
    """Whether no job is there, and each slot has done what it was asked to."""
    jobs = run.get("/health")["jobs"]
    states = {worker["state"] for worker in run.workers().values()}
    return states <= {"idle", "parked"} and jobs["inQueue"] == jobs["inProgress"] == 0


@pytest.mark.timeout(180)  # many short programs, one after the other
@pytest.mark.parametrize("pages", [PAGES[:1], PAGES[1:]], ids=["README", "docs"])
def test_commands(shell: Shell, pages: list[Path]) -> None:
    run = shell.serve()
    for line in "".join(text for page in pages for text in blocks(page, "sh", "run")).splitlines():
        if all(shutil.which(tool) for tool in ("curl", "jq") if re.search(rf"\b{tool} ", line)):
            run.until(lambda: is_calm(run))
            done = shell.run("bash", "-c", "set -o pipefail\n" + line.replace("curl ", "curl -fsS "))
            no_gpu = line.startswith("supervise gpus") and done.returncode == 1
            assert done.returncode == 0 or no_gpu, (line, done.stdout, done.stderr)
    assert run.stop() == 0


@pytest.mark.parametrize("text", marked("python", "handler"))
def test_handlers(shell: Shell, supervise: Runs, text: str) -> None:
    file = supervise.write("handler.py", text)
    done = supervise.to_the_end(file, "--gpus", "none", "--test-input", '{"prompt": "a cat", "text": "one two"}')
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)["output"]
    assert output in ({"prompt": "a cat"}, {"words": 2})


@pytest.mark.parametrize("text", marked("python", "run"))
def test_programs(shell: Shell, text: str) -> None:
    assert "'prompt': 'a lighthouse'" in shell.python(text)


@pytest.mark.parametrize("text", marked("python", "client"))
def test_clients_in_python(shell: Shell, text: str) -> None:
    if find_spec("runpod") is None:
        pytest.skip("the runpod package is not installed")
    run = shell.serve()
    assert "'prompt': 'a lighthouse'" in shell.python(text)
    assert run.stop() == 0


@pytest.mark.parametrize("text", marked("js", "client"))
def test_clients_in_javascript(shell: Shell, text: str) -> None:
    folder = os.environ.get("RUNPOD_SDK")
    if not folder or shutil.which("node") is None:
        pytest.skip("RUNPOD_SDK does not name a folder with runpod-sdk, or there is no node")
    run = shell.serve()
    done = shell.run("node", "--input-type=module", "--eval", text, cwd=Path(folder))
    assert "prompt: 'a lighthouse'" in done.stdout, done.stderr
    assert run.stop() == 0


def test_there_are_such_blocks() -> None:
    kinds = [("sh", "run"), ("python", "handler"), ("python", "run"), ("python", "client"), ("js", "client")]
    assert all(marked(*kind) for kind in kinds)
