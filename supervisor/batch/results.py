"""Reads the output of a batch for results it has already, and writes new ones; in the supervisor's process.

A file is written in the loop's thread: that costs less than waking another, and the store waits for the disk as well. Anything
else may have a slow reader, so a thread writes it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import queue
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

import msgspec

from supervisor.errors import UsageError
from supervisor.job import JobStatus

ENOUGH = 4 * 2**20
"""Maximum bytes that wait to be written; beyond that, results stay in the store."""

RETRY_S = 0.5
"""Interval of retrying a failed write."""

PAUSE_S = 0.01
"""Seconds between writes, so that each has several results. Until then the store has them."""

_CHUNK = 2**20
_PAGE = 4096
_BEGINNING = b'{"id":'
"""Start of every line (``protocol.responses.status_body``)."""


# --- existing results ----------------------------------------------------------------------------------------------------


class AnsweredLines:
    """The lines that have a result: two bytes for each, a checksum that tells whether it was the same line."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0
        self.last = 0
        self._pages: dict[int, array.array[int]] = {}

    def add(self, number: int, job_id: str, completed: bool) -> None:
        """Note that line ``number`` has the result of the job ``job_id``."""
        page = self._pages.get(number // _PAGE)
        if page is None:
            page = self._pages[number // _PAGE] = array.array("H", bytes(2 * _PAGE))
        if page[number % _PAGE]:
            return
        page[number % _PAGE] = _mark(job_id)
        self.count += 1
        self.failed += not completed
        self.last = max(self.last, number)

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number // _PAGE)
        return page is not None and page[number % _PAGE] != 0

    def by(self, number: int, job_id: str) -> bool:
        """Return whether line ``number`` has the result of the job ``job_id``."""
        return self._pages[number // _PAGE][number % _PAGE] == _mark(job_id)


def _mark(job_id: str) -> int:
    return zlib.crc32(job_id.encode("utf-8", "surrogatepass")) % 0xFFFF + 1


class _Answer(msgspec.Struct):
    line: int
    id: str
    status: JobStatus


def read_output(fd: int, path: Path) -> AnsweredLines:
    """Read an output file; truncate a last line left incomplete by a kill.

    Raises:
        UsageError: a line is not from a batch's output; nothing was changed.
    """
    done, whole, decode = AnsweredLines(), 0, msgspec.json.Decoder(_Answer).decode
    for number, line in enumerate(_lines(fd), start=1):
        if not line.endswith(b"\n") and (whole or _may_be_ours(line)):
            os.ftruncate(fd, whole)
            break
        try:
            answer = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            answer = None
        if answer is None or answer.line < 1:
            raise UsageError(f"{path}: line {number} is not the output of a batch; name another file with --output")
        done.add(answer.line, answer.id, answer.status is JobStatus.COMPLETED)
        whole += len(line)
    return done


def _may_be_ours(torn: bytes) -> bool:
    """Return whether a file of only ``torn`` may be an output cut short by a kill, or by a power cut (which leaves zeros)."""
    return torn[: len(_BEGINNING)] == _BEGINNING[: len(torn)] or not torn.strip(b"\0")


def _lines(fd: int) -> Iterator[bytes]:
    with open(fd, "rb", buffering=_CHUNK, closefd=False) as file:
        file.seek(0)
        yield from file


# --- new results ---------------------------------------------------------------------------------------------------------


Written = Callable[[int], None]
"""Called with the number of lines just written."""

Trouble = Callable[[Union[OSError, None]], None]
"""Called with a write error, and with None when writing works again."""


class Sink(ABC):
    """Writes lines and reports how many are written; implemented by ``FileSink`` and ``StreamSink``."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        self._fd = fd
        self._loop = loop
        self._written = written
        self._trouble = trouble
        self._waiting = 0

    @property
    def full(self) -> bool:
        """True while so much waits, for the disk or a slow reader, that no more should be put."""
        return self._waiting > ENOUGH

    @abstractmethod
    def put(self, line: bytes) -> None:
        """Queue ``line`` to be written soon, with others, in the order of the calls."""

    @abstractmethod
    def close(self) -> None:
        """Stop writing."""


class FileSink(Sink):
    """Appends to a file. Failed writes are retried until they succeed."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        super().__init__(fd, loop, written, trouble)
        self._lines: list[bytes] = []
        self._rest = memoryview(b"")
        self._count = 0
        self._scheduled: asyncio.TimerHandle | None = None
        self._failing = False

    def put(self, line: bytes) -> None:
        """Queue ``line``; see ``Sink.put``."""
        self._lines.append(line)
        self._waiting += len(line)
        if self._scheduled is None:
            self._scheduled = self._loop.call_later(PAUSE_S, self._flush)

    def _flush(self) -> None:
        self._scheduled = None
        if not self._rest:
            self._count = len(self._lines)
            self._rest = memoryview(b"".join(self._lines))
            self._lines = []
        try:
            while self._rest:
                size = os.write(self._fd, self._rest)
                self._rest = self._rest[size:]
                self._waiting -= size
        except OSError as error:
            if not self._failing:
                self._trouble(error)
            self._failing = True
            self._scheduled = self._loop.call_later(RETRY_S, self._flush)
            return
        if self._failing:
            self._failing = False
            self._trouble(None)
        if self._lines:
            self._scheduled = self._loop.call_later(PAUSE_S, self._flush)
        self._written(self._count)

    def close(self) -> None:
        """Stop writing."""
        if self._scheduled is not None:
            self._scheduled.cancel()


class StreamSink(Sink):
    """Writes to a pipe, terminal or socket, which may have a slow reader, in a thread, without retrying."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        super().__init__(fd, loop, written, trouble)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        threading.Thread(target=self._write_all, name="supervise-output", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Queue ``line``; see ``Sink.put``."""
        self._waiting += len(line)
        self._queue.put(line)

    def close(self) -> None:
        """Stop the thread; one that waits for the reader stops with the process."""
        self._closing.set()
        self._queue.put(None)

    def _write_all(self) -> None:
        while True:
            lines = [self._queue.get()]
            while not self._queue.empty() and len(lines) < _PAGE:
                lines.append(self._queue.get_nowait())
            data = b"".join([line for line in lines if line is not None])
            try:
                _write(self._fd, data)
            except OSError as error:
                self._call_in_loop(self._trouble, error)
                return
            if lines[-1] is None:
                return
            self._call_in_loop(self._wrote, len(lines), len(data))
            self._closing.wait(PAUSE_S)

    def _wrote(self, lines: int, size: int) -> None:
        self._waiting -= size
        self._written(lines)

    def _call_in_loop(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program exits without waiting for the reader
            self._loop.call_soon_threadsafe(call, *args)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # noqa: PERF203 - rare: another program that shares the descriptor made it non-blocking
            threading.Event().wait(PAUSE_S)
