"""The supervisor's end of one worker generation: its message pipe and its log pipe. Neither ever blocks the supervisor."""

from __future__ import annotations

import fcntl
import os
import termios
from array import array
from collections import deque
from collections.abc import Collection, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from supervisor.errors import WireError
from supervisor.pool.pipes.validation import checked
from supervisor.pool.template.process import LOG_PIPE_BYTES
from supervisor.wire import messages as wire
from supervisor.wire.log_frames import MarkReader

TURN_BYTES = 256 * 1024
"""Most bytes taken from one pipe in one turn, so that a flood on one does not starve the others."""

TURN_MESSAGES = 250
"""Most messages taken from one worker in one turn: each of them costs some microseconds, a chunk twenty."""

READ_BYTES = 16 * 1024
"""Bytes asked for at once: most messages are small, and a larger buffer costs page faults at each read (20 µs for 256 KiB)."""

LOG_TURN_BYTES = 32 * 1024
"""Most bytes of output taken from one worker in one turn: each line costs 4 to 8 µs on its way to the screens."""

TURN_LINES = 1000
"""Most lines of it, for the same reason: a line may be empty."""

CLOGGED_BYTES = 1024 * 1024
"""A worker that leaves more of its messages unread gets no further job: they wait in the store, not here."""

LINE_BYTES = 8 * 1024
"""A longer line of a worker's output is cut into several."""

TAIL_LINES = 20
"""How many last lines an error carries: of the job's, and of those of its worker that name no job."""

WORDS_LINES = 1000
"""Among how many of the lines that came together those are."""

_OWN_FRAME = f'  File "{Path(__file__).resolve().parents[2]}{os.sep}'
"""How ``faulthandler`` shows this program's own frames (a traceback of Python's has ``, in`` before the function). They come last
and are many, and say nothing about the user's code: they are left out."""

# Shared by all links: it takes half a millisecond to make.
_CODEC: wire.Codec[wire.FromWorker] = wire.Codec(wire.FromWorker)


NO_JOB = ""
"""Stands for a job that does not run any more, in the place of its id: what it left behind still prints."""


class Said(NamedTuple):
    """Lines of a worker's output, and the job that they name; None where they name none."""

    job: str | None
    lines: list[str]


