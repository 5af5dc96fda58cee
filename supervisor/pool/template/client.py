"""The supervisor's client of the template: starts it, and another when it has died, and has it fork, signal and end workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import msgspec

from supervisor.cause import TemplateEnd, TemplateNotStarted, TemplateVanished, process_end
from supervisor.pool.interfaces import Loop, Template
from supervisor.pool.template.process import Gone
from supervisor.wire import messages as wire

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the template is started again, by how often in a row it died before it could fork."""

TRIES = 3
"""After so many deaths in a row nobody should wait for it any more."""


class Lost(msgspec.Struct, frozen=True):
    """There is no template now; another start follows. ``end`` says how it ended; ``hopeless`` after ``TRIES`` in a row."""

    end: TemplateEnd
    hopeless: bool


class TemplateClient:
    """The present template, or the wait for the next one. ``ready`` says that it can fork."""

    def __init__(
        self, launch: Callable[[], Template], sweep: Callable[[], int], loop: Loop, wake: Callable[[], None]
    ) -> None:
        """Keep what ``launch`` starts; call ``wake`` when ``collect`` has something to read.

        ``launch`` raises ``OSError`` when the system refuses. ``sweep`` ends what a dead template left behind, and says how many
        processes that were.
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
        """The template's process id; ``None`` while there is none."""
        return None if self._template is None else self._template.pid

    # --- its life -------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Have ``collect`` start the first one."""
        self._start_at = now

    def deadline(self) -> float | None:
        """When ``collect`` must run again at the latest."""
        return self._start_at

    def collect(self, now: float) -> list[Union[wire.FromTemplate, Lost]]:
        """Return what the template has reported; ``Lost`` when there is none any more."""
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            try:
                self._template = self._launch()
            except OSError as error:
                return [self._lost(TemplateNotStarted(str(error)), now)]
            self.listen(True)
        if self._template is None or not self._readable:
            return []
        self._readable = False
        return [self._take(report, now) for report in self._template.receive()]

    def listen(self, listening: bool) -> None:
        """Read what the template reports, or leave it where it is."""
        if self._template is not None and listening:
            self._loop.add_reader(self._template.fileno(), self._report_waits)
        elif self._template is not None:
            self._loop.remove_reader(self._template.fileno())

    def close(self) -> None:
        """Start and read nothing more."""
        self.ready = self._readable = False
        self._start_at = None
        if self._template is not None:
            self._loop.remove_reader(self._template.fileno())
            self._loop.remove_writer(self._template.fileno())

    def resume(self) -> None:
        """Let a template that somebody has stopped (SIGSTOP) go on: what is asked of it would wait for ever."""
        if self._template is not None:
            self._template.resume()

    def stop(self, timeout: float) -> None:
        """End the template and everything below it, waiting up to ``timeout`` seconds; what is left then is swept."""
        if self._template is None:
            return
        self._template.send(wire.Quit())
        self._template.resume()
        if self._template.wait(timeout) is None:
            self._template.kill()
            self._template.wait(timeout)
        self._template.close()
        self.sweep()

    def _take(self, report: Union[wire.FromTemplate, Gone], now: float) -> Union[wire.FromTemplate, Lost]:
        if isinstance(report, Gone):
            return self._lost(TemplateVanished() if report.status is None else process_end(report.status), now)
        if isinstance(report, wire.TemplateReady):
            self.ready = True
            self._failures = 0
        return report

    def _lost(self, end: TemplateEnd, now: float) -> Lost:
        self.close()
        if self._template is not None:
            self._template.close()
            self._template = None
        self._start_at = now + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        return Lost(end, self._failures >= TRIES)

    # --- the loop -------------------------------------------------------------------------------------------------------

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` as ``TemplateProcess.send`` does. Nothing to a dead one, whose workers died with it: fork by one that
        is ``ready``."""
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
