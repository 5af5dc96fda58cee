"""Durability ``full``: a commit is done once it is on the disk, nobody sees it before, and nobody waits for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import supervisor
from supervisor.errors import LockedError, StoreError, TransitionError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, StartJob
from tests.store.numbered import numbered

CHILD = Path(__file__).parents[1] / "children" / "writes_jobs.py"
ROOT = Path(supervisor.__file__).parents[1]


class Disk:
    """What the store's thread waits for before it ends a transaction; ``refusal``: why it cannot."""

    def __init__(self) -> None:
        self.refusal: StoreError | None = None
        self._free = threading.Semaphore(0)

    def write(self, times: int = 1) -> None:
        """Let so many transactions end."""
        self._free.release(times)

    def wait(self) -> StoreError | None:
        assert threading.current_thread() is not threading.main_thread()
        assert self._free.acquire(timeout=20)
        return self.refusal


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def store(file, loop, disk, monkeypatch):
    end = Store._end

    def slow_end(store: Store) -> StoreError | None:
        refusal = disk.wait()
        if refusal is not None:
            store._roll_back()
        return refusal or end(store)

    monkeypatch.setattr(Store, "_end", slow_end)
    with Store.open(file, durability="full", deliver=loop.deliver) as opened:
        yield opened
        disk.write(9)


def insert(seq: int) -> Insert:
    return Insert(seq, JobRequest(f"job-{seq}", b"1"), 10)


def test_nothing_is_seen_before_it_is_durable(store, loop, disk):
    answers: list[StoreError | None] = []
    store.commit([insert(1)], answers.append)
    assert (store.get("job-1"), store.counts().jobs[JobStatus.IN_QUEUE], store.next_seq) == (None, 0, 1)
    assert store.queued(False, 0, 9) == []
    assert answers == []
    disk.write()
    loop.turn()
    assert answers == [None]
    assert store.get("job-1").seq == 1
    assert (store.counts().jobs[JobStatus.IN_QUEUE], store.next_seq) == (1, 2)


def test_commits_and_deletions_keep_their_order(store, loop, disk):
    answers: list[str] = []

    def note(name: str):
        return lambda error: answers.append(name if error is None else type(error).__name__)

    outcome = Outcome(JobStatus.COMPLETED, b"1")
    store.commit([insert(1), StartJob(1, 11, "w"), End(1, outcome, 12)], note("first"))
    store.commit([insert(2), StartJob(1, 13, "w")], note("wrong"))
    store.commit([insert(2)], note("third"))
    assert store.retention.delete(100, 9) == 0  # it does not see the first yet
    disk.write()
    loop.turn()
    assert answers == ["first", "TransitionError"]
    assert store.retention.delete(100, 9) == 1
    store.commit([insert(1)], note("again"))  # the id is free by then
    assert numbered(store, 1).status is JobStatus.COMPLETED
    for _ in range(3):
        disk.write()
        loop.turn()
    assert answers == ["first", "TransitionError", "third", "again"]
    assert numbered(store, 1).status is JobStatus.IN_QUEUE
    assert store.counts().jobs == {**dict.fromkeys(JobStatus, 0), JobStatus.IN_QUEUE: 2}


def test_a_piece_that_is_being_deleted_is_not_begun_twice(store, loop, disk, bring, commit):
    disk.write()
    bring(store, 1, JobStatus.FAILED)
    disk.write()
    bring(store, 2, JobStatus.FAILED)
    assert store.retention.delete_oldest(1) == 1
    assert store.retention.delete_oldest(1) == 1  # there is something left to do
    disk.write()
    loop.turn()
    assert [numbered(store, seq) is None for seq in (1, 2)] == [True, False]


def test_a_disk_that_refuses_is_said_by_done_and_the_next_time_by_delete(store, loop, disk, bring):
    disk.write(9)
    bring(store, 1, JobStatus.FAILED)
    disk.refusal = StoreError("the disk is full")
    answers: list[StoreError | None] = []
    store.commit([insert(2)], answers.append)
    loop.turn()
    assert answers == [disk.refusal]
    assert (store.get("job-2"), store.counts().jobs[JobStatus.IN_QUEUE]) == (None, 0)
    assert store.retention.delete_oldest(9) == 1
    loop.turn()
    with pytest.raises(StoreError, match="the disk is full"):
        store.retention.delete_oldest(9)
    loop.turn()
    assert store.counts().jobs[JobStatus.FAILED] == 1
    disk.refusal = None
    store.commit([insert(2)], answers.append)
    loop.turn()
    assert (answers[1], store.get("job-2").seq) == (None, 2)


def test_what_is_wrong_is_said_at_once(store):
    answers: list[StoreError | None] = []
    store.commit([StartJob(9, 1, "w")], answers.append)
    assert isinstance(answers[0], TransitionError)


def test_closing_waits_for_the_disk_and_tells_nobody(file, loop, disk, monkeypatch, store):
    answers: list[StoreError | None] = []
    store.commit([insert(1)], answers.append)
    store.commit([insert(2)], answers.append)
    disk.write()
    store.close()
    store.close()
    assert answers == []
    monkeypatch.undo()
    with Store.open(file) as again:
        assert (again.get("job-1").seq, again.get("job-2")) == (1, None)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("first", ["normal", "full"])
@pytest.mark.parametrize("second", ["normal", "full"])
def test_a_second_opener_fails_at_once(file, loop, commit, first, second):
    with Store.open(file, durability=first, deliver=loop.deliver) as store:
        for _ in range(2):
            with pytest.raises(LockedError, match=re.escape(str(file))):
                Store.open(file, durability=second, deliver=loop.deliver)
            command = [sys.executable, str(CHILD), str(file), "1", second]
            other = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, input=b"", check=False
            )
            assert other.stdout == b"LockedError\n"
            commit(store, insert(store.next_seq))
    Store.open(file, durability=second, deliver=loop.deliver).close()


def test_its_files_are_readable_by_their_owner_alone(file, loop, commit):
    before = os.umask(0)
    try:
        with Store.open(file, durability="full", deliver=loop.deliver) as store:
            commit(store, insert(1))
            files = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert files == dict.fromkeys((file.name, f"{file.name}-wal", f"{file.name}-shm"), 0o600)


def test_it_needs_a_loop(file):
    with pytest.raises(ValueError, match="deliver"):
        Store.open(file, durability="full")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_each_commit_is_synced_before_it_is_told(file):
    child = [sys.executable, str(CHILD), str(file), "5", "full"]
    traced = subprocess.run(
        ["strace", "-f", "-y", "-e", "trace=write,fsync,fdatasync", *child],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        input="",
        text=True,
        check=False,
    )
    if not traced.stdout and "ptrace" in traced.stderr:
        pytest.skip("strace may not trace here")
    # A call that another thread's interrupted is shown twice: what counts is its end.
    synced = rf"(f(?:data)?sync)(?:\(\d+<[^>]*{re.escape(file.name)}-wal>| resumed>)\) += 0"
    steps = re.findall(rf'{synced}|write\(1<[^>]*>, "(\d)', traced.stderr)
    assert [number for _, number in steps if number] == ["1", "2", "3", "4", "5"]
    told = [at for at, (_, number) in enumerate(steps) if number]
    for before, at in zip([-1, *told], told, strict=False):
        assert at - before > 1  # at least one sync in between
