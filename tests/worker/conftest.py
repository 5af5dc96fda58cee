"""A worker to talk to: forked from the test as the template would, entered for real, over a real pipe and a real log pipe."""

from __future__ import annotations

import multiprocessing
import os
import select
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from supervisor.wire import messages as wire
from supervisor.worker import main

DEADLINE = 30.0


class Child:
    """The supervisor's side of one worker."""

    def __init__(self, spec: wire.HandlerSpec, folder: Path, max_result: int) -> None:
        self.conn, theirs = multiprocessing.Pipe(duplex=True)
        self._log, log = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become_worker(spec, folder, theirs, {self.conn.fileno(), self._log}, log, max_result)
        self._pidfd = os.pidfd_open(self.pid)
        theirs.close()
        os.close(log)
        self._codec = wire.Codec[wire.FromWorker](wire.FromWorker)
        self._status: int | None = None

    def send(self, message: wire.ToWorker) -> None:
        self.conn.send_bytes(self._codec.encode(message))

    def send_raw(self, data: bytes) -> None:
        """Bytes as they are: several frames arrive in one piece."""
        os.write(self.conn.fileno(), data)

    def receive(self) -> Any:
        """The next message; EOFError if the worker is gone."""
        assert self.conn.poll(DEADLINE), f"nothing came; the worker wrote: {self.written_so_far()}"
        return self._codec.decode(self.conn.recv_bytes())

    def receive_until(self, kind: type) -> list[Any]:
        """Messages up to the first of ``kind``, which is the last one."""
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def ready(self) -> wire.Ready:
        message = self.receive()
        assert isinstance(message, wire.Ready), message
        return message

    def run(self, value: Any = None, job: str = "job", extras: dict[str, Any] | None = None) -> None:
        encoded = msgspec.json.encode(extras) if extras is not None else None
        self.send(wire.Run(job, msgspec.json.encode(value), encoded))

    def finish(self) -> int:
        """Ask it to leave; its exit code."""
        self.send(wire.Exit())
        return self.wait()

    def job(self, value: Any = None, job: str = "job", extras: dict[str, Any] | None = None) -> wire.Done:
        """Run one job; how it ended."""
        self.run(value, job, extras)
        return self.receive_until(wire.Done)[-1]

    def wait(self) -> int:
        """The exit code, -N for signal N."""
        if self._status is None:
            assert select.select([self._pidfd], [], [], DEADLINE)[0], "the worker does not end"
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def written_so_far(self) -> str:
        """What is in the log pipe now."""
        data = b""
        while select.select([self._log], [], [], 0)[0]:
            data += (more := os.read(self._log, 1 << 16))
            if not more:
                break
        return data.decode()

    def until_written(self, text: str) -> str:
        """What is written from here on until ``text`` was."""
        written = b""
        while text.encode() not in written:
            assert select.select([self._log], [], [], DEADLINE)[0], f"{text!r} does not come after {written!r}"
            written += (more := os.read(self._log, 1 << 16))
            assert more, f"the worker ended after {written!r}"
        return written.decode()

    def no_more_messages(self) -> bool:
        """Whether the pipe is at its end."""
        assert self.conn.poll(DEADLINE), "the pipe is still open"
        try:
            message = self.conn.recv_bytes()
        except (EOFError, ConnectionResetError):
            return True
        raise AssertionError(f"the worker said {message!r}")

    def close(self) -> None:
        if self._status is None:
            os.kill(self.pid, 9)
            self.wait()
        self.conn.close()
        os.close(self._log)
        os.close(self._pidfd)


def _become_worker(
    spec: wire.HandlerSpec, folder: Path, conn: Connection, foreign: set[int], log: int, max_result: int
) -> NoReturn:
    try:
        for fd in foreign:
            os.close(fd)
        null = os.open(os.devnull, os.O_RDWR)
        for fd, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(fd, target)
        os.close(log)
        os.close(null)
        os.chdir(folder)
        setup = wire.Setup(wire.VERSION, "run", spec, (), str(folder), max_result=max_result)
        main.prepare()(main.WorkerStart("gpu0", 3, conn.fileno(), setup, time.monotonic()))
    except BaseException:  # noqa: BLE001 - nothing may return into the test's copy
        traceback.print_exc()
    finally:
        os._exit(99)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file below this test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts a worker for a kind and target of handler, in this test's folder."""
    children: list[Child] = []

    def launch(
        kind: str,
        target: str | Path,
        attribute: str | None = None,
        argv: tuple[str, ...] = (),
        max_result: int = 100 * 2**20,
    ) -> Child:
        children.append(Child(wire.HandlerSpec(kind, str(target), attribute, argv), tmp_path, max_result))
        return children[-1]

    yield launch
    for child in children:
        child.close()


@pytest.fixture
def serve(write: Callable[[str, str], Path], launch: Callable[..., Child]) -> Callable[..., Child]:
    """Starts a worker for the text of a handler file and waits until it is ready."""

    def serve(text: str, **options: int) -> Child:
        child = launch("file", write("handler.py", text), **options)
        child.ready()
        return child

    return serve
