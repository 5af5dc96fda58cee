"""The supervisor's end of a worker's log pipe: the output in lines and by job; never blocks. In the supervisor."""

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
"""Capacity of a log pipe (`/proc/sys/fs/pipe-max-size`), so a limit of a job's unread output at ``Done``."""

READ_BYTES = 16 * 1024
"""Bytes per read: a larger buffer costs page faults at each read (20 µs for 256 KiB)."""

TURN_BYTES = 32 * 1024
"""Most bytes of output read from one worker per turn: each line costs 4 to 8 µs on its way to the screens."""

TURN_LINES = 1000
"""Most lines per turn, for the same reason: a line may be empty."""

LINE_BYTES = 8 * 1024
"""Bytes of a line; a longer one is split."""

TAIL_LINES = 20
"""Lines of the output tail in an error: of the job's lines, and of its worker's lines without a job."""

TAIL_AMONG = 1000
"""Number of lines of one read that the tail is chosen from."""

_OWN_FRAME = f'  File "{Path(__file__).resolve().parents[2]}{os.sep}'
"""Start of this program's own frames in a dump of ``faulthandler`` (a Python traceback has ``, in`` before the function). They
are left out: they are many, come last, and are not the user's code."""

NO_JOB = ""
"""In place of the id of a job that has ended: its threads or children may still print."""


class OutputLines(NamedTuple):
    """Lines of a worker's output, and the job that they name, if any."""

    job: str | None
    lines: list[str]


class LogPipe:
    """The output of one worker and its child processes. Reads do not block."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``, which is non-blocking."""
        self.fd = fd
        self.at_end = False
        self._waiting = array("i", [0])
        self._marks: MarkReader | None = None
        self._held = b""  # read, but left for a later turn
        self._unfinished: dict[str | None, bytes] = {}  # incomplete lines, by job
        self._tails: dict[str | None, deque[tuple[int, str]]] = {}  # the newest lines, by job, numbered in order
        self._count = 0

    def expect_marks(self, mark: str) -> None:
        """Read frames that begin with ``mark`` from now on.

        Raises:
            WireError: invalid mark.
        """
        self._marks = MarkReader(mark)

    @property
    def pending(self) -> bool:
        """True if there is output that ``read`` has not returned. Cheaper than a read: an empty one costs five times as much."""
        fcntl.ioctl(self.fd, termios.FIONREAD, self._waiting)
        return self._waiting[0] != 0 or bool(self._held or self._unfinished)

    @property
    def more(self) -> bool:
        """True if output was read that ``read`` has not returned yet."""
        return bool(self._held)

    def read(self, running: Collection[str], budget: int = TURN_BYTES, most: int = TURN_LINES) -> list[OutputLines]:
        """Return complete lines, at most about ``budget`` bytes and ``most`` lines; ``more`` is true if others were read.

        ``running`` are the jobs that lines may name.
        """
        output: list[OutputLines] = []
        while budget > 0 and most > 0:
            data, ended = self._next_output()
            data, count = self._hold_back(data, most)
            most -= count
            budget -= len(data)
            for job, text in ((None, data),) if self._marks is None else self._marks.feed(data):
                self._append(output, job if job is None or job in running else NO_JOB, self._cut(job, text))
            if ended:
                break
        return output

    def _next_output(self) -> tuple[bytes, bool]:
        """Return output held back or read, and whether nothing more is available now."""
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
        """Return the first ``most`` lines of ``data`` and their number; hold back the others."""
        count = data.count(b"\n")
        if count > most:
            self._held = data.split(b"\n", most)[-1]
            return data[: len(data) - len(self._held)], most
        return data, count

    def read_end_of(self, job: str, running: Collection[str]) -> list[OutputLines]:
        """Drain the pipe when ``job`` ends, with its incomplete line, and the worker's too if the job ran alone."""
        output = self.read(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        self._finish(output, [job] if len(running) > 1 else list(self._unfinished))
        self._tails.pop(job, None)
        return output

    def read_rest(self, running: Collection[str]) -> list[OutputLines]:
        """Drain the pipe of a dead worker."""
        output = self.read(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        if self._marks is not None:
            self._append(output, None, self._cut(None, self._marks.rest()))
        self._finish(output, list(self._unfinished))
        return output

    def tail_of(self, job: str) -> list[str]:
        """Return the newest lines of ``job`` and those without a job, in order."""
        return [line for _, line in sorted([*self._tails.get(None, ()), *self._tails.get(job, ())])]

    def clear_tails(self) -> None:
        """Clear the tails: the output so far belongs to earlier jobs."""
        self._tails.clear()

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)

    def _cut(self, job: str | None, data: bytes) -> list[str]:
        """Return the lines completed by ``data``."""
        *whole, rest = (self._unfinished.pop(job, b"") + data).split(b"\n")
        if len(rest) > LINE_BYTES:
            cut = (len(rest) - 1) // LINE_BYTES * LINE_BYTES  # keep at least one byte: the newline is still to come
            whole.append(rest[:cut])
            rest = rest[cut:]
        if rest:
            self._unfinished[job] = rest
        if all(len(line) <= LINE_BYTES for line in whole):
            # Decoding all lines at once is ten times as fast, and safe: no UTF-8 character spans a newline.
            text = b"\n".join(whole).decode("utf-8", "replace")
            lines = text.split("\n") if whole else []
            return [line.rstrip("\r") for line in lines] if "\r" in text else lines
        return [
            line[at : at + LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
            for line in whole
            for at in range(0, max(1, len(line)), LINE_BYTES)
        ]

    def _finish(self, output: list[OutputLines], jobs: Iterable[str | None]) -> None:
        """Append the incomplete lines of ``jobs`` to ``output``."""
        for job in jobs:
            if job in self._unfinished:
                self._append(output, job, [self._unfinished.pop(job).decode("utf-8", "replace")])

    def _append(self, output: list[OutputLines], job: str | None, lines: list[str]) -> None:
        """Append ``lines`` to ``output`` and to the tails."""
        lines = [line for line in lines if not line.startswith(_OWN_FRAME) or ", in " in line]
        if not lines:
            return
        if output and output[-1].job == job:
            output[-1].lines.extend(lines)
        else:
            output.append(OutputLines(job, lines))
        tail = self._tails.get(job)
        if tail is None:
            tail = self._tails[job] = deque(maxlen=TAIL_LINES)
        newest = lines[-TAIL_AMONG:]
        tail.extend(enumerate(newest, self._count))
        self._count += len(newest)
