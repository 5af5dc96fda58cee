from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from supervisor.gpu.client import Reader, ReaderEvent
from supervisor.gpu.records import Reading, Unwatched, WorkerRef
from tests.fakes.nvml import FakeNvml

DEADLINE = 20.0


@pytest.fixture
def fake_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Two fake GPUs that every process started by the test sees."""
    fake = FakeNvml(tmp_path / "nvml", gpus=2)
    for name, value in fake.env().items():
        monkeypatch.setenv(name, value)
    return fake


class Driver:
    """Does with a ``Reader`` what the supervisor's loop does with it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def next_events(self) -> list[ReaderEvent]:
        """Wait for the next events, by descriptor and deadline."""
        until = time.monotonic() + DEADLINE
        while (now := time.monotonic()) < until:
            deadline = self.reader.deadline()
            select.select([self.reader], [], [], max(0.0, min(until, deadline or until) - now))
            now = time.monotonic()
            if events := self.reader.receive(now) + self.reader.tick(now):
                return events
        raise AssertionError("nothing happened")

    def sample(self, workers: Mapping[str, WorkerRef] | None = None) -> Reading:
        """Ask for a sample and wait for it."""
        number = self.reader.request(workers or {}, time.monotonic())
        return self.answer(number)

    def answer(self, number: int) -> Reading:
        """Wait for the answer to that request."""
        while True:
            for event in self.next_events():
                if isinstance(event, Unwatched):  # its watch of Xids began after the test made a GPU unreadable
                    continue
                assert isinstance(event, Reading), event
                if event.number == number:
                    return event


@pytest.fixture
def driver() -> Iterator[Callable[..., Driver]]:
    """Makes drivers of readers that are closed at the end."""
    made: list[Reader] = []

    def make(**options: float) -> Driver:
        made.append(Reader(**options))
        made[-1].start(time.monotonic())
        return Driver(made[-1])

    yield make
    for reader in made:
        reader.close()


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Waits until a process, not necessarily a child, has ended."""

    def wait(pid: int) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([pidfd], [], [], DEADLINE)[0])
        finally:
            os.close(pidfd)

    return wait


class Child:
    """A Python process that runs ``code`` and waits on its standard input; ``line()`` reads what it prints."""

    def __init__(self, code: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + "\nimport sys; sys.stdin.read()", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Starts processes that are ended with the test."""
    made: list[Child] = []

    def start(code: str, *args: str) -> Child:
        made.append(Child(code, *args))
        return made[-1]

    yield start
    for process in made:
        process.close()
