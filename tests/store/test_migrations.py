"""A store that an older version wrote becomes one of this version: whole, in one step, and nothing of it is lost."""

from __future__ import annotations

import os
import shutil
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
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.store.opening import VERSION
from supervisor.store.store import Store
from supervisor.store.writes import AddChunk, End, Insert, Start
from tests.store.numbered import numbered

HERE = Path(__file__).parent
CHILD = HERE.parent / "children" / "opens_store.py"
ROOT = Path(supervisor.__file__).parents[1]
LARGE = 100
"""Jobs with outputs of 20 KB beside those of the script, where the work is to take a while."""

INPUT = b'"' + b"in" * 10_000 + b'"'
OUTPUT = b'"' + b"out" * 100_000 + b'"'
JOBS = [
    Job(2, "completed", JobStatus.COMPLETED, b'{"n": 2}', 1002, b'{"webhook": "http://x"}', attempts=1, started_ms=2000)
    .replace(worker_id="gpu0-1", ended_ms=3001, output=OUTPUT),
    Job(3, "failed", JobStatus.FAILED, b'{"n": 3}', 1003, attempts=1, started_ms=2000, worker_id="gpu0-1")
    .replace(ended_ms=3003, error="broke: é"),
    Job(4, "cancelled", JobStatus.CANCELLED, b'{"n": 4}', 1004, low_priority=True, ended_ms=3004),
    Job(5, "timed-out", JobStatus.TIMED_OUT, b'{"n": 5}', 1005, attempts=1, started_ms=2000, worker_id="gpu0-1")
    .replace(ended_ms=3005, chunks=2, chunks_taken=1, streamed=True),
    Job(6, "running-ü", JobStatus.IN_PROGRESS, INPUT, 1006, has_s3_config=True, attempts=1, started_ms=2000)
    .replace(worker_id="gpu0-1"),
    Job(7, "low", JobStatus.IN_QUEUE, b'{"n": 7}', 1007, low_priority=True),
    Job(8, "put-back", JobStatus.IN_QUEUE, b'{"n": 8}', 1008, attempts=1, retries=1),
    Job(9, "streams", JobStatus.IN_PROGRESS, b'{"n": 9}', 1009, attempts=1, started_ms=2009, worker_id="gpu1-4", chunks=3),
    Job(10, "newest", JobStatus.IN_QUEUE, b'{"n": 10}', 1010),
]  # fmt: skip


@pytest.fixture
def version_1(file: Path) -> Callable[..., Path]:
    """Make a store of version 1 at ``file``, as a kill leaves it: a part of it is in the log only."""

    def make(large: int = 0) -> Path:
        with closing(sqlite3.connect(file.with_name("open.db"), isolation_level=None)) as db:
            db.executescript((HERE / "version1.sql").read_text("utf-8"))
            for seq in range(11, 11 + large):
                db.execute(
                    "INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, input) "
                    "VALUES (?, ?, 'IN_QUEUE', 0, 0, 1, x'31')",
                    (seq, f"job-{seq}"),
                )
                db.execute(
                    "UPDATE jobs SET status = 'CANCELLED', ended_ms = 3, output = ZEROBLOB(20000) WHERE seq = ?", (seq,)
                )
            for suffix in ("", "-wal"):
                shutil.copy(file.with_name(f"open.db{suffix}"), f"{file}{suffix}")
                Path(f"{file}{suffix}").chmod(0o600)
        file.with_name("open.db").unlink()
        return file

    return make


def schema_of(file: Path) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(file)) as db:
        return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def version_in(file: Path) -> int:
    """As the file alone says, without its log: there an older program looks for it."""
    return int.from_bytes(file.read_bytes()[60:64], "big")  # https://sqlite.org/fileformat.html#user_version_number


def test_every_job_is_there_as_it_was(version_1, commit):
    with Store.open(version_1()) as store:
        assert [numbered(store, seq) for seq in range(1, 12)] == [None, *JOBS, None]
        assert [store.get(job.id) for job in JOBS] == JOBS
        assert store.counts().jobs == {status: sum(job.status is status for job in JOBS) for status in JobStatus}
        assert store.counts().retried == 1
        assert store.next_seq == 11
        assert store.with_s3_config() == ["running-ü"]
        assert (store.chunks(5), store.chunks(9)) == ([(0, b"0"), (1, b"1")], [(0, b"0"), (1, b"1"), (2, b"2")])
        assert [job.seq for job in store.queued(False, 0, 9)] == [8, 10]
        assert [job.seq for job in store.queued(True, 0, 9)] == [7]
        assert [job.seq for job in store.newest_ended(9)] == [5, 4, 3, 2]
        # and they go on as any others
        commit(store, AddChunk(9, 1, 3, b"3"), End(9, Outcome(JobStatus.COMPLETED, b"1"), 4000), Start(10, 4001, "w"))
        commit(store, Insert(11, JobRequest("another", b"1"), 4002))
        assert store.retention.forget(3004, 9) == 2


def test_its_tables_are_those_of_a_new_store(version_1, tmp_path):
    new = tmp_path / "new.db"
    Store.open(new).close()
    file = version_1()
    with closing(sqlite3.connect(new)) as db:
        transitions = db.execute("SELECT * FROM transitions").fetchall()
    Store.open(file).close()
    assert schema_of(file) == schema_of(new)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT * FROM transitions").fetchall() == transitions
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_it_is_said_once_and_is_in_the_file_at_once(version_1):
    file = version_1()
    assert version_in(file) == 1
    notes: list[str] = []
    with Store.open(file, note=notes.append):
        assert version_in(file) == VERSION
        assert len(notes) == 1
        assert f"{file}: " in notes[0]
        assert f"from version 1 to {VERSION}" in notes[0]
    with Store.open(file, note=notes.append):
        assert len(notes) == 1


def test_durability_full_takes_it_as_well(version_1, loop):
    with Store.open(version_1(), durability="full", deliver=loop.deliver) as store:
        assert [numbered(store, job.seq) for job in JOBS] == JOBS


def test_the_file_does_not_grow_to_twice_its_size(version_1):
    file = version_1(LARGE)
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    size = file.stat().st_size
    Store.open(file).close()
    assert size > LARGE * 20_000
    assert file.stat().st_size < size + LARGE * 20_000 / 2


@pytest.mark.parametrize("limit_kb", [1, 500, 1500, 2300])
def test_a_kill_in_the_middle_leaves_it_as_it_was(version_1, limit_kb):
    """The kernel kills the process (SIGXFSZ) as it writes the log beyond a limit, wherever it is then."""
    file = version_1(LARGE)
    killed = subprocess.run(
        [sys.executable, str(CHILD), str(file), str(limit_kb * 1000)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGXFSZ
    assert version_in(file) == 1
    notes: list[str] = []
    with Store.open(file, note=notes.append) as store:
        assert len(notes) == 1  # it was not done, and is now
        assert [numbered(store, job.seq) for job in JOBS] == JOBS
        assert store.counts().jobs[JobStatus.CANCELLED] == 1 + LARGE


def test_a_disk_that_refuses_leaves_it_as_it_was(version_1, files_limited_to):
    file = version_1(LARGE)
    with files_limited_to(1_000_000), pytest.raises(StoreError, match="cannot be read or written"):
        Store.open(file)
    assert version_in(file) == 1
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT COUNT(*) FROM jobs").fetchone() == (len(JOBS) + LARGE,)
    with Store.open(file) as store:
        assert [numbered(store, job.seq) for job in JOBS] == JOBS
