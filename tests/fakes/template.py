"""A template and its workers that the test plays, over real pipes: what the pool sees in place of processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from supervisor.pool.interfaces import Loop
from supervisor.pool.template.client import TemplateClient
from supervisor.pool.template.process import TemplateExited
from supervisor.wire import messages as wire

TEMPLATE_PID = 39_999


class WorkersPipes:
    """A worker's ends of its pipes."""

    def __init__(self, connection: int, log: int) -> None:
        self.worker_connection = Connection(connection)
        self.worker_log = log

    def close_workers(self) -> None:
        self.worker_connection.close()
        os.close(self.worker_log)


class PlayedWorker:
    """A worker's end of its pipes, in the hands of the test."""

    def __init__(self, template: PlayedTemplate, slot: str, generation: int, env: Any, pipes: WorkersPipes) -> None:
        self.slot, self.generation, self.env = slot, generation, env
        self.pid = TEMPLATE_PID + template.forks
        self.alive = True
        self.signals: list[int | str] = []
        self._template = template
        self._pipes = pipes
        self._codec = wire.Codec[wire.ToWorker](wire.ToWorker)

    def say(self, *messages: wire.FromWorker) -> bool:
        """Whether the pipe took them."""
        return self.put(b"".join(wire.frame(self._codec.encode(message)) for message in messages))

    def put(self, data: bytes) -> bool:
        """Bytes among the messages; whether the pipe took them."""
        try:
            return os.write(self._pipes.worker_connection.fileno(), data) == len(data)
        except OSError:  # the supervisor let go of it
            return False

    def prints(self, text: str) -> bool:
        """Whether the pipe took it."""
        try:
            os.write(self._pipes.worker_log, text.encode())
        except OSError:
            return False
        return True

    def is_told(self, signum: int | str) -> None:
        """It gets a signal; ``tree``: it and all it started are to be killed."""
        self.signals.append(signum)

    def goes(self) -> None:
        """It is no more, and nobody has said so yet."""
        if self.alive:
            self.alive = False
            self._pipes.close_workers()

    def dies(self, status: int) -> None:
        """It is no more, and the template says so."""
        self.goes()
        self._template.report(wire.Died(self.slot, self.generation, self.pid, status))
        self._template.report(wire.Swept(self.slot, self.generation))


class PlayedTemplate:
    """The template: it forks when it is ``up`` and nothing ``refuses``, and its workers end when the test says so."""

    pid = TEMPLATE_PID
    wants_write = False

    def __init__(self, worker: type[PlayedWorker] = PlayedWorker) -> None:
        self.workers: dict[str, Any] = {}
        self.forks = 0
        self.swept = 0
        self.up = False
        self.refuses = False
        self._worker = worker
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._reports: list[wire.FromTemplate | TemplateExited] = []

    # --- what the test does with it

    def report(self, message: wire.FromTemplate | TemplateExited) -> None:
        """It says that."""
        self._reports.append(message)
        self._theirs.send(b"x")

    def dies(self) -> None:
        """And all workers with it."""
        if not self.up:
            return
        self.up = False
        for worker in self.workers.values():
            worker.goes()
        self._reports = []  # what it said last is lost with it
        self.report(TemplateExited(-9))

    def client(self, loop: Loop, wake: Callable[[], None]) -> TemplateClient:
        """What a pool gets: a client whose template this is, each time that it starts one."""
        return TemplateClient(self._launch, self.sweep, loop, wake)

    def _launch(self) -> PlayedTemplate:
        self.start()
        return self

    def end(self) -> None:
        """The test is over."""
        for worker in self.workers.values():
            worker.goes()
        self._ours.close()
        self._theirs.close()

    # --- what it does when it is asked to, or started

    def start(self) -> None:
        self.up = True
        self.report(wire.TemplateReady(wire.VERSION, TEMPLATE_PID))

    def fork(self, slot: str, generation: int, env: Any, pipes: WorkersPipes) -> None:
        if not self.up:  # it has died, which is read in a moment
            pipes.close_workers()
            return
        old = self.workers.get(slot)
        assert old is None or not old.alive, "two workers in one slot"
        if self.refuses:
            pipes.close_workers()
            self.report(wire.ForkFailed(slot, generation, "no memory"))
            return
        self.forks += 1
        self.workers[slot] = worker = self._worker(self, slot, generation, env, pipes)
        self.report(wire.Forked(slot, generation, worker.pid))

    def signal(self, slot: str, generation: int, signum: int | str) -> None:
        worker = self.workers.get(slot)
        if worker is not None and worker.generation == generation:
            worker.is_told(signum)

    def sweep(self) -> int:
        self.swept += 1
        return 0

    # --- what the client does with it

    def fileno(self) -> int:
        return self._ours.fileno()

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        if isinstance(message, wire.Fork):
            self.fork(message.slot, message.generation, message.env, WorkersPipes(*descriptors))
        elif isinstance(message, wire.Signal):
            self.signal(message.slot, message.generation, message.signum)
        elif isinstance(message, wire.EndTree):
            self.signal(message.slot, message.generation, "tree")

    def flush(self) -> None:
        pass

    def receive(self) -> list[wire.FromTemplate | TemplateExited]:
        if self._reports:
            self._ours.recv(65536)
        reports, self._reports = self._reports, []
        return reports

    def resume(self) -> None:
        pass

    def kill(self) -> None:
        self.dies()

    def wait(self, timeout: float) -> int | None:
        return None if self.up else -9

    def close(self) -> None:
        """The client lets go of this one; it may start it again."""