class Link:
    """One worker's pipes. Reading returns what is there; writing keeps what the pipe does not take yet."""

    def __init__(self, slot: str, generation: int, connection: Connection, log_fd: int, limit: int) -> None:
        """Own both descriptors, which are non-blocking; refuse messages of more than ``limit`` bytes."""
        self.slot = slot
        self.generation = generation
        self.fd = connection.fileno()
        self.log_fd = log_fd
        self.pid: int | None = None
        self.kind = "unknown"
        self.load_failed: wire.LoadFailed | None = None
        self.port_named = False
        self.warnings = 0
        self.broken = False
        self.at_end = False
        self.log_at_end = False
        self._connection = connection
        self._frames = wire.FrameReader(limit)
        self._payloads: deque[bytes] = deque()
        self._unsent = bytearray()
        self._waiting = array("i", [0])
        self._marks: MarkReader | None = None
        self._held = b""  # of the log: read, and for a later turn
        self._unfinished: dict[str | None, bytes] = {}  # lines whose end is still to come, by job
        self._words: dict[str | None, deque[tuple[int, str]]] = {}  # the newest lines, by job, numbered in their order
        self._count = 0

    def receive(self, budget: int = TURN_BYTES, most: int = TURN_MESSAGES) -> list[wire.FromWorker]:
        """At most ``most`` of the messages that are there, none when the pipe is empty or at its end.

        About ``budget`` bytes are read. ``more`` says whether other messages were among them.

        Raises:
            WireError: what came is no message of this channel; the link is then ``broken`` and reads nothing more.
        """
        if self.broken:
            return []
        messages: list[wire.FromWorker] = []
        try:
            if len(self._payloads) < most:
                self._read_frames(budget)
            while self._payloads and len(messages) < most:
                messages.append(checked(_CODEC.decode(self._payloads[0])))
                self._payloads.popleft()
        except WireError:
            if messages:
                return messages  # what was said before it counts; it is met again
            self.broken = True
            self._payloads.clear()
            raise
        return messages

    def _read_frames(self, budget: int) -> None:
        """Read what is there. What cannot be read on is met when all that came before it has been returned."""
        size = READ_BYTES
        while budget > 0:
            data = self._read(self.fd, size)
            if not data:
                self.at_end = data is not None
                break
            try:
                self._payloads += self._frames.feed(data)
            except WireError:
                if not self._payloads:
                    raise
                break
            if len(data) < size:
                break
            budget -= len(data)
            size = TURN_BYTES

    @property
    def more(self) -> bool:
        """Whether messages were read that ``receive`` has not returned yet, or failed at."""
        return bool(self._payloads)

    def send(self, message: wire.ToWorker) -> bool:
        """Write one message; false when part of it waits for ``flush``."""
        data = wire.frame(_CODEC.encode(message))
        if self._unsent:
            self._unsent += data
            return False
        sent = self._write(data)
        if sent < len(data):
            self._unsent += data[sent:]
            return False
        return True

    @property
    def clogged(self) -> bool:
        """Whether the worker does not read what it was told."""
        return len(self._unsent) > CLOGGED_BYTES

    def flush(self) -> bool:
        """Write on; true when nothing is left."""
        if self._unsent:
            sent = self._write(self._unsent)
            del self._unsent[:sent]
        return not self._unsent

    def expect_marks(self, mark: str) -> None:
        """From here on, what jobs print begins with ``mark``.

        Raises:
            WireError: that is no mark.
        """
        self._marks = MarkReader(mark)

    @property
    def log_waits(self) -> bool:
        """Whether anything of the log is not returned yet. Asked at each end of a job: an empty read costs five times that."""
        fcntl.ioctl(self.log_fd, termios.FIONREAD, self._waiting)
        return self._waiting[0] != 0 or bool(self._held or self._unfinished)

    @property
    def more_log(self) -> bool:
        """Whether output was read that ``read_log`` has not returned yet."""
        return bool(self._held)

    def read_log(self, running: Collection[str], budget: int = LOG_TURN_BYTES, most: int = TURN_LINES) -> list[Said]:
        """The whole lines that the worker (or what it started) has written, at most about ``budget`` bytes of them and ``most``
        lines. ``more_log`` says whether others were read.

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
        read = self._read(self.log_fd, READ_BYTES)
        if not read:
            self.log_at_end = read is not None
        return read or b"", len(read or b"") < READ_BYTES

    def _hold_back(self, data: bytes, most: int) -> tuple[bytes, int]:
        """The first ``most`` lines of ``data`` and how many there are; the others wait."""
        count = data.count(b"\n")
        if count > most:
            self._held = data.split(b"\n", most)[-1]
            return data[: len(data) - len(self._held)], most
        return data, count

    def last_log_of(self, job: str, running: Collection[str]) -> list[Said]:
        """Everything in the log pipe as ``job`` ends, its unfinished line too; if it ran alone, that of the worker as well."""
        said = self.read_log(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        self._finish(said, [job] if len(running) > 1 else list(self._unfinished))
        self._words.pop(job, None)
        return said

    def last_log(self, running: Collection[str]) -> list[Said]:
        """Everything left in the log pipe of a worker that is dead."""
        said = self.read_log(running, LOG_PIPE_BYTES, LOG_PIPE_BYTES)
        if self._marks is not None:
            self._say(said, None, self._cut(None, self._marks.rest()))
        self._finish(said, list(self._unfinished))
        return said

    def last_words(self, job: str) -> list[str]:
        """The newest lines of ``job`` and those that name no job, in their order."""
        return [line for _, line in sorted([*self._words.get(None, ()), *self._words.get(job, ())])]

    def forget_words(self) -> None:
        """What was printed until now was about other jobs."""
        self._words.clear()

    def close(self) -> None:
        """Let go of both pipes."""
        self._connection.close()
        os.close(self.log_fd)

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
        """Add ``lines`` to ``said`` and to the last words."""
        lines = [line for line in lines if not line.startswith(_OWN_FRAME) or ", in " in line]
        if not lines:
            return
        if said and said[-1].job == job:
            said[-1].lines.extend(lines)
        else:
            said.append(Said(job, lines))
        words = self._words.get(job)
        if words is None:
            words = self._words[job] = deque(maxlen=TAIL_LINES)
        newest = lines[-WORDS_LINES:]
        words.extend(enumerate(newest, self._count))
        self._count += len(newest)

    @staticmethod
    def _read(fd: int, size: int) -> bytes | None:
        """What is there; ``None`` when that is nothing, empty at the end of the pipe."""
        try:
            return os.read(fd, size)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The worker died with a message of ours unread: nothing of its own is lost by that.
            return b""

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            # The worker is dead; its death is reported by the template and decides about the job.
            return len(data)
