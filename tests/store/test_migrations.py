"""A store that an older version wrote becomes one of this version: each step whole or not at all, and nothing of it is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import supervisor
from supervisor.errors import StoreError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store import opening
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert

CHILD = Path(__file__).parents[1] / "children" / "opens_store.py"
ROOT = Path(supervisor.__file__).parents[1]
JOBS = 100
OUTPUT = b'"' + b"out" * 7_000 + b'"'
STEP = """
ALTER TABLE jobs ADD COLUMN colour TEXT;
UPDATE jobs SET colour = 'red', output = CAST(output || ' ' AS BLOB);
"""
"""It writes every job anew, so it takes a while and much of the log."""


@pytest.fixture
def old(file: Path, commit: Callable[..., None]) -> Path:
    """A store as this version leaves it, with many jobs."""
    with Store.open(file) as store:
        for seq in range(1, JOBS + 1):
            request = JobRequest(f"job-{seq}", b"1")
            commit(store, Insert(seq, request, 1), End(seq, Outcome(JobStatus.CANCELLED, OUTPUT), 3))
    return file


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Have one step more, as a later version has."""

    def step(script: str) -> Path:
        path = tmp_path / f"step{len(opening.STEPS) + 1}.sql"
        path.write_text(script, "utf-8")
        monkeypatch.setattr(opening, "STEPS", (*opening.STEPS, path))
        return path

    return step


def version_in(file: Path) -> int:
    with closing(sqlite3.connect(file)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def schema_of(file: Path) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(file)) as db:
        return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def is_as_it_was(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as db:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(jobs)")]
        outputs = db.execute("SELECT output FROM jobs").fetchall()
    return version_in(file) == 1 and "colour" not in columns and outputs == [(OUTPUT,)] * JOBS


def test_the_steps_that_a_store_lacks_are_made_in_order_and_said_once(old, step, tmp_path):
    notes: list[str] = []
    step(STEP)
    step("UPDATE jobs SET colour = colour || '!';")
    for _ in range(2):
        with Store.open(old, note=notes.append) as store:
            assert store.counts().jobs[JobStatus.CANCELLED] == JOBS
            assert store.get("job-7").output == OUTPUT + b" "
    (note,) = notes
    assert f"{old}: " in note
    assert "from version 1 to 3" in note
    with closing(sqlite3.connect(old)) as db:
        assert db.execute("SELECT DISTINCT colour FROM jobs").fetchall() == [("red!",)]
    new = tmp_path / "new.db"
    Store.open(new, note=notes.append).close()
    assert version_in(new) == version_in(old) == 3
    assert schema_of(new) == schema_of(old)
    assert len(notes) == 1  # a new one is not brought from anywhere


def test_durability_full_takes_it_as_well(old, step, loop):
    step(STEP)
    with Store.open(old, durability="full", deliver=loop.deliver) as store:
        assert store.get("job-7").output == OUTPUT + b" "


def test_a_step_that_fails_leaves_it_as_it_was(old, step):
    step(STEP + "UPDATE missing SET x = 1;")
    with pytest.raises(StoreError, match="no such table"):
        Store.open(old)
    assert is_as_it_was(old)


@pytest.mark.parametrize("limit_kb", [1, 500, 1500, 2000])
def test_a_kill_in_the_middle_leaves_it_as_it_was(old, step, limit_kb):
    """The kernel kills the process (SIGXFSZ) as it writes the log beyond a limit, wherever it is then."""
    killed = subprocess.run(
        [sys.executable, str(CHILD), str(old), str(step(STEP)), str(limit_kb * 1000)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGXFSZ
    assert is_as_it_was(old)
    with Store.open(old) as store:  # it was not done, and is now
        assert store.get("job-7").output == OUTPUT + b" "


def test_a_disk_that_refuses_leaves_it_as_it_was(old, step, files_limited_to):
    step(STEP)
    with files_limited_to(1_000_000), pytest.raises(StoreError, match="cannot be read or written"):
        Store.open(old)
    assert is_as_it_was(old)
    Store.open(old).close()
    assert version_in(old) == 2
