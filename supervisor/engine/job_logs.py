"""Logs of what jobs print: in memory while a piece fills, then in the store; in the supervisor."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import msgspec

from supervisor.engine.jobs import Jobs
from supervisor.engine.waiters import Waiters
from supervisor.job import Job
from supervisor.store.store import Store
from supervisor.store.writes import AddLog

PIECE = 32 * 1024
"""Bytes that are collected before a write: a row for each line would cost more than the job."""

READ_PIECES = 16
"""Pieces per read from the store, so that a long log is never in memory at once."""


class LogText(msgspec.Struct, frozen=True):
    """Part of the log of ``job``: ``text`` (UTF-8) from byte offset ``start`` on, in whole lines except where ``start`` cuts."""

    job: Job
    start: int
    text: bytes

    @property
    def end(self) -> int:
        """Byte offset of the next read."""
        return self.start + len(self.text)


class OpenLog(msgspec.Struct, frozen=True):
    """Unwritten log of a running job: ``text`` from byte ``at`` on; ``dropped`` bytes were over the limit."""

    at: int
    text: bytes = b""
    dropped: int = 0


Drafts = dict[str, OpenLog | None]
"""Logs by job id as of one turn; ``None``: closed."""


class JobLogs:
    """The logs of all jobs. Writes go into the engine's turn; reads show the store's text and the unwritten one."""

    def __init__(self, jobs: Jobs, store: Store, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        """Keep ``limit`` bytes of each job."""
        self.waiters = Waiters(loop)
        """Clients that wait for more output, or the job's end."""
        self._jobs = jobs
        self._store = store
        self._limit = limit
        self._open: dict[str, OpenLog] = {}

    # --- in a turn ------------------------------------------------------------------------------------------------------

    def printed(self, drafts: Drafts, job: Job, lines: Sequence[str]) -> AddLog | None:
        """Add ``lines`` of a running job; return the row to write now, if any."""
        log = drafts.get(job.id) or self._open.get(job.id) or OpenLog(self._store.log_end(job.seq))
        log = self._filled(log, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
        row = None
        if len(log.text) >= PIECE:
            row = AddLog(job.seq, log.at, log.text)
            log = OpenLog(log.at + len(log.text), b"", log.dropped)
        drafts[job.id] = log
        return row

    def _filled(self, log: OpenLog, more: bytes) -> OpenLog:
        """Append as many whole lines of ``more`` to ``log`` as ``--max-log`` allows."""
        room = self._limit - log.at - len(log.text)
        if log.dropped:
            room = 0
        elif len(more) <= room:
            return OpenLog(log.at, log.text + more)
        kept = 0
        for line in io.BytesIO(more):
            if kept + len(line) > room:
                break
            kept += len(line)
        return OpenLog(log.at, log.text + more[:kept], log.dropped + len(more) - kept)

    def close(self, drafts: Drafts, job: Job) -> AddLog | None:
        """Close the log of a job that leaves its worker; return the row to write, if any."""
        log = drafts.get(job.id) or self._open.get(job.id)
        if log is None:
            return None
        drafts[job.id] = None
        text = log.text
        if log.dropped:
            text += f"[{log.dropped} more bytes were printed; --max-log keeps {self._limit}]\n".encode()
        return AddLog(job.seq, log.at, text) if text else None

    def apply(self, drafts: Drafts) -> None:
        """Keep the unwritten text of a committed turn."""
        for job_id, log in drafts.items():
            if log is None:
                self._open.pop(job_id, None)
            else:
                self._open[job_id] = log

    # --- for clients ----------------------------------------------------------------------------------------------------

    def read(self, job_id: str, start: int = 0) -> LogText | None:
        """Read a piece of a job's log from byte ``start`` on; ``None`` for an unknown job.

        Empty text means the end of the log: the present one, or the final one if the job had ended.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return None
        pieces = self._store.log(job.seq, start, READ_PIECES)
        at = pieces[0][0] if pieces else 0
        text = b"".join(piece for _, piece in pieces)
        log = self._open.get(job_id)
        # While a piece is being committed there is a gap before the text behind it.
        if log is not None and len(pieces) < READ_PIECES and log.at == at + len(text):
            text += log.text
        return LogText(job, start, text[max(0, start - at) :])

    async def follow(self, job_id: str, start: int, timeout: float) -> LogText | None:
        """Read as ``read`` does, but wait up to ``timeout`` seconds for more, or for the job's end."""
        found = self.read(job_id, start)
        if found is None or found.text or found.job.status.terminal:
            return found
        await self.waiters.wait(job_id, timeout)
        return self.read(job_id, start)
