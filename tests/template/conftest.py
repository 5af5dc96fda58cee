from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import pytest

from supervisor.host.processes import children_of
from supervisor.pool.template.launch import Pipes, make_pipes
from supervisor.pool.template.process import TemplateExited, TemplateProcess
from supervisor.wire import messages as wire

CHILDREN = Path(__file__).resolve().parent.parent / "children"
ROOT = CHILDREN.parent.parent
DEADLINE = 30.0
NO_LIMITS = wire.Limits()

R = TypeVar("R")


class Worker:
    """One forked worker: what it says on its pipe, and what it prints."""

    def __init__(self, slot: str, generation: int, pipes: Pipes) -> None:
        self.slot = slot
        self.generation = generation
        self.pipes = pipes
        os.set_blocking(pipes.connection.fileno(), True)

    def hears(self) -> Any:
        """The next thing that it says, as JSON."""
        assert wait([self.pipes.connection], DEADLINE), "the worker says nothing"
        return json.loads(self.pipes.connection.recv_bytes())

    def tell(self, text: str) -> None:
        self.pipes.connection.send_bytes(text.encode())

    def output(self) -> str:
        """All that it printed until now."""
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipes.log, 65536):
                parts.append(part)
        return b"".join(parts).decode()


class House:
    """A template with stand-in workers, and this test as its supervisor."""

    def __init__(
        self,
        tmp_path: Path,
        preload: tuple[str, ...] = (),
        locks: tuple[int, ...] = (),
        preload_timeout: float = 60.0,
        limits: wire.Limits = NO_LIMITS,
        **environ: str,
    ) -> None:
        self.tmp_root = tmp_path / "run"
        self.reports: list[wire.FromTemplate | TemplateExited] = []
        self.workers: list[Worker] = []
        self.ahead: list[int] = []
        handler = wire.HandlerSpec("file", "unused.py")
        self.setup = wire.Setup(
            wire.VERSION, "run-1", handler, preload, str(self.tmp_root), preload_timeout, limits=limits
        )
        path = os.pathsep.join([str(ROOT), *filter(None, [environ.pop("PYTHONPATH", "")])])
        environ = {**os.environ, "PYTHONPATH": path, **environ}
        self.template = TemplateProcess(self.setup, locks, environ, CHILDREN / "template_stand_in.py")

    def start(self) -> House:
        self.ready = self.expect(wire.TemplateReady)
        return self

    def fork(self, child: str, slot: str = "cpu0", generation: int = 1, **env: str | None) -> Worker:
        pipes = make_pipes()
        env = {"CHILD": str(CHILDREN / f"{child}.py"), **env}
        self.template.send(wire.Fork(slot, generation, env), pipes.for_worker)
        worker = Worker(slot, generation, pipes)
        self.workers.append(worker)
        return worker

    def fork_ahead(self) -> None:
        """Have the template fork the worker that it holds ready: ``ahead``."""
        self.ends(self.fork("exits_at_once", "first"))
        self.expect(wire.Forked)
        deadline = time.monotonic() + DEADLINE
        while not self.ahead:
            assert time.monotonic() < deadline, "no worker is forked ahead"
            self.ahead = children_of(self.template.pid)

    def expect(self, kind: type[R], accept: Callable[[R], bool] = lambda _: True) -> R:
        """The next report of that kind; those passed over stay for later."""
        deadline = time.monotonic() + DEADLINE
        while True:
            for report in self.reports:
                if isinstance(report, kind) and accept(report):
                    self.reports.remove(report)
                    return report
            assert not any(isinstance(report, TemplateExited) for report in self.reports), (
                f"the template is gone: {self.reports}"
            )
            assert wait([self.template], max(0.0, deadline - time.monotonic())), f"no {kind.__name__}: {self.reports}"
            self.reports += self.template.receive()

    def ends(self, worker: Worker) -> tuple[wire.Died, wire.Swept]:
        """The two reports of that worker's end."""
        ours = (worker.slot, worker.generation)
        died = self.expect(wire.Died, lambda report: (report.slot, report.generation) == ours)
        swept = self.expect(wire.Swept, lambda report: (report.slot, report.generation) == ours)
        return died, swept

    def close(self) -> None:
        self.template.close()
        self.template.wait(DEADLINE)
        for worker in self.workers:
            worker.pipes.connection.close()
            os.close(worker.pipes.log)


class Watched:
    """A process of any parent, held by a descriptor: no other process can take its place."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def ended(self, within: float = 0.0) -> bool:
        return bool(select.select([self._descriptor], [], [], within)[0])

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def children() -> Path:
    return CHILDREN


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as stack:

        def make(
            preload: tuple[str, ...] = (),
            locks: tuple[int, ...] = (),
            preload_timeout: float = 60.0,
            limits: wire.Limits = NO_LIMITS,
            **environ: str,
        ) -> House:
            house = House(tmp_path, preload, locks, preload_timeout, limits, **environ)
            stack.callback(house.close)
            return house.start()

        yield make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture
def watch() -> Iterator[Callable[[int], Watched]]:
    with contextlib.ExitStack() as stack:

        def start(pid: int) -> Watched:
            watched = Watched(pid)
            stack.callback(watched.close)
            return watched

        yield start
