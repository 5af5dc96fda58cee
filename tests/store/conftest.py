"""Factories for the store's tests: a store of each kind, a commit that raises, a job in any state."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.errors import StoreError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, Start, Write

CREATED, STARTED, ENDED = 1_000, 2_000, 3_000

Commit = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, file: Path) -> Iterator[Store]:
    with Store.open(MEMORY if request.param == "memory" else file) as opened:
        yield opened


@pytest.fixture
def commit() -> Commit:
    def commit(store: Store, *writes: Write) -> None:
        answers: list[StoreError | None] = []
        store.commit(writes, answers.append)
        (answer,) = answers  # once, and before commit returned
        if answer is not None:
            raise answer

    return commit


@pytest.fixture
def bring(commit: Commit) -> Callable[..., str]:
    """Make job number ``seq`` and bring it to ``status`` by legal writes; its id."""

    def bring(store: Store, seq: int, status: JobStatus, *, ended_ms: int = ENDED) -> str:
        job_id = f"job-{seq}"
        writes: list[Write] = [Insert(seq, JobRequest(job_id, b'{"n": 1}'), CREATED)]
        if status not in (JobStatus.IN_QUEUE, JobStatus.CANCELLED):
            writes.append(Start(seq, STARTED, "gpu0-1"))
        if status.terminal:
            writes.append(End(seq, Outcome(status, b'"out"', "why"), ended_ms))
        commit(store, *writes)
        return job_id

    return bring


@pytest.fixture
def sqlite_of() -> Callable[[Store], sqlite3.Connection]:
    """The store's own connection, for what no caller may do."""

    def sqlite_of(store: Store) -> sqlite3.Connection:
        return store._db

    return sqlite_of
