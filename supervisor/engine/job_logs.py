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

    def printed(self, job: Job, lines: Sequence[str]) -> AddLog | None:
        """A running job printed ``lines``; what is to be written now, if anything."""
        log = self._open.get(job.id)
        if log is None:
            log = self._open[job.id] = OpenLog(self._store.log_end(job.seq))
        whole = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        if not log.dropped and log.at + len(log.text) + len(whole) <= self._limit:
            log.text += whole
        else:
            self._fill(log, whole)
        return self._take(job, log) if len(log.text) >= PIECE else None

    def _fill(self, log: OpenLog, whole: bytes) -> None:
        """Keep the first lines of ``whole``, as many as ``--max-log`` allows."""
        for text in io.BytesIO(whole):
            if log.dropped or log.at + len(log.text) + len(text) > self._limit:
                log.dropped += len(text)
            else:
                log.text += text

    def left(self, job: Job) -> OpenLog | None:
        """``job`` has left its worker: what it printed there and ``rest`` has not written yet, if anything."""
        return self._open.pop(job.id, None)

    def back(self, job: Job, log: OpenLog | None) -> None:
        """``job`` has not left its worker after all."""
        if log is not None:
            self._open[job.id] = log

    def rest(self, job: Job, log: OpenLog) -> AddLog | None:
        """What is to be written of ``log``, which stays as it is; ``None``: nothing."""
        text = bytes(log.text)
        if log.dropped:
            text += f"[{log.dropped} more bytes were printed; --max-log keeps {self._limit}]\n".encode()
        return AddLog(job.seq, log.at, text) if text else None

    def _take(self, job: Job, log: OpenLog) -> AddLog:
        piece = AddLog(job.seq, log.at, bytes(log.text))
        log.at += len(piece.text)
        log.text.clear()
        return piece

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
