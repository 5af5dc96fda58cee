"""The supervisor's end of a worker's log pipe: what it wrote, in lines and by job; it never blocks the supervisor."""

from __future__ import annotations

import fcntl
import os
import termios
from array import array
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from supervisor.wire.log_frames import MarkReader

LOG_PIPE_BYTES = 1024 * 1024
"""A log pipe holds at most this (`/proc/sys/fs/pipe-max-size`): what a worker wrote before ``Done`` is no more."""

READ_BYTES = 16 * 1024
"""Bytes asked for at once: a larger buffer costs page faults at each read (20 µs for 256 KiB)."""

TURN_BYTES = 32 * 1024
"""Most bytes of output taken from one worker in one turn: each line costs 4 to 8 µs on its way to the screens."""

TURN_LINES = 1000
"""Most lines of it, for the same reason: a line may be empty."""

LINE_BYTES = 8 * 1024
"""A longer line of a worker's output is cut into several."""

TAIL_LINES = 20
"""How many last lines an error carries: of the job's, and of those of its worker that name no job."""

TAIL_AMONG = 1000
"""Among how many of the lines that came together those are."""

_OWN_FRAME = f'  File "{Path(__file__).resolve().parents[2]}{os.sep}'
"""How ``faulthandler`` shows this program's own frames (a traceback of Python's has ``, in`` before the function). They come last
and are many, and say nothing about the user's code: they are left out."""

NO_JOB = ""
"""Stands for a job that does not run any more, in the place of its id: what it left behind still prints."""


class Said(NamedTuple):
    """Lines of a worker's output, and the job that they name; None where they name none."""

    job: str | None
    lines: list[str]


class LogPipe:
    """The output of one worker and of what it started. Reading returns what is there."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``, which is non-blocking."""
        self.fd = fd
        self.at_end = False
        self._waiting = array("i", [0])
        self._marks: MarkReader | None = None
        self._held = b""  # read, and for a later turn
        self._unfinished: dict[str | None, bytes] = {}  # lines whose end is still to come, by job
        self._tails: dict[str | None, deque[tuple[int, str]]] = {}  # the newest lines, by job, numbered in their order
        self._count = 0

    def expect_marks(self, mark: str) -> None:
        """From here on, what jobs print begins with ``mark``.

        Raises:
            WireError: that is no mark.
        """
        self._marks = MarkReader(mark)

    @property
    def waits(self) -> bool:
        """Whether anything is not returned yet. Asked at each end of a job: an empty read costs five times that."""
        fcntl.ioctl(self.fd, termios.FIONREAD, self._waiting)
        return self._waiting[0] != 0 or bool(self._held or self._unfinished)

    @property
    def more(self) -> bool:
        """Whether output was read that ``read`` has not returned yet."""
        return bool(self._held)

    def read(self, running: Collection[str], budget: int = TURN_BYTES, most: int = TURN_LINES) -> list[Said]:
        """The whole lines that the worker (or what it started) has written, at most about ``budget`` bytes of them and ``most``
        lines. ``more`` says whether others were read.

        ``running`` are the jobs that may be named.
        """
        said: list[Said] = []
        while budget > 0 and most > 0:
            data, ended = self._next_output()
            data, count = self._hold_back(data, most)
            most -= count
            budget -= len(data)
            for job, text in ((None, data),) if self._marks is None else self._marks.feed(data):
                self._say(said, job if job is None or job in running else NO_JOB, self._cut(job, text))
            if ended:
                break
        return said

    def _next_output(self) -> tuple[bytes, bool]:
        """What was held back, or can be read; and whether that is all for now."""
        if self._held:
            data, self._held = self._held, b""
            return data, False
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return b"", True
        self.at_end = not data
        return data, len(data) < READ_BYTES

    def _hold_back(self, data: bytes, most: int) -> tuple[bytes, int]:
        """The first ``most`` lines of ``data`` and how many there are; the others wait."""
        count = data.count(b"\n")
        if count > most:
            self._held = data.split(b"\n", most)[-1]
            return data[: len(data) - len(self._held)], most
        return data, count

    def read_end_of(self, job: str, running: Collection[str]) -> list[Said]:
        """Everything in the pipe as ``job`` ends, its unfinished line too; if it ran alone, that of the worker as well."""
        said = self.read(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        self._finish(said, [job] if len(running) > 1 else list(self._unfinished))
        self._tails.pop(job, None)
        return said

    def read_rest(self, running: Collection[str]) -> list[Said]:
        """Everything left in the pipe of a worker that is dead."""
        said = self.read(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        if self._marks is not None:
            self._say(said, None, self._cut(None, self._marks.rest()))
        self._finish(said, list(self._unfinished))
        return said

    def tail_of(self, job: str) -> list[str]:
        """The newest lines of ``job`` and those that name no job, in their order."""
        return [line for _, line in sorted([*self._tails.get(None, ()), *self._tails.get(job, ())])]

    def clear_tails(self) -> None:
        """What was printed until now was about other jobs."""
        self._tails.clear()

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def _cut(self, job: str | None, data: bytes) -> list[str]:
        """The lines that end in ``data``."""
        *whole, rest = (self._unfinished.pop(job, b"") + data).split(b"\n")
        if len(rest) > LINE_BYTES:
            cut = (len(rest) - 1) // LINE_BYTES * LINE_BYTES  # never all of it: the line's end is still to come
            whole.append(rest[:cut])
            rest = rest[cut:]
        if rest:
            self._unfinished[job] = rest
        if all(len(line) <= LINE_BYTES for line in whole):
            # At once, which is ten times as fast: no character goes across a line's end, not even half of one.
            text = b"\n".join(whole).decode("utf-8", "replace")
            lines = text.split("\n") if whole else []
            return [line.rstrip("\r") for line in lines] if "\r" in text else lines
        return [
            line[at : at + LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
            for line in whole
            for at in range(0, max(1, len(line)), LINE_BYTES)
        ]

    def _finish(self, said: list[Said], jobs: Iterable[str | None]) -> None:
        """Take the unfinished lines of ``jobs`` as they are."""
        for job in jobs:
            if job in self._unfinished:
                self._say(said, job, [self._unfinished.pop(job).decode("utf-8", "replace")])

    def _say(self, said: list[Said], job: str | None, lines: list[str]) -> None:
        """Add ``lines`` to ``said`` and to the tails."""
        lines = [line for line in lines if not line.startswith(_OWN_FRAME) or ", in " in line]
        if not lines:
            return
        if said and said[-1].job == job:
            said[-1].lines.extend(lines)
        else:
            said.append(Said(job, lines))
        tail = self._tails.get(job)
        if tail is None:
            tail = self._tails[job] = deque(maxlen=TAIL_LINES)
        newest = lines[-TAIL_AMONG:]
        tail.extend(enumerate(newest, self._count))
        self._count += len(newest)
