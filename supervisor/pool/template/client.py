"""The supervisor's client of the template: starts and restarts it, and requests forks and signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import msgspec

from supervisor.cause import TemplateEnd, TemplateNotStarted, TemplateVanished, process_end
from supervisor.pool.interfaces import Loop, Template
from supervisor.pool.template.process import TemplateExited
from supervisor.wire import messages as wire

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds to wait before a restart, by the number of consecutive deaths before the template could fork."""

TRIES = 3
"""Number of consecutive deaths after which a start counts as failed."""


class TemplateLost(msgspec.Struct, frozen=True):
    """The template died; another start follows. ``end`` says how; ``repeated`` after ``TRIES`` deaths in a row."""

    end: TemplateEnd
    repeated: bool


class TemplateClient:
    """The current template, or the wait for the next one. ``ready``: it can fork."""

    def __init__(
        self, launch: Callable[[], Template], sweep: Callable[[], int], loop: Loop, wake: Callable[[], None]
    ) -> None:
        """Start templates by ``launch``; call ``wake`` when ``collect`` has something to read.

        ``launch`` raises ``OSError`` if the system cannot. ``sweep`` terminates the processes of a dead template and returns
        their number.
        """
        self.ready = False
        self.sweep = sweep
        self._launch = launch
        self._loop = loop
        self._wake = wake
        self._template: Template | None = None
        self._readable = False
        self._failures = 0
        self._start_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The template's process id; None while there is none."""
        return None if self._template is None else self._template.pid

    # --- lifecycle ------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Schedule the first start, by ``collect``."""
        self._start_at = now

    def deadline(self) -> float | None:
        """Return the latest time at which ``collect`` must run again."""
        return self._start_at

    def collect(self, now: float) -> list[Union[wire.FromTemplate, TemplateLost]]:
        """Return the template's reports; ``TemplateLost`` if it died."""
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            try:
                self._template = self._launch()
            except OSError as error:
                return [self._lost(TemplateNotStarted(str(error)), now)]
            self.set_reading(True)
        if self._template is None or not self._readable:
            return []
        self._readable = False
        return [self._take(report, now) for report in self._template.receive()]

    def set_reading(self, reading: bool) -> None:
        """Watch the template's socket, or stop watching it."""
        if self._template is not None and reading:
            self._loop.add_reader(self._template.fileno(), self._report_waits)
        elif self._template is not None:
            self._loop.remove_reader(self._template.fileno())

    def close(self) -> None:
        """Stop reading, and cancel a scheduled start."""
        self.ready = self._readable = False
        self._start_at = None
        if self._template is not None:
            self._loop.remove_reader(self._template.fileno())
            self._loop.remove_writer(self._template.fileno())

    def resume(self) -> None:
        """Resume a template that was stopped by SIGSTOP: requests would wait for ever."""
        if self._template is not None:
            self._template.resume()

    def stop(self, timeout: float) -> None:
        """Stop the template and its workers, waiting up to ``timeout`` seconds; sweep what is left."""
        if self._template is None:
            return
        self._template.send(wire.Quit())
        self._template.resume()
        if self._template.wait(timeout) is None:
            self._template.kill()
            self._template.wait(timeout)
        self._template.close()
        self.sweep()

    def _take(
        self, report: Union[wire.FromTemplate, TemplateExited], now: float
    ) -> Union[wire.FromTemplate, TemplateLost]:
        if isinstance(report, TemplateExited):
            return self._lost(TemplateVanished() if report.status is None else process_end(report.status), now)
        if isinstance(report, wire.TemplateReady):
            self.ready = True
            self._failures = 0
        return report

    def _lost(self, end: TemplateEnd, now: float) -> TemplateLost:
        self.close()
        if self._template is not None:
            self._template.close()
            self._template = None
        self._start_at = now + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        return TemplateLost(end, self._failures >= TRIES)

    # --- sending --------------------------------------------------------------------------------------------------------

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` as ``TemplateProcess.send`` does, unless the template is dead: its workers died with it."""
        if self._template is None:
            return
        self._template.resume()
        self._template.send(message, descriptors)
        if self._template.wants_write:
            self._loop.add_writer(self._template.fileno(), self._write_on)

    def _report_waits(self) -> None:
        self._readable = True
        self._wake()

    def _write_on(self) -> None:
        if self._template is not None:
            self._template.flush()
            if not self._template.wants_write:
                self._loop.remove_writer(self._template.fileno())
