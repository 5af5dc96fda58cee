"""``supervise HANDLER --input FILE.jsonl``: a batch with its files, its store, its progress bar and its signals; no server.

The store lies beside the output file and goes when every line is answered there; a batch that was stopped or killed finds it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.assembly import Assembly, start_failure
from supervisor.batch.batch import Batch
from supervisor.batch.results import Done, FileSink, StreamSink, read_output
from supervisor.batch.source import Source
from supervisor.cli.serving.event_log import Lines
from supervisor.cli.serving.events import News
from supervisor.cli.serving.progress_bar import Bar, Gauge, Reading, say
from supervisor.cli.serving.run import event_loop, run_to_end
from supervisor.cli.serving.shutdown import Ending
from supervisor.config.settings import Settings
from supervisor.dashboard import terminal
from supervisor.engine.engine import Happening
from supervisor.errors import LockedError, SuperviseError, UsageError
from supervisor.gpu import locks
from supervisor.host import file_limits as descriptors
from supervisor.host.files import refusal
from supervisor.job import Job
from supervisor.protocol.wording import error_line
from supervisor.store.place import SQLITES
from supervisor.store.store import Store
from supervisor.webhooks.delivery import Webhooks

SAY_EVERY_S = 5.0
"""How often a line says how far it is, where no bar does."""

FAILURES_SAID = 20
"""Failed lines that are said; the others are in the output, and counted."""

LINES_CLOSE_S = 2.0
"""How long a slow reader of stderr may delay the end."""

_STANDARD = Path("-")
_FOR_EVER_S = 3650 * 86_400.0
_MANY = 2**31
T = TypeVar("T")


def run_batch(settings: Settings) -> int:
    """Run ``--input`` to its end, or until a signal ends it; returns the exit code.

    Raises:
        UsageError, StartError, StoreError: it could not be begun or go on; the message is for the user.
    """
    descriptors.check_start()
    with contextlib.ExitStack() as stack:
        files = _Files(settings, stack)
        # The store is this batch's own, and holds what is not written yet: nothing in it may be forgotten or refused.
        settings = msgspec.structs.replace(
            settings, store=files.store, store_given=None, retention=_FOR_EVER_S, max_queue=0
        )
        with event_loop() as loop:
            run = _Run(settings, files, loop)
            try:
                return run_to_end(loop, run.run())
            finally:
                if run.unneeded is not None:
                    _remove_store(run.unneeded, settings.handler)


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

    def open_output(self) -> tuple[int, Done]:
        """The output's descriptor and what is in it; to be called by who has the lock on the store.

        Raises:
            UsageError: it cannot be written, or is something else than the output of a batch.
        """
        if self.path is None:
            return self._stream, Done()
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


class _Run:
    """One run of the program."""

    def __init__(self, settings: Settings, files: _Files, loop: asyncio.AbstractEventLoop) -> None:
        """Run the lines of ``files`` under ``settings``."""
        self.unneeded: Path | None = None  # the store, not a link to it, once it can go
        self._settings = settings
        self._files = files
        self._loop = loop
        self._ending = Ending(loop)
        self._finished = False
        self._failures = 0
        self._saying: asyncio.TimerHandle | None = None
        self._assembly: Assembly
        self._batch: Batch
        self._webhooks: Webhooks
        self._gauge: Gauge
        self._lines: Lines | None = None
        self._news: News

    async def run(self) -> int:
        """From the first check to the last process."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_lines)  # last: what comes to an end may have something to say
            self._assembly = Assembly(self._settings, self._loop)
            stack.callback(self._assembly.close)
            stack.callback(self._judge_store)
            fd, done = self._files.open_output()
            left = _ids(self._assembly.store)
            longest = self._settings.max_body
            source = Source(self._files.input, self._loop, longest)
            self._batch = Batch(self._assembly.engine, source, done, left, longest, self._line_failed)
            self._open_lines()
            kind = FileSink if stat.S_ISREG(os.fstat(fd).st_mode) else StreamSink
            sink = kind(fd, self._loop, self._batch.sink_wrote, self._output_trouble)
            self._batch.write_to(sink)
            stack.callback(sink.close)
            engine = self._assembly.engine
            self._ending.watch(lambda text: self._news.event("error", text), engine.reload)
            for note in self._assembly.notes:
                self._news.event("note", note)
            self._webhooks = Webhooks(self._assembly.engine, self._loop)
            self._webhooks.start()
            try:
                await self._work(done)
                await self._deliver()
            except OSError as error:
                raise SuperviseError(f"the input cannot be read: {error.strerror}") from error
            finally:
                self._finished = self._batch.finished
            return self._conclude()

    def _judge_store(self) -> None:
        """Let the store go where the next run would find nothing in it that it could not do without."""
        store = self._assembly.store
        if not store.outbox.receivers() and (self._finished or not _ids(store)):
            self.unneeded = store.path

    def _open_lines(self) -> None:
        settings = self._settings
        self._gauge = Gauge(self._batch, self._files.size())
        shows_bar = settings.dashboard and settings.log_format == "text" and terminal.usable(screen=2)
        footer = Bar(self._gauge, 2, sys.stderr.encoding) if shows_bar else None
        self._lines = Lines(sys.stderr, settings.log_format, footer)
        self._news = News(self._lines)
        self._assembly.engine.observe(self._tell)
        if not shows_bar:
            self._saying = self._loop.call_later(SAY_EVERY_S, self._say)

    def _close_lines(self) -> None:
        if self._saying is not None:
            self._saying.cancel()
        if self._lines is not None:
            self._lines.close(LINES_CLOSE_S)

    # --- the work -------------------------------------------------------------------------------------------------------

    async def _work(self, done: Done) -> None:
        """Until every line is written, a signal has come and running jobs have ended, or it can go on no more."""
        engine, batch = self._assembly.engine, self._batch
        if done.count:
            self._news.event("resumed", f"{done.count:,} lines are answered already", lines=done.count)
        # What would be refused, or is done already, is found before workers start; but a pipe may have nothing yet.
        if (done.count or self._files.size() is not None) and not await self._unless_stopped(self._skip()):
            return
        self._gauge.restart()
        self._assembly.start()
        first = await self._unless_stopped(asyncio.shield(engine.first_load))
        if first is not None and not first.ok:
            raise start_failure(self._settings, first)
        try:
            if first is not None:
                await self._unless_stopped(batch.run())
        finally:
            await self._end()

    async def _skip(self) -> bool:
        try:
            return await self._batch.skip()
        except OSError as error:
            raise UsageError(f"--input: cannot read {self._settings.input}: {error.strerror}") from error

    async def _end(self) -> None:
        engine, batch = self._assembly.engine, self._batch
        if self._ending.stop.is_set() and not batch.finished:
            self._news.event("draining", "stopping: no more lines are begun; Ctrl-C again to stop at once")
            await engine.drain(self._settings.drain_timeout, self._ending.at_once)
        else:
            await engine.drain(0.0, self._ending.at_once)
        if not self._ending.broken.done():
            await self._ending.first(batch.flush(), self._ending.at_once)

    async def _deliver(self) -> None:
        """The webhooks of a batch that is done, which nobody would deliver later; a signal leaves them to the same command."""
        if self._batch.finished:
            timer = self._loop.call_later(
                SAY_EVERY_S, self._news.event, "webhooks", "waiting for receivers of webhooks"
            )
            ending = self._ending
            await ending.first(self._webhooks.finish(_FOR_EVER_S, ending.stop), ending.at_once)
            timer.cancel()
        await self._webhooks.close(self._ending.at_once)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """What ``work`` gives; ``None`` once a signal has come, which ends it.

        Raises:
            SuperviseError and what ``work`` raises.
        """
        return await self._ending.first(work, self._ending.stop)

    def _conclude(self) -> int:
        batch, reading = self._batch, self._gauge.read()
        self._ending.check()
        here, seconds = self._gauge.done_here, self._gauge.seconds
        text = f"{batch.done:,} lines done, {batch.failed:,} failed"
        if here:
            text += f"; {here:,} in {seconds:,.1f} s ({here / max(seconds, 0.001):,.1f}/s)"
        if not batch.finished and self._files.path is not None:
            text += "; the same command does the rest"
        self._news.event("batch", text, **_fields(reading), finished=batch.finished)
        if self._ending.at_once.is_set():
            return 130
        return 0 if batch.finished and not batch.failed else 1

    # --- what people hear -----------------------------------------------------------------------------------------------

    def _tell(self, happening: Happening) -> None:
        if not isinstance(happening, Job):
            self._news.tell(happening)

    def _line_failed(self, number: int, job: Job) -> None:
        self._failures += 1
        if self._failures > FAILURES_SAID:
            return
        error = error_line(job) or ""
        text = f"line {number} {job.status.value}: {error}"
        if self._failures == FAILURES_SAID:
            text += "; what fails from here on is only counted"
        self._news.event("failed", text, line=number, id=job.id, status=job.status.value, error=error)

    def _say(self) -> None:
        reading = self._gauge.read()
        self._news.event("progress", say(reading), **_fields(reading))
        self._saying = self._loop.call_later(SAY_EVERY_S, self._say)

    def _output_trouble(self, error: OSError | None) -> None:
        name = self._files.path or "the output"
        if error is None:
            self._news.event("warning", f"{name} can be written again")
        elif self._files.path is not None:
            self._news.event("warning", f"{name} cannot be written, trying again: {error.strerror}")
        elif not self._ending.broken.done():
            self._ending.broken.set_exception(SuperviseError(f"{name} cannot be written: {error.strerror}"))


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


def _remove_store(store: Path, handler: str) -> None:
    """Remove the store and what belongs to it, unless another batch has it already."""
    holder = locks.Holder(os.getpid(), None, time.time(), "", handler)
    try:
        lock = locks.lock_store(store, holder, wait=0.0)
    except (LockedError, UsageError):
        return
    try:
        shutil.rmtree(f"{store}.secrets", ignore_errors=True)
        for ending in (*SQLITES, "", ".lock"):
            with contextlib.suppress(OSError):  # the next run of this batch finds it, and that nothing is left to do
                Path(f"{store}{ending}").unlink()
    finally:
        lock.close()


def _name(path: Path, standard: str) -> str:
    return standard if path == _STANDARD else str(path)
