"""One line per event on stderr, for users, service managers and log collectors; runs in the supervisor's process.

The event loop never waits for stderr's reader: lines go through a bounded queue to a thread that writes them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import re
import select
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

#: Bytes of handlers' output that may be queued for a slow reader. The program's own events may use as much again.
LIMIT = 4 * 2**20

#: Seconds between writes: under load, lines are written in batches, and the loop is not interrupted for each.
PAUSE = 0.01

#: Seconds that ``close`` waits for a stream that is writable but does not finish, such as a file on an unreachable server.
PATIENCE = 60.0

#: Seconds between redraws of the footer.
REDRAW = 0.25

_CLEAR_ROW = b"\r\x1b[2K"

_TERMINAL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")

#: Characters that could move the cursor or (the last two ranges) disguise a line's text.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class OutputStream(Protocol):
    """The part of a file object that ``EventLog`` uses."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""


class EventLog:
    """Writes the program's events and the workers' output to one stream. Not thread-safe.

    ``log_format`` is ``text`` or ``json``. Bypasses the stream's own buffer, whose lock a blocked thread would hold at
    interpreter exit.
    """

    def __init__(self, stream: OutputStream, log_format: str, footer: Callable[[], bytes] | None = None) -> None:
        """Start the writer thread. It calls ``footer`` every ``REDRAW`` seconds for a row to show below the lines, and clears
        that row at the end."""
        self._footer = footer
        self._fd = stream.fileno()
        self._json = log_format == "json"
        self._terminal = stream.isatty()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._bar = "│" if _can_encode("│", self._encoding) else "|"
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        # Each has a single writer thread, so their difference needs no lock.
        self._taken = 0
        self._written = 0
        self._dropped = 0
        self._dropped_logged = 0
        self._reader_gone = False
        self._writer = threading.Thread(target=self._write_all, name="supervise-lines", daemon=True)
        self._writer.start()

    def event(self, at: int, kind: str, text: str, **fields: object) -> None:
        """Log an event that happened ``at`` (ms since 1970): ``text`` alone, or JSON with ``kind`` and ``fields`` too."""
        if self._json:
            self._put(as_json(at, kind, {**fields, "text": text}), 2 * LIMIT)
        else:
            self._put(self._as_text(text), 2 * LIMIT)

    def log(self, at: int, slot: str, job: str | None, text: str) -> None:
        """Log output of the worker in ``slot``, read ``at`` (ms since 1970), for ``job`` if known."""
        if self._json:
            self._put(as_json(at, "log", {"slot": slot, "job": job, "text": text}), LIMIT)
        else:
            prefix = f"{slot} {self._bar} "
            if job is not None:
                prefix += f"{_CONTROL.sub(_escaped, job)} {self._bar} "
            self._put(self._as_text(text, prefix), LIMIT)

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for all lines to be written; return whether they are."""
        deadline = time.monotonic() + timeout
        while self._written < self._taken and self._writer.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(PAUSE / 4)
        return self._written >= self._taken

    def close(self, timeout: float) -> bool:
        """Write the queued lines and stop; return whether all were written. Nothing may be logged afterwards.

        Waits ``timeout`` seconds for a reader that does not read, and up to ``PATIENCE`` seconds while the stream is writable,
        as on a slow machine.
        """
        self._log_dropped()
        self._closing.set()
        self._queue.put(None)
        # Counts polls, not time: while the whole machine is suspended, no reader can read.
        polls = full = 0
        while self._writer.is_alive() and full * PAUSE < timeout and polls * PAUSE < PATIENCE:
            self._writer.join(PAUSE)
            polls += 1
            full += _is_full(self._fd)
        return self._written >= self._taken

    def _put(self, line: bytes, limit: int) -> None:
        if self._reader_gone:
            return  # there is nowhere else to report it
        if self._taken - self._written + len(line) > limit:
            self._dropped += 1
            return
        self._log_dropped()
        self._enqueue(line)

    def _log_dropped(self) -> None:
        if missing := self._dropped - self._dropped_logged:
            self._dropped_logged = self._dropped
            text = f"{missing} lines are missing here: stderr is read too slowly"
            now = time.time_ns() // 1_000_000
            self._enqueue(
                as_json(now, "dropped", {"lines": missing, "text": text}) if self._json else self._as_text(text)
            )

    def _enqueue(self, line: bytes) -> None:
        self._taken += len(line)
        self._queue.put(line)

    def _as_text(self, text: str, prefix: str = "") -> bytes:
        lines = text.rstrip("\r\n").split("\n")
        return "".join(f"{prefix}{self._clean(line)}\n" for line in lines).encode(self._encoding, "backslashreplace")

    def _clean(self, line: str) -> str:
        # A progress bar overwrites itself: keep what a terminal would show in the end.
        line = line.rstrip("\r").rpartition("\r")[2]
        if not self._terminal:
            return line
        return visible(line)

    def _write_all(self) -> None:
        while True:
            batch = self._next_lines()
            data = b"".join(line for line in batch if line is not None)
            ending = bool(batch) and batch[-1] is None
            try:
                _write(self._fd, data if self._footer is None else self._with_footer(data, self._footer, ending))
            except OSError:
                self._reader_gone = True
                return
            self._written += len(data)
            if ending:
                return
            self._closing.wait(PAUSE)

    def _next_lines(self) -> list[bytes | None]:
        """Return the lines to write: none if only the footer is due, ``None`` after the last one."""
        batch: list[bytes | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._queue.get(timeout=None if self._footer is None else REDRAW))
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
        return batch

    @staticmethod
    def _with_footer(data: bytes, footer: Callable[[], bytes], ending: bool) -> bytes:
        return _CLEAR_ROW + data + (b"" if ending else footer())


def visible(line: str) -> str:
    """Make a line of user text safe for a terminal: drop escape sequences, and escape control characters."""
    return _CONTROL.sub(_escaped, _TERMINAL_SEQUENCE.sub("", line))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_full(fd: int) -> bool:
    """Return whether a write to ``fd`` would block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return not poll.poll(0)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # noqa: PERF203 - rare: a program that shares the terminal made it non-blocking
            time.sleep(PAUSE)


def as_json(at: int, kind: str, fields: dict[str, object]) -> bytes:
    """Return an event's line as ``--log-format json`` writes it; ``at`` is ms since 1970."""
    moment = datetime.datetime.fromtimestamp(at / 1000, datetime.timezone.utc)
    line = {"ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "event": kind, **fields}
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:  # a worker's output was not UTF-8 and was decoded with surrogate escapes
        readable = {key: _readable(value) for key, value in line.items()}
        return msgspec.json.encode(readable) + b"\n"


def _readable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
