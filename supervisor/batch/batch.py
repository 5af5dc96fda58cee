"""Runs the lines of a source as jobs, a bounded number at a time, and writes the results to a sink; in the supervisor's process.

A job is deleted from the store only once its result is in the sink, so a batch that was killed can resume. A line's job has the
same id in every run, by which the store's jobs are found again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection

import msgspec

from supervisor.batch.request import id_of, output_line, read_request, rejected
from supervisor.batch.results import AnsweredLines, Sink
from supervisor.batch.source import InputLine, Source
from supervisor.engine.engine import Engine, Happening
from supervisor.errors import RequestError, UsageError
from supervisor.job import Job, JobRequest, JobStatus

AHEAD = 64
"""Jobs queued while none runs, plus two for each that runs: enough that no worker waits for a line to be read."""

AHEAD_BYTES = 64 * 2**20
"""Maximum bytes of input under way, unless a worker would be idle."""

RETRY_S = 0.5
"""Interval of submitting a job again that the engine cannot accept while the disk is full."""

POLL_S = 0.05
"""Interval of checking for jobs started by workers; their ends are noticed at once."""


class Batch:
    """A run of a batch. Call its methods in the engine's thread; its numbers may be read from any."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        done: AnsweredLines,
        left: Collection[str],
        longest: int,
        failed: Callable[[int, Job], None],
    ) -> None:
        """Prepare to run the lines of ``source`` that are not in ``done``.

        ``left``: ids of the jobs that an earlier run left in the store. ``longest``: maximum bytes of a line. ``failed`` is
        called with the line number and the job for each job that did not complete.
        """
        self._failed = failed
        self.done = done.count
        self.failed = done.failed
        self.bytes_done = 0
        self.finished = False
        self._engine = engine
        self._source = source
        self._answered = done
        self._left = set(left)
        self._longest = longest
        self._sink: Sink
        self._lines: deque[InputLine] = deque()
        self._number = 0
        self._open: dict[str, InputLine] = {}
        self._waiting_bytes = 0
        self._unwritten: deque[Job] = deque()
        self._writing: set[str] = set()
        self._late: deque[tuple[str, int]] = deque()
        self._reached: Callable[[], bool] = bool
        self._changed = asyncio.Event()

    def write_to(self, sink: Sink) -> None:
        """Write the results to ``sink``, which calls ``sink_wrote``."""
        self._sink = sink

    @property
    def running(self) -> int:
        """Number of running jobs."""
        return self._engine.running

    # --- input ----------------------------------------------------------------------------------------------------------

    async def skip(self) -> bool:
        """Skip to the first line without a result, before anything runs; return False if there is none.

        Raises:
            UsageError: the output does not belong to this input.
            OSError: the input cannot be read.
        """
        while (line := await self._next()) is not None:
            if not self._skips(line):
                self._lines.appendleft(line)
                return True
        self.finished = True
        return False

    async def run(self) -> None:
        """Run every line without a result; return when all results are written.

        Raises:
            UsageError: the output does not belong to this input.
            OSError: the input cannot be read.
        """
        self._engine.observe(self._handle)
        while (line := await self._next()) is not None:
            if not self._skips(line):
                await self._start(line)
        await self._until(lambda: not (self._open or self._writing))
        self.finished = True

    async def _next(self) -> InputLine | None:
        while not self._lines:
            lines = await self._source.read()
            if lines is None:
                self._check_length()
                return None
            self._lines.extend(lines)
            # Reading a file never waits, and thousands of lines may be skipped: let other tasks run.
            await asyncio.sleep(0)
        line = self._lines.popleft()
        self._number = line.number
        return line

    def _check_length(self) -> None:
        if self._answered.last > self._number:
            raise UsageError(
                f"the output belongs to another input: it has an answer to line {self._answered.last}, and the input ends at "
                f"line {self._number}; name another file with --output"
            )

    def _skips(self, line: InputLine) -> bool:
        """Return whether the line is blank or has a result; count it then."""
        if line.text != b"" and not self._is_answered(line):
            return False
        self.bytes_done += line.size
        return True

    def _is_answered(self, line: InputLine) -> bool:
        if line.number not in self._answered:
            return False
        job_id = id_of(line, self._longest)
        if not self._answered.by(line.number, job_id):
            raise UsageError(
                f"the output belongs to another input: line {line.number} is not the one that it answers; name another file "
                "with --output"
            )
        if job_id in self._left:  # killed after its line was written and before it was deleted
            job = self._engine.job(job_id)
            if job is not None and job.status.terminal:
                self._left.discard(job_id)
                self._engine.forget(job)
        return True

    async def _start(self, line: InputLine) -> None:
        """Submit a job for ``line`` once the limits allow one more."""
        if self._room() <= 0:
            await self._until(lambda: self._room() > AHEAD // 2)  # half of it, so that several lines share a commit
        try:
            request = read_request(line, self._longest)
        except RequestError as error:
            self._write(rejected(line, str(error)), line)
            return
        if self._is_under_way(request.id):  # an earlier line has the same id
            await self._until(lambda: not self._is_under_way(request.id))
        # Only jobs that an earlier run has left can have the same id; for others the store need not check.
        request = msgspec.structs.replace(request, generated=request.id not in self._left)
        self._left.discard(request.id)
        self._open[request.id] = line
        self._waiting_bytes += line.size
        future = await self._submit(request)
        future.add_done_callback(lambda accepted: self._accepted(request.id, line, accepted))

    async def _submit(self, request: JobRequest) -> asyncio.Future[Job]:
        while True:
            try:
                return self._engine.submit(request, patient=True)
            except RequestError:  # noqa: PERF203 - the loop waits anyway
                if self._engine.draining:
                    raise
                await asyncio.sleep(RETRY_S)

    def _accepted(self, job_id: str, line: InputLine, accepted: asyncio.Future[Job]) -> None:
        if accepted.cancelled():
            return
        error = accepted.exception()
        if self._open.get(job_id) is not line:
            return
        if error is None:
            job = accepted.result()
            if job.status.terminal:  # it ended in an earlier run
                self._ended(job)
        elif not self._engine.draining:
            self._close(job_id)
            self._write(rejected(line, str(error)), line)

    def _is_under_way(self, job_id: str) -> bool:
        return job_id in self._open or job_id in self._writing

    def _room(self) -> int:
        running = self._engine.running
        waiting = len(self._open) - running
        if self._sink.full or self._late or (self._waiting_bytes > AHEAD_BYTES and waiting > 0):
            return 0
        return AHEAD + 2 * running - waiting

    # --- output ---------------------------------------------------------------------------------------------------------

    def _handle(self, happening: Happening) -> None:
        if isinstance(happening, Job) and happening.id in self._open:
            self._ended(happening)

    def _ended(self, job: Job) -> None:
        line = self._close(job.id)
        if self._sink.full or self._late:
            self._late.append((job.id, line.number))
            self._writing.add(job.id)
            self._count(job, line)
        else:
            self._write(job, line)
        self._check()

    def _close(self, job_id: str) -> InputLine:
        line = self._open.pop(job_id)
        self._waiting_bytes -= line.size
        return line

    def _write(self, job: Job, line: InputLine) -> None:
        self._count(job, line)
        self._put(job, line.number)

    def _count(self, job: Job, line: InputLine) -> None:
        self.done += 1
        self.bytes_done += line.size
        if job.status is not JobStatus.COMPLETED:
            self.failed += 1
            self._failed(line.number, job)

    def _put(self, job: Job, number: int) -> None:
        self._writing.add(job.id)
        self._unwritten.append(job)
        self._sink.put(output_line(job, number))

    def sink_wrote(self, lines: int) -> None:
        """Delete the jobs of the next ``lines``, which the sink has written, from the store."""
        for _ in range(lines):
            job = self._unwritten.popleft()
            self._writing.discard(job.id)
            if job.seq:
                self._engine.forget(job)
        while self._late and not self._sink.full:
            job_id, number = self._late.popleft()
            late = self._engine.job(job_id)
            if late is None:
                raise RuntimeError(f"job {job_id} is not in the store any more")
            self._put(late, number)
        self._check()

    async def flush(self) -> None:
        """Wait until all results are written."""
        await self._until(lambda: not self._writing)

    # --- waiting --------------------------------------------------------------------------------------------------------

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached`` returns true, polling every ``POLL_S``. Only one caller waits at a time."""
        while not reached():
            self._reached = reached
            self._changed.clear()
            timer = asyncio.get_running_loop().call_later(POLL_S, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    def _check(self) -> None:
        if self._reached():
            self._changed.set()
