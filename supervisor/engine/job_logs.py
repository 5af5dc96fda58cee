"""What each job printed, kept beside its result: in memory while a piece fills, then in the store; in the supervisor."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence

import msgspec

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


class OpenLog:
    """What of a running job's output is not in the store: ``text``, which begins at byte ``at``."""

    __slots__ = ("at", "dropped", "text")

    def __init__(self, at: int) -> None:
        """Nothing yet."""
        self.at = at
        self.text = bytearray()
        self.dropped = 0


class LogDraft:
    """What a turn adds to an open ``log``, which stays as it is until ``apply``."""

    __slots__ = ("at", "closed", "dropped", "log", "new", "written")

    def __init__(self, log: OpenLog) -> None:
        """Nothing yet."""
        self.log = log
        self.at = log.at
        self.new = bytearray()
        self.dropped = log.dropped
        self.written = False
        self.closed = False

    @property
    def size(self) -> int:
        """Bytes that are not written yet."""
        return len(self.new) if self.written else len(self.log.text) + len(self.new)

    def write(self, job: Job, more: bytes = b"") -> AddLog:
        """Make the row of what is not written yet, with ``more`` behind it."""
        row = AddLog(job.seq, self.at, (b"" if self.written else bytes(self.log.text)) + bytes(self.new) + more)
        self.at += len(row.text)
        self.written = True
        self.new.clear()
        return row

    def apply(self) -> None:
        """Change the log."""
        if self.written:
            self.log.text.clear()
        self.log.text += self.new
        self.log.at = self.at
        self.log.dropped = self.dropped


Drafts = dict[str, LogDraft]
"""What one turn adds to the logs of jobs, by their ids."""


class JobLogs:
    """The logs of all jobs. What is written goes into the engine's turn; what is read is on disk, or printed just now."""

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, limit: int, find: Callable[[str], Job | None]
    ) -> None:
        """Keep ``limit`` bytes of each job; ``find`` gives a job as clients may see it."""
        self.waiters = Waiters(loop)
        self._store = store
        self._limit = limit
        self._find = find
        self._open: dict[str, OpenLog] = {}

    # --- in a turn ------------------------------------------------------------------------------------------------------

    def printed(self, drafts: Drafts, job: Job, lines: Sequence[str]) -> AddLog | None:
        """Add ``lines`` that a running job printed; what is to be written now, if anything."""
        draft = drafts.get(job.id)
        if draft is None:
            log = self._open.get(job.id) or OpenLog(self._store.log_end(job.seq))
            draft = drafts[job.id] = LogDraft(log)
        whole = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        if not draft.dropped and draft.at + draft.size + len(whole) <= self._limit:
            draft.new += whole
        else:
            self._fill(draft, whole)
        return draft.write(job) if draft.size >= PIECE else None

    def _fill(self, draft: LogDraft, whole: bytes) -> None:
        """Keep the first lines of ``whole``, as many as ``--max-log`` allows."""
        for text in io.BytesIO(whole):
            if draft.dropped or draft.at + draft.size + len(text) > self._limit:
                draft.dropped += len(text)
            else:
                draft.new += text

    def close(self, drafts: Drafts, job: Job) -> AddLog | None:
        """End the log of a job that leaves its worker; what is to be written of it, if anything."""
        draft = drafts.get(job.id)
        if draft is None:
            log = self._open.get(job.id)
            if log is None:
                return None
            draft = drafts[job.id] = LogDraft(log)
        draft.closed = True
        cut = f"[{draft.dropped} more bytes were printed; --max-log keeps {self._limit}]\n".encode()
        more = cut if draft.dropped else b""
        return draft.write(job, more) if draft.size or more else None

    def apply(self, drafts: Drafts) -> None:
        """Keep what a turn that is on disk has left unwritten."""
        for job_id, draft in drafts.items():
            if draft.closed:
                self._open.pop(job_id, None)
            else:
                draft.apply()
                self._open[job_id] = draft.log

    # --- for clients ----------------------------------------------------------------------------------------------------

    def read(self, job_id: str, start: int = 0) -> LogText | None:
        """What the job printed from byte ``start`` on, as much as one look takes; ``None`` when unknown. Empty text is its end,
        for now or (when the job had ended before) for good."""
        job = self._find(job_id)
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
