"""The store's file: whose it is, who may open it, and what a death, a full disk or damage leaves of it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import supervisor
from supervisor.errors import LockedError, StoreError, StoreVersionError, TransitionError, UsageError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store import opening
from supervisor.store.sql import QUERIES
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, StartJob
from tests.store.numbered import numbered

CHILD = Path(__file__).parents[1] / "children" / "writes_jobs.py"
ROOT = Path(supervisor.__file__).parents[1]


@contextmanager
def child(file: Path, jobs: int, durability: str = "normal"):
    """A process that has the store open, commits ``jobs`` jobs (0: without end), and says the number of each."""
    command = [sys.executable, str(CHILD), str(file), str(jobs), durability]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def everything_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def insert(seq: int, size: int = 1) -> Insert:
    return Insert(seq, JobRequest(f"job-{seq}", b"1" * size), 10)


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_what_was_committed_survives_a_kill(file, durability):
    with child(file, 0, durability) as process:
        told = [int(process.stdout.readline()) for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    with Store.open(file) as store:
        assert told == list(range(1, told[-1] + 1))
        for seq in told:
            assert numbered(store, seq).output == b"%d" % seq
        assert store.next_seq - told[-1] in (1, 2)  # one more may have been committed and not told
        assert store.counts().jobs[JobStatus.COMPLETED] == store.next_seq - 1


def test_a_checkpoint_cut_short_damages_nothing(file):
    """By a kill or a full disk: some pages of the log are in the file, here the first, which says how long the file will be."""
    with child(file, 200) as process:
        for _ in range(200):
            process.stdout.readline()
    log = Path(f"{file}-wal").read_bytes()
    page_size = int.from_bytes(log[8:12], "big")  # https://sqlite.org/fileformat.html#the_write_ahead_log
    frames = range(32, len(log), 24 + page_size)
    last = max(at for at in frames if int.from_bytes(log[at : at + 4], "big") == 1)
    with file.open("r+b") as half:
        half.write(log[last + 24 : last + 24 + page_size])
    with Store.open(file) as store:
        assert store.counts().jobs[JobStatus.COMPLETED] == 200
        assert numbered(store, 200).output == b"200"


def test_it_opens_again_as_it_was_closed(file, bring, commit):
    with Store.open(file) as store:
        for seq, status in enumerate(JobStatus, 1):
            bring(store, seq, status)
        commit(store, StartJob(1, 20, "w"))
        jobs, counts = [numbered(store, seq) for seq in range(1, 7)], store.counts()
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # the log went into it
    with Store.open(file) as store:
        assert [numbered(store, seq) for seq in range(1, 7)] == jobs
        assert store.counts() == counts
        assert store.next_seq == 7


def test_a_second_opener_fails_at_once_and_learns_who_has_it(file):
    with child(file, 1) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(LockedError, match=re.escape(str(file))) as failure:
            Store.open(file)
        shown = [line.split()[-4:-2] for line in Path("/proc/locks").read_text().splitlines()]
    assert isinstance(failure.value, UsageError)
    status = file.stat()
    if [str(process.pid), f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"] in shown:
        assert f"(process {process.pid})" in str(failure.value)
    Store.open(file).close()  # the lock went with its process


def test_a_second_opener_in_the_same_process_does_not_break_the_lock(file, commit):
    with Store.open(file) as store:
        commit(store, insert(1))
        with pytest.raises(LockedError):
            Store.open(file)
        with child(file, 1) as process:
            assert process.stdout.readline() == b"LockedError\n"
        commit(store, insert(2))


def test_a_newer_version_is_refused_untouched(file):
    Store.open(file).close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {len(opening.STEPS) + 1}")
    file.chmod(0o640)
    before = everything_in(file.parent)
    with pytest.raises(StoreVersionError, match=re.escape(str(file))):
        Store.open(file)
    assert everything_in(file.parent) == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_newer_version_that_only_the_log_knows_is_refused(file):
    Store.open(file).close()
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 99")
    for suffix in ("", "-wal"):  # as a kill before the checkpoint leaves them
        copy = file.with_name(f"killed.db{suffix}")
        copy.write_bytes(file.with_name(f"{file.name}{suffix}").read_bytes())
    db.close()
    with pytest.raises(StoreVersionError):
        Store.open(file.with_name("killed.db"))


def another_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE letters (text)")


def store_of_before_the_release(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript("CREATE TABLE jobs (id); PRAGMA application_id = 1937076342; PRAGMA user_version = 3;")


def damaged_store(file: Path) -> None:
    Store.open(file).close()
    content = bytearray(file.read_bytes())
    content[100:] = b"\xa5" * (len(content) - 100)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (another_database, "another program"),
        (store_of_before_the_release, "before its first release; name another one with --store, or move this one away"),
        (lambda file: file.write_text("these are my notes, " * 50), "no job store"),
        (lambda file: file.mkdir(), "a folder"),
        (damaged_store, "damaged"),
    ],
)
def test_what_is_no_store_is_refused_untouched(tmp_path, spoil, words):
    file = tmp_path / "spoilt" / "jobs.db"
    file.parent.mkdir()
    spoil(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(StoreError, match=words) as failure:
        Store.open(file)
    assert str(file) in str(failure.value)
    assert (file.read_bytes() if file.is_file() else None) == before


def test_an_empty_file_becomes_a_store(file, commit):
    file.touch()
    with Store.open(file) as store:
        commit(store, insert(1))


def test_an_sqlite_that_is_too_old_is_named(file, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    with pytest.raises(StoreError, match=r"SQLite 3\.34\.1, .* needs 3\.35\.0"):
        Store.open(file)
    assert not file.exists()


@pytest.mark.parametrize(("durability", "synchronous", "locking"), [("normal", 1, "exclusive"), ("full", 2, "normal")])
def test_durability(file, commit, loop, sqlite_of, durability, synchronous, locking):
    with Store.open(file, durability=durability, deliver=loop.deliver) as store:
        assert sqlite_of(store).execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert sqlite_of(store).execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert sqlite_of(store).execute("PRAGMA locking_mode").fetchone() == (locking,)
        commit(store, insert(1))


def test_a_full_disk_costs_the_batch_and_nothing_else(store, commit, sqlite_of):
    commit(store, insert(1))
    counts = store.counts()
    (pages,) = sqlite_of(store).execute("PRAGMA page_count").fetchone()
    sqlite_of(store).execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StoreError, match="disk is full") as failure:
        commit(store, insert(2), insert(3, 1_000_000))
    assert not isinstance(failure.value, TransitionError)
    assert str(store.path) in str(failure.value)
    assert (store.get("job-2"), store.counts()) == (None, counts)
    commit(store, StartJob(1, 11, "w"), End(1, Outcome(JobStatus.COMPLETED, b"1"), 12))
    sqlite_of(store).execute("PRAGMA max_page_count = 1000000")
    commit(store, insert(2), insert(3, 1_000_000))


def test_a_failing_disk_costs_the_batch_and_nothing_else(file, commit, files_limited_to):
    with Store.open(file) as store:
        commit(store, insert(1))
        with files_limited_to(50_000), pytest.raises(StoreError, match="cannot be read or written"):
            commit(store, insert(2), insert(3, 1_000_000))
        assert (store.get("job-1").status, store.get("job-2")) == (JobStatus.IN_QUEUE, None)
        commit(store, insert(2), insert(3, 1_000_000))
    with Store.open(file) as store:
        assert [job.seq for job in store.queued(False, 0, 9)] == [1, 2, 3]


SCANS = {f"SCAN {table}" for table in ("jobs", "inputs", "chunks", "logs", "webhooks", "webhook_bodies")}
LOOKUPS = """
    queued running newest_ended delete_job get facts chunks next_seq queued_counts expired next_expiry page log log_end
    webhooks webhook_receivers webhook_body
"""


@pytest.mark.parametrize("query", LOOKUPS.split())
def test_no_query_reads_the_whole_table(file, sqlite_of, query):
    with Store.open(file) as store:
        text = QUERIES[query]
        plan = sqlite_of(store).execute(f"EXPLAIN QUERY PLAN {text}", (1,) * text.count("?")).fetchall()
    steps = [step for *_, step in plan]
    assert steps
    assert not [step for step in steps if step in SCANS or "TEMP B-TREE" in step]


def test_every_statement_is_one_that_the_store_uses():
    sources = "".join(path.read_text("utf-8") for path in Path(opening.__file__).parent.glob("*.py"))
    assert [name for name in QUERIES if f'"{name}"' not in sources] == []


def test_a_start_that_was_cut_short_before_it_made_a_table_is_simply_made_good(file: Path) -> None:
    db = sqlite3.connect(file)
    db.execute("PRAGMA journal_mode = WAL")  # writes the first page, and nothing of ours
    db.close()
    assert file.stat().st_size
    with Store.open(file) as store:
        assert store.next_seq == 1
