"""``supervise HANDLER --input FILE.jsonl``: runs a batch, without a server; in the supervisor's process.

The job store lies beside the output file and is removed once every line is answered there; a batch that was stopped or killed
resumes from it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from supervisor.batch.batch import Batch
from supervisor.batch.results import AnsweredLines, FileSink, StreamSink, read_output
from supervisor.batch.source import Source
from supervisor.cli.serving.progress_bar import Bar, BatchProgress, Gauge, progress_line
from supervisor.cli.serving.run import ProgramRun
from supervisor.config.settings import Settings
from supervisor.dashboard import terminal
from supervisor.engine.engine import Happening
from supervisor.errors import LockedError, SuperviseError, UsageError
from supervisor.gpu import locks
from supervisor.host.files import refusal
from supervisor.job import Job
from supervisor.protocol.wording import error_line
from supervisor.store.place import SQLITES
from supervisor.store.store import Store

PROGRESS_EVERY_S = 5.0
"""Seconds between progress lines, where no progress bar is shown."""

FAILURES_LOGGED = 20
"""Maximum number of failed lines that are logged; further ones are only counted."""

_STANDARD = Path("-")
_FOR_EVER_S = 3650 * 86_400.0
_MANY = 2**31


class _Files:
    """A batch's input, output and store; checked before anything starts, without changing them."""

    def __init__(self, settings: Settings, stack: contextlib.ExitStack) -> None:
        """Open the input; ``stack`` closes all files.

        Raises:
            UsageError: the input cannot be read, or the output cannot be written or is the input.
        """
        self._stack = stack
        self._stream = 1
        self.input = self._open_input(settings.input or _STANDARD)
        self.path = self._output_path(settings.output)
        self.store = Path(f"{self.path}.supervise.db") if self.path else self._temporary() / "batch.db"

    def size(self) -> int | None:
        """Return the bytes left to read of the input; None if it is not a file."""
        status = os.fstat(self.input)
        return status.st_size - os.lseek(self.input, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    def open_output(self) -> tuple[int, AnsweredLines]:
        """Return the output's descriptor and its earlier results. The caller must hold the store's lock.

        Raises:
            UsageError: it cannot be written, or is not the output of a batch.
        """
        if self.path is None:
            return self._stream, AnsweredLines()
        try:
            # Links in the path were resolved before; one that replaced the file since was not the user's choice.
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            self._stack.callback(os.close, fd)
            return fd, read_output(fd, self.path)
        except OSError as error:
            raise UsageError(f"--output: cannot write {self.path}: {error.strerror}") from error

    def _open_input(self, path: Path) -> int:
        try:
            fd = 0 if path == _STANDARD else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            kind = os.fstat(fd).st_mode
        except OSError as error:
            raise UsageError(f"--input: cannot read {_name(path, 'standard input')}: {error.strerror}") from error
        if fd:
            self._stack.callback(os.close, fd)
        if stat.S_ISDIR(kind):
            raise UsageError(f"--input: {path} is a folder; name a file of JSON lines")
        return fd

    def _output_path(self, path: Path | None) -> Path | None:
        """Return the output's path if it is, or will be, a file; open anything else as the stream to write to."""
        path = path or _STANDARD
        try:
            status = os.fstat(1) if path == _STANDARD else path.stat()
            if stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(self.input)):
                raise UsageError(f"--output: {_name(path, 'standard output')} is the input; name another file")
            if stat.S_ISREG(status.st_mode) and path != _STANDARD:
                return path.resolve()
            self._stream = 1 if path == _STANDARD else os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            path = path.resolve()  # the next run, when the file exists, must find the same store
            if not path.parent.is_dir():
                raise UsageError(f"--output: there is no folder {path.parent}; make it first") from None
            return path
        except OSError as error:
            raise UsageError(f"--output: cannot write {_name(path, 'standard output')}: {error.strerror}") from error
        if self._stream != 1:
            self._stack.callback(os.close, self._stream)
        return None

    def _temporary(self) -> Path:
        try:
            folder = tempfile.mkdtemp(prefix="supervise-batch-")
        except OSError as error:
            raise UsageError(f"the folder for temporary files cannot be made: {refusal(error)}") from error
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


