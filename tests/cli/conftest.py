"""What the tests of the command line share: a folder with a handler, and ``supervise`` run in it as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the file ``handler.py`` in it, and an environment without options."""
    (tmp_path / "handler.py").write_text("def handler(job): return 1\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SUPERVISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def supervise(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``bin/supervise`` with arguments and gives what it said."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "bin/supervise"), *arguments]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )

    return run
