"""The progress of a batch, as a bar on a terminal or as event lines elsewhere; in the supervisor's process."""

from __future__ import annotations

import threading
import time
from collections import deque

import msgspec
from rich.console import Console
from rich.text import Text

from supervisor.batch.batch import Batch
from supervisor.dashboard.terminal import Terminal
from supervisor.dashboard.text import bar, span

WINDOW_S = 30.0
"""Seconds that the rate is averaged over."""

_BAR_CELLS = 32
_SAMPLE_S = 0.2


class BatchProgress(msgspec.Struct, frozen=True):
    """Lines by state, ``share`` (0 to 1) of the input's bytes if its length is known, lines per second, and seconds left."""

    done: int
    failed: int
    running: int
    share: float | None
    rate: float
    left: float | None


class Gauge:
    """Measures a batch's progress and rate. Thread-safe."""

    def __init__(self, work: Batch, size: int | None) -> None:
        """Measure ``work`` from now on; ``size`` is the length of its input in bytes, if known."""
        self._work = work
        self._size = size
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int, int]] = deque()
        self.restart()

    def restart(self) -> None:
        """Start measuring again: lines done so far do not count."""
        with self._lock:
            self._began = time.monotonic()
            self._at_first = self._work.done
            self._samples.clear()
            self._samples.append((self._began, self._work.done, self._work.bytes_done))

    def this_run(self) -> tuple[int, float]:
        """Return the number of lines that this run has finished, and the seconds it took."""
        return self._work.done - self._at_first, time.monotonic() - self._began

    def read(self) -> BatchProgress:
        """Return the current progress."""
        now, work = time.monotonic(), self._work
        with self._lock:
            samples = self._samples
            while len(samples) > 1 and samples[1][0] < now - WINDOW_S:
                samples.popleft()
            at, done, size = samples[0]
            if now - samples[-1][0] >= _SAMPLE_S:
                samples.append((now, work.done, work.bytes_done))
        passed = max(now - at, 0.001)
        share = left = None
        if self._size is not None:
            share = min(work.bytes_done / self._size, 1.0) if self._size else 1.0
            speed = (work.bytes_done - size) / passed
            left = max(self._size - work.bytes_done, 0) / speed if speed > 0 else None
        return BatchProgress(work.done, work.failed, work.running, share, (work.done - done) / passed, left)


class Bar:
    """Draws a gauge in one row of a terminal."""

    def __init__(self, gauge: Gauge, fd: int, encoding: str) -> None:
        self._gauge = gauge
        self._terminal = Terminal(screen=fd)
        self._encoding = encoding
        self._console = Console(force_terminal=True, highlight=False, width=80, soft_wrap=True)

    def __call__(self) -> bytes:
        """Return the current row, encoded for the terminal."""
        row = draw(self._gauge.read(), self._terminal.size()[0] - 1)
        with self._console.capture() as text:
            self._console.print(row, end="", no_wrap=True, crop=False)
        return text.get().encode(self._encoding, "replace")


def draw(reading: BatchProgress, width: int) -> Text:
    """Draw the row in at most ``width`` cells: the bar shrinks first, then the text is truncated."""
    words = Text(" ").join(_words(reading))
    row = Text()
    if reading.share is not None:
        cells = min(_BAR_CELLS, width - words.cell_len - 6)
        if cells >= 5:
            row.append_text(bar(reading.share, cells))
        row.append(f"{reading.share:>4.0%} ", "bold")
    row.append_text(words)
    row.truncate(max(width, 1), overflow="ellipsis")
    return row


def progress_line(reading: BatchProgress) -> str:
    """Return the progress as a line of text."""
    share = "" if reading.share is None else f" ({reading.share:.0%})"
    return f"{Text(', ').join(_words(reading, f' lines done{share}')).plain}"


def _words(reading: BatchProgress, of: str = " done") -> list[Text]:
    words = [Text(f"{reading.done:,}{of}")]
    words.append(Text(f"{reading.failed:,} failed", "red" if reading.failed else "dim"))
    words.append(Text(f"{reading.running:,} running"))
    words.append(Text(f"{reading.rate:,.1f}/s" if reading.rate < 99.95 else f"{reading.rate:,.0f}/s"))
    if reading.left is not None:
        words.append(Text(f"{span(reading.left)} left"))
    return words