class BatchRun(ProgramRun):
    """One batch over ``--input``, until it is complete or a signal stops it."""

    async def run(self, undo: contextlib.ExitStack) -> int:
        """Check the files, run the lines without a result, and return the exit code."""
        self._files = files = _Files(self.settings, undo)
        # The store is this batch's own and holds unwritten results: nothing in it may expire or be rejected.
        self.settings = msgspec.structs.replace(
            self.settings, store=files.store, store_given=None, retention=_FOR_EVER_S, max_queue=0
        )
        self._failures = 0
        self._bar: Bar | None = None
        self._finished = False
        self._unneeded: Path | None = None  # the store, not a link to it, once it can be removed
        undo.callback(self._remove_store)
        settings = self.settings
        shows_bar = settings.dashboard and settings.log_format == "text" and terminal.usable(screen=2)
        self.open(undo, self._footer if shows_bar else None)
        engine = self.assembly.engine
        undo.callback(self._check_store)
        fd, done = files.open_output()
        source = Source(files.input, self.loop, settings.max_body)
        left = _ids(self.assembly.store)
        self._batch = batch = Batch(engine, source, done, left, settings.max_body, self._line_failed)
        self._gauge = Gauge(batch, files.size())
        if shows_bar:
            self._bar = Bar(self._gauge, 2, sys.stderr.encoding)
        else:
            self.loop.call_later(PROGRESS_EVERY_S, self._log_progress)
        kind = FileSink if stat.S_ISREG(os.fstat(fd).st_mode) else StreamSink
        sink = kind(fd, self.loop, batch.sink_wrote, self._output_failed)
        batch.write_to(sink)
        undo.callback(sink.close)
        self.webhooks.start()
        try:
            await self._work(done)
            await self._deliver()
        except OSError as error:
            raise SuperviseError(f"the input cannot be read: {error.strerror}") from error
        finally:
            self._finished = batch.finished
        return self._conclude()

    def observe(self, happening: Happening) -> None:
        """Log events other than the ends of jobs, which the batch counts."""
        if not isinstance(happening, Job):
            super().observe(happening)

    def _check_store(self) -> None:
        """Mark the store for removal if the next run would not need anything in it."""
        store = self.assembly.store
        if not store.outbox.receivers() and (self._finished or not _ids(store)):
            self._unneeded = store.path

    def _remove_store(self) -> None:
        """Remove the store and its side files if they are marked, unless another batch holds the store already."""
        store = self._unneeded
        if store is None:
            return
        holder = locks.Holder(os.getpid(), None, time.time(), "", self.settings.handler)
        try:
            lock = locks.lock_store(store, holder, wait=0.0)
        except (LockedError, UsageError):
            return
        try:
            shutil.rmtree(f"{store}.secrets", ignore_errors=True)
            for ending in (*SQLITES, "", ".lock"):
                with contextlib.suppress(OSError):  # the next run of this batch finds it with nothing left to do
                    Path(f"{store}{ending}").unlink()
        finally:
            lock.close()

    def _footer(self) -> bytes:
        return self._bar() if self._bar is not None else b""

    # --- the work -------------------------------------------------------------------------------------------------------

    async def _work(self, done: AnsweredLines) -> None:
        """Run until every line is written, a signal has stopped the batch and running jobs have ended, or it failed."""
        batch = self._batch
        if done.count:
            self.events.event("resumed", f"{done.count:,} lines are answered already", lines=done.count)
        # Finds invalid and finished lines before workers start; not of a pipe, which may have no data yet.
        if (done.count or self._files.size() is not None) and not await self.shutdown.first(
            self._skip(), self.shutdown.stop
        ):
            return
        self._gauge.restart()
        self.assembly.start()
        started = await self.wait_started()
        try:
            if started:
                await self.shutdown.first(batch.run(), self.shutdown.stop)
        finally:
            await self._end()

    async def _skip(self) -> bool:
        try:
            return await self._batch.skip()
        except OSError as error:
            raise UsageError(f"--input: cannot read {self.settings.input}: {error.strerror}") from error

    async def _end(self) -> None:
        engine, batch = self.assembly.engine, self._batch
        if self.shutdown.stop.is_set() and not batch.finished:
            self.events.event("draining", "stopping: no more lines are started; Ctrl-C again to stop at once")
            await engine.drain(self.settings.drain_timeout, self.shutdown.at_once)
        else:
            await engine.drain(0.0, self.shutdown.at_once)
        if not self.shutdown.broken.done():
            await self.shutdown.first(batch.flush(), self.shutdown.at_once)

    async def _deliver(self) -> None:
        """Deliver the webhooks of a complete batch, since no later run would; after a signal, the next run does."""
        if self._batch.finished:
            timer = self.loop.call_later(
                PROGRESS_EVERY_S, self.events.event, "webhooks", "waiting for receivers of webhooks"
            )
            shutdown = self.shutdown
            await shutdown.first(self.webhooks.finish(_FOR_EVER_S, shutdown.stop), shutdown.at_once)
            timer.cancel()
        await self.webhooks.close(self.shutdown.at_once)

    def _conclude(self) -> int:
        batch, reading = self._batch, self._gauge.read()
        self.shutdown.check()
        lines, seconds = self._gauge.this_run()
        text = f"{batch.done:,} lines done, {batch.failed:,} failed"
        if lines:
            text += f"; {lines:,} in {seconds:,.1f} s ({lines / max(seconds, 0.001):,.1f}/s)"
        if not batch.finished and self._files.path is not None:
            text += "; the same command does the rest"
        self.events.event("batch", text, **_fields(reading), finished=batch.finished)
        if self.shutdown.at_once.is_set():
            return 130
        return 0 if batch.finished and not batch.failed else 1

    # --- event lines ----------------------------------------------------------------------------------------------------

    def _line_failed(self, number: int, job: Job) -> None:
        self._failures += 1
        if self._failures > FAILURES_LOGGED:
            return
        error = error_line(job) or ""
        text = f"line {number} {job.status.value}: {error}"
        if self._failures == FAILURES_LOGGED:
            text += "; further failures are only counted"
        self.events.event("failed", text, line=number, id=job.id, status=job.status.value, error=error)

    def _log_progress(self) -> None:
        reading = self._gauge.read()
        self.events.event("progress", progress_line(reading), **_fields(reading))
        self.loop.call_later(PROGRESS_EVERY_S, self._log_progress)

    def _output_failed(self, error: OSError | None) -> None:
        name = self._files.path or "the output"
        if error is None:
            self.events.event("warning", f"{name} can be written again")
        elif self._files.path is not None:
            self.events.event("warning", f"{name} cannot be written, trying again: {error.strerror}")
        elif not self.shutdown.broken.done():
            self.shutdown.broken.set_exception(SuperviseError(f"{name} cannot be written: {error.strerror}"))


def _ids(store: Store) -> list[str]:
    """Return the ids of the jobs that an earlier run left."""
    queued = [job for low in (False, True) for job in store.queued(low, 0, _MANY)]
    return [job.id for job in (*queued, *store.running(), *store.newest_ended(_MANY))]


def _fields(reading: BatchProgress) -> dict[str, object]:
    return {
        "lines": reading.done,
        "failed": reading.failed,
        "running": reading.running,
        "perSecond": round(reading.rate, 2),
        **({"share": round(reading.share, 4)} if reading.share is not None else {}),
    }


def _name(path: Path, standard: str) -> str:
    return standard if path == _STANDARD else str(path)
