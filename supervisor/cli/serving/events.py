"""Turns what the engine tells its observers into event lines, few enough to read; in the supervisor."""

from __future__ import annotations

import asyncio
import time

from supervisor.cli.serving.event_log import Lines
from supervisor.engine.engine import Happening
from supervisor.job import Job, JobStatus, delay_ms, execution_ms
from supervisor.notice import Notice
from supervisor.pool import events
from supervisor.protocol import event_lines
from supervisor.protocol.wording import error_line

JOBS_PER_SECOND = 50
"""Completed jobs that get a line each in one second; the others are counted in one line. What failed is always said."""

LINES_AT_ONCE = 20_000
"""A worker's pipe may be full of empty lines when its job ends: a million, each of which costs microseconds here."""

SECOND = 1.0
"""After so many seconds the others are counted."""


class EventLogger:
    """Writes lines, or nothing while the dashboard has the terminal."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._paused = False
        self._completed = 0
        self._second: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        """Be silent: the dashboard shows everything."""
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
        """Say ``text``; in JSON with its ``kind`` and ``fields``."""
        if not self._paused:
            self._lines.event(_now_ms(), kind, text, **fields)

    def tell(self, happening: Happening) -> None:
        """An observer of the engine."""
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
