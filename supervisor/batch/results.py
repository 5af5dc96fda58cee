"""Where a batch's results go, and which of them are there already; in the supervisor's process.

A file is written in the loop's own turns: that costs less than waking a thread, and the disk is waited for by the store as well.
Anything else may have a slow reader, so a thread writes it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Union

import msgspec

from supervisor.errors import UsageError
from supervisor.job import JobStatus

ENOUGH = 4 * 2**20
"""Bytes that may wait to be written; with more, results stay in the store until there is room."""

RETRY_S = 0.5
"""How often a write that the disk refused is tried again."""

PAUSE_S = 0.01
"""From one write to the next: results go out together. Until then the store has them."""

_CHUNK = 2**20
_PAGE = 4096
_BEGINNING = b'{"id":'
"""How every line begins (``protocol.responses.status_body``)."""


# --- what is there -------------------------------------------------------------------------------------------------------


class AnsweredLines:
    """The lines that are answered: two bytes for each, a mark that tells whether it was that very line."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0
        self.last = 0
        self._pages: dict[int, array.array[int]] = {}

    def add(self, number: int, job_id: str, completed: bool) -> None:
        """Line ``number`` is answered by a job with that id."""
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
        """Whether it was a job with that id that answered it."""
        return self._pages[number // _PAGE][number % _PAGE] == _mark(job_id)


def _mark(job_id: str) -> int:
    return zlib.crc32(job_id.encode("utf-8", "surrogatepass")) % 0xFFFF + 1


class _Answer(msgspec.Struct):
    line: int
    id: str
    status: JobStatus


def read_output(fd: int, path: Path) -> AnsweredLines:
    """What the output file has; a last line that a kill has torn is cut off.

    Raises:
        UsageError: something in it is no line of a batch's output; nothing was changed.
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
    """Whether a file with nothing but ``torn`` may be what a kill, or a power cut (which leaves zeros), has left of an output."""
    return torn[: len(_BEGINNING)] == _BEGINNING[: len(torn)] or not torn.strip(b"\0")


def _lines(fd: int) -> Iterator[bytes]:
    with open(fd, "rb", buffering=_CHUNK, closefd=False) as file:
        file.seek(0)
        yield from file


# --- what comes ----------------------------------------------------------------------------------------------------------


Written = Callable[[int], None]
"""Hears how many more lines are written."""

Trouble = Callable[[Union[OSError, None]], None]
"""Hears of what goes wrong, and ``None`` when it is over."""


class Sink:
    """Takes lines and says how many are written; ``FileSink`` and ``StreamSink`` are two ways to write."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        self._fd = fd
        self._loop = loop
        self._written = written
        self._trouble = trouble
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether so much waits, for the disk or for a slow reader, that no more should be put."""
        return self._waiting > ENOUGH

    def put(self, line: bytes) -> None:
        """Write ``line`` in a moment, with others, in the order of the calls."""
        raise NotImplementedError

    def close(self) -> None:
        """Write nothing more."""
        raise NotImplementedError


class FileSink(Sink):
    """The end of a file. What its disk refuses is tried again until it is taken."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        super().__init__(fd, loop, written, trouble)
        self._lines: list[bytes] = []
        self._rest = memoryview(b"")
        self._count = 0
        self._scheduled: asyncio.TimerHandle | None = None
        self._refused = False

    def put(self, line: bytes) -> None:
        """As ``Sink``'s."""
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
            if not self._refused:
                self._trouble(error)
            self._refused = True
            self._scheduled = self._loop.call_later(RETRY_S, self._flush)
            return
        if self._refused:
            self._refused = False
            self._trouble(None)
        if self._lines:
            self._scheduled = self._loop.call_later(PAUSE_S, self._flush)
        self._written(self._count)

    def close(self) -> None:
        """As ``Sink``'s."""
        if self._scheduled is not None:
            self._scheduled.cancel()


class StreamSink(Sink):
    """A pipe, a terminal, a socket: whatever may have a slow reader. A thread writes, and tries nothing again."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, written: Written, trouble: Trouble) -> None:
        super().__init__(fd, loop, written, trouble)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        threading.Thread(target=self._write_all, name="supervise-output", daemon=True).start()

    def put(self, line: bytes) -> None:
        """As ``Sink``'s."""
        self._waiting += len(line)
        self._queue.put(line)

    def close(self) -> None:
        """End the thread, unless it waits for the reader: then it ends with the process."""
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
                self._tell(self._trouble, error)
                return
            if lines[-1] is None:
                return
            self._tell(self._took, (len(lines), len(data)))
            self._closing.wait(PAUSE_S)

    def _took(self, taken: tuple[int, int]) -> None:
        self._waiting -= taken[1]
        self._written(taken[0])

    def _tell(self, tell: Callable[..., None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends without waiting for the reader
            self._loop.call_soon_threadsafe(tell, what)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # noqa: PERF203 - rare: another program that shares the descriptor made it non-blocking
            threading.Event().wait(PAUSE_S)
