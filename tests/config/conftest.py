"""What the tests of the settings share: a folder with a handler in it, as the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.resolve import settings_from_command_line
from supervisor.config.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder but for the file ``handler.py``."""
    (tmp_path / "handler.py").write_text("def handler(job): return 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., Settings]:
    """Settings from a command line for ``handler.py``, an environment and the text of a config file."""

    def make(
        environ: dict[str, str] | None = None, toml: str | None = None, terminal: bool = False, **words: Any
    ) -> Settings:
        words.setdefault("handler", "handler.py")
        if toml is not None:
            (folder / "supervise.toml").write_text(toml)
            words.setdefault("config", "supervise.toml")
        return settings_from_command_line(words, terminal=terminal, environ=environ or {})

    return make
