"""Factories for the store's tests: a store of each kind, a commit that raises, a job in any state."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from supervisor.errors import StoreError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, StartJob, Write

CREATED, STARTED, ENDED = 1_000, 2_000, 3_000

Commit = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


class Loop:
    """The loop of a store whose thread waits for the disk: what it delivers is called here, in the test's thread."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.deliver = self._calls.put

    def turn(self) -> None:
        """Wait for one delivery and have it."""
        self._calls.get(timeout=20)()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture(params=["memory", "file", "full"])
def store(request: pytest.FixtureRequest, file: Path, loop: Loop) -> Iterator[Store]:
    path = MEMORY if request.param == "memory" else file
    durability = "full" if request.param == "full" else "normal"
    with Store.open(path, durability=durability, deliver=loop.deliver) as opened:
        yield opened


@pytest.fixture
def commit(loop: Loop) -> Commit:
    def commit(store: Store, *writes: Write) -> None:
        answers: list[StoreError | None] = []
        store.commit(writes, answers.append)
        if not answers and waits_for_disk(store):
            loop.turn()
        (answer,) = answers  # once, and unless it waits for the disk before commit returned
        if answer is not None:
            raise answer

    return commit


@pytest.fixture
def delete(loop: Loop) -> Callable[[Store, int | None, int], int]:
    """Delete (``None``: the oldest, whenever they ended), and see that it is done."""

    def delete(store: Store, ended_before_ms: int | None, limit: int) -> int:
        old = store.retention
        number = old.delete_oldest(limit) if ended_before_ms is None else old.delete(ended_before_ms, limit)
        if number and waits_for_disk(store):
            loop.turn()
        return number

    return delete


def waits_for_disk(store: Store) -> bool:
    return store._committer is not None


@pytest.fixture
def bring(commit: Commit) -> Callable[..., str]:
    """Make job number ``seq`` and bring it to ``status`` by legal writes; its id."""

    def bring(store: Store, seq: int, status: JobStatus, *, ended_ms: int = ENDED) -> str:
        job_id = f"job-{seq}"
        writes: list[Write] = [Insert(seq, JobRequest(job_id, b'{"n": 1}'), CREATED)]
        if status not in (JobStatus.IN_QUEUE, JobStatus.CANCELLED):
            writes.append(StartJob(seq, STARTED, "gpu0-1"))
        if status.terminal:
            writes.append(End(seq, Outcome(status, b'"out"', "why"), ended_ms))
        commit(store, *writes)
        return job_id

    return bring


@pytest.fixture
def files_limited_to() -> Callable[[int], AbstractContextManager[None]]:
    """Writing to a file beyond so many bytes fails (EFBIG), as a failing disk does."""

    @contextmanager
    def files_limited_to(size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return files_limited_to


@pytest.fixture
def sqlite_of() -> Callable[[Store], sqlite3.Connection]:
    """The store's own connection, for what no caller may do."""

    def sqlite_of(store: Store) -> sqlite3.Connection:
        return store._db

    return sqlite_of
