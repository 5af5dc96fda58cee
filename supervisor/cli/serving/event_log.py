"""One line per event on stderr, for people, service managers and log collectors; runs in the supervisor's process.

The loop that calls this never waits for who reads stderr: lines go through a bounded queue to a thread that writes them.
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

#: Bytes of handlers' output that may wait for a slow reader. Events of the program itself may use as much again.
LIMIT = 4 * 2**20

#: Seconds from one write to the next: under load lines go out together, and the loop is not interrupted for each.
PAUSE = 0.01

#: Seconds that the end waits for a stream that takes bytes and does not get them: a file on a server that is gone, say.
PATIENCE = 60.0

#: Seconds from one drawing of the footer to the next.
REDRAW = 0.25

_CLEAR_ROW = b"\r\x1b[2K"

_TERMINAL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")

#: What could move the cursor, or (the last range but one, and the last) make a line read other than it is.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Stream(Protocol):
    """What a file object needs to have to be written to here."""

    def fileno(self) -> int:
        """Its descriptor."""

    def isatty(self) -> bool:
        """Whether a person looks at it."""


class Lines:
    """Writes the program's events and what handlers print to one stream. To be called from one thread.

    ``log_format`` is ``text`` or ``json``. The descriptor is written to without the stream's own buffer, whose lock a blocked
    thread would hold while the interpreter ends.
    """

    def __init__(self, stream: Stream, log_format: str, footer: Callable[[], bytes] | None = None) -> None:
        """Start the writer. What ``footer`` gives, called in the writer's thread, stands below the lines on a terminal: one
        row, drawn anew every ``REDRAW`` seconds, and gone in the end."""
        self._footer = footer
        self._fd = stream.fileno()
        self._json = log_format == "json"
        self._terminal = stream.isatty()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._bar = "│" if _can_encode("│", self._encoding) else "|"
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        # Each is written by one thread alone, so their difference needs no lock.
        self._taken = 0
        self._written = 0
        self._dropped = 0
        self._dropped_said = 0
        self._reader_gone = False
        self._writer = threading.Thread(target=self._write_all, name="supervise-lines", daemon=True)
        self._writer.start()

    def event(self, at: int, kind: str, text: str, **fields: object) -> None:
        """Say that something happened ``at`` (ms since 1970): ``text`` alone, or JSON with ``kind`` and ``fields`` too."""
        if self._json:
            self._put(as_json(at, kind, {**fields, "text": text}), 2 * LIMIT)
        else:
            self._put(self._as_text(text), 2 * LIMIT)

    def log(self, at: int, slot: str, job: str | None, text: str) -> None:
        """Pass on what the worker in ``slot`` printed ``at`` (ms since 1970), for ``job`` where that is known."""
        if self._json:
            self._put(as_json(at, "log", {"slot": slot, "job": job, "text": text}), LIMIT)
        else:
            prefix = f"{slot} {self._bar} "
            if job is not None:
                prefix += f"{_CONTROL.sub(_escaped, job)} {self._bar} "
            self._put(self._as_text(text, prefix), LIMIT)

    def flush(self, timeout: float) -> bool:
        """Wait until all lines are written, ``timeout`` seconds at most; whether they are."""
        deadline = time.monotonic() + timeout
        while self._written < self._taken and self._writer.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(PAUSE / 4)
        return self._written >= self._taken

    def close(self, timeout: float) -> bool:
        """Write what is left, and end; whether all was written. Nothing may be said afterwards.

        Who does not read is waited for ``timeout`` seconds in all. While the stream takes bytes it is only the machine that is
        slow, and the last words are worth waiting for, up to ``PATIENCE`` seconds.
        """
        self._say_dropped()
        self._closing.set()
        self._queue.put(None)
        # Looks are counted, not time: while the whole machine stands still there is none, and nobody can read.
        looks = full = 0
        while self._writer.is_alive() and full * PAUSE < timeout and looks * PAUSE < PATIENCE:
            self._writer.join(PAUSE)
            looks += 1
            full += _is_full(self._fd)
        return self._written >= self._taken

    def _put(self, line: bytes, limit: int) -> None:
        if self._reader_gone:
            return  # and there is no other place to say so
        if self._taken - self._written + len(line) > limit:
            self._dropped += 1
            return
        self._say_dropped()
        self._enqueue(line)

    def _say_dropped(self) -> None:
        if missing := self._dropped - self._dropped_said:
            self._dropped_said = self._dropped
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
        # A progress bar draws over itself: what a terminal would show in the end is what counts.
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
        """What is to be written: none when only the footer is to be drawn anew, ``None`` behind the last."""
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
    """One line of a user's text that cannot command a terminal: no sequences, and control characters as escapes."""
    return _CONTROL.sub(_escaped, _TERMINAL_SEQUENCE.sub("", line))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_full(fd: int) -> bool:
    """Whether who writes to ``fd`` now would wait for its reader."""
    look = select.poll()
    look.register(fd, select.POLLOUT)
    return not look.poll(0)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # noqa: PERF203 - rare: another program that shares the terminal made it non-blocking
            time.sleep(PAUSE)


def as_json(at: int, kind: str, fields: dict[str, object]) -> bytes:
    """The line of an event ``at`` (ms since 1970), as ``--log-format json`` writes it."""
    moment = datetime.datetime.fromtimestamp(at / 1000, datetime.timezone.utc)
    line = {"ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "event": kind, **fields}
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:  # what a worker printed was not UTF-8 and was decoded with escapes
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
