"""What each job printed, kept beside its result: in memory while a piece fills, then in the store; in the supervisor."""

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
"""Bytes that are gathered before they are written: a row for each line would cost more than the job."""

READ_PIECES = 16
"""How many pieces one look takes from the store, so that nobody's long log is in memory at once."""


class LogText(msgspec.Struct, frozen=True):
    """A part of what ``job`` printed: ``text``, UTF-8 in whole lines but for where it was cut by ``start``, a byte offset."""

    job: Job
    start: int
    text: bytes

    @property
    def end(self) -> int:
        """Where to go on."""
        return self.start + len(self.text)


class OpenLog(msgspec.Struct, frozen=True):
    """What of a running job's output is not in the store: ``text``, which begins at byte ``at``; ``dropped`` bytes are lost."""

    at: int
    text: bytes = b""
    dropped: int = 0


Drafts = dict[str, OpenLog | None]
"""The logs of jobs as one turn leaves them, by their ids; ``None``: closed."""


class JobLogs:
    """The logs of all jobs. What is written goes into the engine's turn; what is read is on disk, or printed just now."""

    def __init__(self, jobs: Jobs, store: Store, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        """Keep ``limit`` bytes of each job."""
        self.waiters = Waiters(loop)
        """To be woken when a job has printed more, and when it has ended."""
        self._jobs = jobs
        self._store = store
        self._limit = limit
        self._open: dict[str, OpenLog] = {}

    # --- in a turn ------------------------------------------------------------------------------------------------------

    def printed(self, drafts: Drafts, job: Job, lines: Sequence[str]) -> AddLog | None:
        """Add ``lines`` that a running job printed; what is to be written now, if anything."""
        log = drafts.get(job.id) or self._open.get(job.id) or OpenLog(self._store.log_end(job.seq))
        log = self._filled(log, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
        row = None
        if len(log.text) >= PIECE:
            row = AddLog(job.seq, log.at, log.text)
            log = OpenLog(log.at + len(log.text), b"", log.dropped)
        drafts[job.id] = log
        return row

    def _filled(self, log: OpenLog, more: bytes) -> OpenLog:
        """``log`` with the first lines of ``more``, as many as ``--max-log`` allows."""
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
        """End the log of a job that leaves its worker; what is to be written of it, if anything."""
        log = drafts.get(job.id) or self._open.get(job.id)
        if log is None:
            return None
        drafts[job.id] = None
        text = log.text
        if log.dropped:
            text += f"[{log.dropped} more bytes were printed; --max-log keeps {self._limit}]\n".encode()
        return AddLog(job.seq, log.at, text) if text else None

    def apply(self, drafts: Drafts) -> None:
        """Keep what a turn that is on disk has left unwritten."""
        for job_id, log in drafts.items():
            if log is None:
                self._open.pop(job_id, None)
            else:
                self._open[job_id] = log

    # --- for clients ----------------------------------------------------------------------------------------------------

    def read(self, job_id: str, start: int = 0) -> LogText | None:
        """What the job printed from byte ``start`` on, as much as one look takes; ``None`` when unknown. Empty text is its end,
        for now or (when the job had ended before) for good."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        pieces = self._store.log(job.seq, start, READ_PIECES)
        at = pieces[0][0] if pieces else 0
        text = b"".join(piece for _, piece in pieces)
        log = self._open.get(job_id)
        # While a piece is on its way to the disk there is a gap before what came after it.
        if log is not None and len(pieces) < READ_PIECES and log.at == at + len(text):
            text += log.text
        return LogText(job, start, text[max(0, start - at) :])

    async def follow(self, job_id: str, start: int, timeout: float) -> LogText | None:
        """As ``read``, but waits up to ``timeout`` seconds for more, or for the job's end."""
        found = self.read(job_id, start)
        if found is None or found.text or found.job.status.terminal:
            return found
        await self.waiters.wait(job_id, timeout)
        return self.read(job_id, start)
