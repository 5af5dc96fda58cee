"""Keeps a template running for the pool: starts it, hears it, and starts another when it has died. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import msgspec

from supervisor.host.exit_status import describe_exit
from supervisor.pool.interfaces import Loop, Starter
from supervisor.pool.template.process import Gone
from supervisor.wire import messages as wire

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the template is started again, by how often in a row it died before it could fork."""

TRIES = 3
"""After so many deaths in a row nobody should wait for it any more."""


class Lost(msgspec.Struct, frozen=True):
    """There is no template now; another start follows. ``how`` is for people; ``hopeless`` after ``TRIES`` in a row."""

    how: str
    hopeless: bool


class Keeper:
    """The present template, or the wait for the next one. ``ready`` says that it can fork."""

    def __init__(self, starter: Starter, loop: Loop, wake: Callable[[], None]) -> None:
        """Keep what ``starter`` starts; call ``wake`` when ``collect`` has something to read."""
        self.ready = False
        self._starter = starter
        self._loop = loop
        self._wake = wake
        self._up = False
        self._spoke = False
        self._failures = 0
        self._start_at: float | None = None

    def start(self, now: float) -> None:
        """Have ``collect`` start the first one."""
        self._start_at = now

    def deadline(self) -> float | None:
        """When ``collect`` must run again at the latest."""
        return self._start_at

    def collect(self, now: float) -> list[Union[wire.FromTemplate, Lost]]:
        """What the template has said; ``Lost`` when there is none any more."""
        if self._start_at is not None and now >= self._start_at:
            return self._start(now)
        if not self._spoke:
            return []
        self._spoke = False
        return [self._heard(report, now) for report in self._starter.receive()]

    def flush(self) -> None:
        """Something was asked of it: write on as soon as it takes more than it did."""
        if self._starter.wants_write:
            self._loop.add_writer(self._starter.fileno(), self._write_on)

    def listen(self, listening: bool) -> None:
        """Hear the template, or leave what it says where it is."""
        if self._up and listening:
            self._loop.add_reader(self._starter.fileno(), self._hear)
        elif self._up:
            self._loop.remove_reader(self._starter.fileno())

    def close(self) -> None:
        """Listen no more."""
        if self._up:
            self._loop.remove_reader(self._starter.fileno())
            self._loop.remove_writer(self._starter.fileno())
        self._up = self._spoke = self.ready = False
        self._start_at = None

    def _start(self, now: float) -> list[Union[wire.FromTemplate, Lost]]:
        self._start_at = None
        try:
            self._starter.start()
        except OSError as error:
            return [self._lost(f"could not be started: {error}", now)]
        self._up = True
        self.listen(True)
        return []

    def _heard(self, report: Union[wire.FromTemplate, Gone], now: float) -> Union[wire.FromTemplate, Lost]:
        if isinstance(report, Gone):
            return self._lost("ended" if report.status is None else describe_exit(report.status), now)
        if isinstance(report, wire.TemplateReady):
            self.ready = True
            self._failures = 0
        return report

    def _lost(self, how: str, now: float) -> Lost:
        self.close()
        self._start_at = now + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        return Lost(how, self._failures >= TRIES)

    def _hear(self) -> None:
        self._spoke = True
        self._wake()

    def _write_on(self) -> None:
        self._starter.flush()
        if not self._starter.wants_write:
            self._loop.remove_writer(self._starter.fileno())
