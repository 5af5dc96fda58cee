"""``supervise HANDLER --input FILE.jsonl``: a batch with its files, its store, its progress bar and its signals; no server.

The store lies beside the output file and goes when every line is answered there; a batch that was stopped or killed finds it
again.
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
from supervisor.cli.serving.progress_bar import Bar, Gauge, Reading, say
from supervisor.cli.serving.run import Run
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

SAY_EVERY_S = 5.0
"""How often a line says how far it is, where no bar does."""

FAILURES_SAID = 20
"""Failed lines that are said; the others are in the output, and counted."""

_STANDARD = Path("-")
_FOR_EVER_S = 3650 * 86_400.0
_MANY = 2**31


class _Files:
    """What a batch reads and writes; checked before anything is started, and nothing is changed by that."""

    def __init__(self, settings: Settings, stack: contextlib.ExitStack) -> None:
        """Open the input, and close it and what else there is with ``stack``.

        Raises:
            UsageError: the input cannot be read, or the output cannot be written, or is the input.
        """
        self._stack = stack
        self._stream = 1
        self.input = self._open_input(settings.input or _STANDARD)
        self.path = self._output_path(settings.output)
        self.store = Path(f"{self.path}.supervise.db") if self.path else self._temporary() / "batch.db"

    def size(self) -> int | None:
        """Bytes from here to the end of the input, where it is a file."""
        status = os.fstat(self.input)
        return status.st_size - os.lseek(self.input, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    def open_output(self) -> tuple[int, AnsweredLines]:
        """The output's descriptor and what is in it; to be called by who has the lock on the store.

        Raises:
            UsageError: it cannot be written, or is something else than the output of a batch.
        """
        if self.path is None:
            return self._stream, AnsweredLines()
        try:
            # Links were followed as it was named; one that has come into its place since is nobody's choice.
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
        """The output if it is a file, or will be; anything else becomes the stream that is written to."""
        path = path or _STANDARD
        try:
            status = os.fstat(1) if path == _STANDARD else path.stat()
            if stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(self.input)):
                raise UsageError(f"--output: {_name(path, 'standard output')} is the input; name another file")
            if stat.S_ISREG(status.st_mode) and path != _STANDARD:
                return path.resolve()
            self._stream = 1 if path == _STANDARD else os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            path = path.resolve()  # the same next time, when it is there
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


class BatchRun(Run):
    """Runs ``--input`` to its end, or until a signal ends it."""

    async def run(self, undo: contextlib.ExitStack) -> int:
        """Check the files, do the lines that are not answered, conclude."""
        self._files = files = _Files(self.settings, undo)
        # The store is this batch's own, and holds what is not written yet: nothing in it may be forgotten or refused.
        self.settings = msgspec.structs.replace(
            self.settings, store=files.store, store_given=None, retention=_FOR_EVER_S, max_queue=0
        )
        self._failures = 0
        self._bar: Bar | None = None
        self._finished = False
        self._unneeded: Path | None = None  # the store, not a link to it, once it can go
        undo.callback(self._remove_store)
        settings = self.settings
        shows_bar = settings.dashboard and settings.log_format == "text" and terminal.usable(screen=2)
        self.open(undo, self._footer if shows_bar else None)
        engine = self.assembly.engine
        undo.callback(self._judge_store)
        fd, done = files.open_output()
        source = Source(files.input, self.loop, settings.max_body)
        left = _ids(self.assembly.store)
        self._batch = batch = Batch(engine, source, done, left, settings.max_body, self._line_failed)
        self._gauge = Gauge(batch, files.size())
        if shows_bar:
            self._bar = Bar(self._gauge, 2, sys.stderr.encoding)
        else:
            self.loop.call_later(SAY_EVERY_S, self._say)
        kind = FileSink if stat.S_ISREG(os.fstat(fd).st_mode) else StreamSink
        sink = kind(fd, self.loop, batch.sink_wrote, self._output_trouble)
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
        """Say what the engine tells, but for jobs: the batch counts them."""
        if not isinstance(happening, Job):
            super().observe(happening)

    def _judge_store(self) -> None:
        """Let the store go where the next run would find nothing in it that it could not do without."""
        store = self.assembly.store
        if not store.outbox.receivers() and (self._finished or not _ids(store)):
            self._unneeded = store.path

    def _remove_store(self) -> None:
        """Remove the store and what belongs to it if it can go, unless another batch has it already."""
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
                with contextlib.suppress(
                    OSError
                ):  # the next run of this batch finds it, and that nothing is left to do
                    Path(f"{store}{ending}").unlink()
        finally:
            lock.close()

    def _footer(self) -> bytes:
        return self._bar() if self._bar is not None else b""

    # --- the work -------------------------------------------------------------------------------------------------------

    async def _work(self, done: AnsweredLines) -> None:
        """Until every line is written, a signal has come and running jobs have ended, or it can go on no more."""
        batch = self._batch
        if done.count:
            self.events.event("resumed", f"{done.count:,} lines are answered already", lines=done.count)
        # What would be refused, or is done already, is found before workers start; but a pipe may have nothing yet.
        if (done.count or self._files.size() is not None) and not await self.ending.first(
            self._skip(), self.ending.stop
        ):
            return
        self._gauge.restart()
        self.assembly.start()
        started = await self.has_started()
        try:
            if started:
                await self.ending.first(batch.run(), self.ending.stop)
        finally:
            await self._end()

    async def _skip(self) -> bool:
        try:
            return await self._batch.skip()
        except OSError as error:
            raise UsageError(f"--input: cannot read {self.settings.input}: {error.strerror}") from error

    async def _end(self) -> None:
        engine, batch = self.assembly.engine, self._batch
        if self.ending.stop.is_set() and not batch.finished:
            self.events.event("draining", "stopping: no more lines are begun; Ctrl-C again to stop at once")
            await engine.drain(self.settings.drain_timeout, self.ending.at_once)
        else:
            await engine.drain(0.0, self.ending.at_once)
        if not self.ending.broken.done():
            await self.ending.first(batch.flush(), self.ending.at_once)

    async def _deliver(self) -> None:
        """The webhooks of a batch that is done, which nobody would deliver later; a signal leaves them to the same command."""
        if self._batch.finished:
            timer = self.loop.call_later(
                SAY_EVERY_S, self.events.event, "webhooks", "waiting for receivers of webhooks"
            )
            ending = self.ending
            await ending.first(self.webhooks.finish(_FOR_EVER_S, ending.stop), ending.at_once)
            timer.cancel()
        await self.webhooks.close(self.ending.at_once)

    def _conclude(self) -> int:
        batch, reading = self._batch, self._gauge.read()
        self.ending.check()
        here, seconds = self._gauge.here()
        text = f"{batch.done:,} lines done, {batch.failed:,} failed"
        if here:
            text += f"; {here:,} in {seconds:,.1f} s ({here / max(seconds, 0.001):,.1f}/s)"
        if not batch.finished and self._files.path is not None:
            text += "; the same command does the rest"
        self.events.event("batch", text, **_fields(reading), finished=batch.finished)
        if self.ending.at_once.is_set():
            return 130
        return 0 if batch.finished and not batch.failed else 1

    # --- what people hear -----------------------------------------------------------------------------------------------

    def _line_failed(self, number: int, job: Job) -> None:
        self._failures += 1
        if self._failures > FAILURES_SAID:
            return
        error = error_line(job) or ""
        text = f"line {number} {job.status.value}: {error}"
        if self._failures == FAILURES_SAID:
            text += "; what fails from here on is only counted"
        self.events.event("failed", text, line=number, id=job.id, status=job.status.value, error=error)

    def _say(self) -> None:
        reading = self._gauge.read()
        self.events.event("progress", say(reading), **_fields(reading))
        self.loop.call_later(SAY_EVERY_S, self._say)

    def _output_trouble(self, error: OSError | None) -> None:
        name = self._files.path or "the output"
        if error is None:
            self.events.event("warning", f"{name} can be written again")
        elif self._files.path is not None:
            self.events.event("warning", f"{name} cannot be written, trying again: {error.strerror}")
        elif not self.ending.broken.done():
            self.ending.broken.set_exception(SuperviseError(f"{name} cannot be written: {error.strerror}"))


def _ids(store: Store) -> list[str]:
    """The jobs that an earlier run left: a few more than were under way."""
    queued = [job for low in (False, True) for job in store.queued(low, 0, _MANY)]
    return [job.id for job in (*queued, *store.running(), *store.newest_ended(_MANY))]


def _fields(reading: Reading) -> dict[str, object]:
    return {
        "lines": reading.done,
        "failed": reading.failed,
        "running": reading.running,
        "perSecond": round(reading.rate, 2),
        **({"share": round(reading.share, 4)} if reading.share is not None else {}),
    }


def _name(path: Path, standard: str) -> str:
    return standard if path == _STANDARD else str(path)
