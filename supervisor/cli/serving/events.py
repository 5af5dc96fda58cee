"""Turns the engine's events into event lines, few enough to read; in the supervisor's process."""

from __future__ import annotations

import asyncio
import time

from supervisor.cli.serving.event_log import EventLog
from supervisor.engine.engine import Happening
from supervisor.job import Job, JobStatus, delay_ms, execution_ms
from supervisor.notice import Notice
from supervisor.pool import events
from supervisor.protocol import event_lines
from supervisor.protocol.wording import error_line

JOBS_PER_SECOND = 50
"""Completed jobs per second that are logged one by one; the rest is summarised in one line. Failures are always logged."""

LINES_AT_ONCE = 20_000
"""Maximum lines of one read: a worker's pipe may hold a million empty ones, each of which costs microseconds here."""

SECOND = 1.0
"""Seconds between summaries."""


class EventLogger:
    """Logs the engine's events; silent while the dashboard has the terminal."""

    def __init__(self, lines: EventLog) -> None:
        self._lines = lines
        self._paused = False
        self._completed = 0
        self._second: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        """Stop logging: the dashboard shows everything."""
        self._paused = True

    def resume(self) -> None:
        """Resume logging."""
        self._paused = False

    def close(self) -> None:
        """Log the pending summary."""
        if self._second is not None:
            self._second.cancel()
            self._second_over()

    def event(self, kind: str, text: str, **fields: object) -> None:
        """Log ``text``; in JSON with ``kind`` and ``fields``."""
        if not self._paused:
            self._lines.event(_now_ms(), kind, text, **fields)

    def observe(self, happening: Happening) -> None:
        """Log ``happening``; registered as an observer of the engine."""
        if self._paused:
            return
        if isinstance(happening, Job):
            self._job_ended(happening)
        elif isinstance(happening, events.Printed):
            self._printed(happening)
        elif isinstance(happening, Notice):
            self.event(happening.kind, event_lines.line(happening), **event_lines.fields(happening))

    def _printed(self, event: events.Printed) -> None:
        at = _now_ms()
        left_out = len(event.lines) - LINES_AT_ONCE
        if left_out > 0:
            text = f"({left_out} lines that came at once with these are left out here)"
            self._lines.log(at, event.slot, event.job, text)
        for line in event.lines[-LINES_AT_ONCE:]:
            self._lines.log(at, event.slot, event.job, line)

    def _job_ended(self, job: Job) -> None:
        if job.status is JobStatus.COMPLETED:
            if self._second is None:
                self._second = asyncio.get_running_loop().call_later(SECOND, self._second_over)
            self._completed += 1
            if self._completed > JOBS_PER_SECOND:
                return
        error = error_line(job)
        text = f"job {job.id} {job.status.value}"
        if job.started_ms is not None:
            text += f" in {execution_ms(job)} ms on {job.worker_id}"
        self.event(
            "job",
            f"{text}: {error}" if error else text,
            id=job.id,
            status=job.status.value,
            workerId=job.worker_id,
            delayTime=delay_ms(job),
            executionTime=execution_ms(job),
            **({"error": error} if error else {}),
        )

    def _second_over(self) -> None:
        more = self._completed - JOBS_PER_SECOND
        self._second, self._completed = None, 0
        if more > 0:
            self.event("jobs", f"{more} more jobs completed", completed=more)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
