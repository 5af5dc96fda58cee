"""Runs the lines of a source as jobs, a bounded number at a time, and writes their ends to a sink; in the supervisor's process.

What is in the sink is forgotten by the store, and what is not is still there: so a batch that was killed goes on where it was. A
line's job keeps its id from run to run, which is how the store's jobs are found again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection

import msgspec

from supervisor.batch.request import id_of, output_line, read_request, refused
from supervisor.batch.results import AnsweredLines, Sink
from supervisor.batch.source import InputLine, Source
from supervisor.engine.engine import Engine, Happening
from supervisor.errors import RequestError, UsageError
from supervisor.job import Job, JobRequest, JobStatus

AHEAD = 64
"""Jobs that wait while none runs; for each that runs, two more. Enough that a worker never waits for the reading of a line."""

AHEAD_BYTES = 64 * 2**20
"""Bytes of input that may be under way, unless a worker would be idle."""

RETRY_S = 0.5
"""How often a job is offered again that the engine cannot take now: the disk is full."""

LOOK_S = 0.05
"""How late it may be seen that workers have taken jobs; their ends are seen at once."""


class Batch:
    """One run. All methods belong to the thread of the engine's loop; its numbers may be read from any."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        done: AnsweredLines,
        left: Collection[str],
        longest: int,
        failed: Callable[[int, Job], None],
    ) -> None:
        """Run what ``source`` has and ``done`` has not.

        ``left`` are the ids of the jobs that an earlier run left in the store; ``longest``: bytes of the longest line. ``failed``
        hears of each job that did not complete, with the number of its line.
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
        """How many jobs are in workers."""
        return self._engine.running

    # --- the way in -----------------------------------------------------------------------------------------------------

    async def skip(self) -> bool:
        """Go to the first line that is not answered, before anything runs; false when there is none.

        Raises:
            UsageError: the output does not belong to this input.
            OSError: the input cannot be read.
        """
        while (line := await self._next()) is not None:
            if not self._needs_nothing(line):
                self._lines.appendleft(line)
                return True
        self.finished = True
        return False

    async def run(self) -> None:
        """Run every line that is not answered; returns when all of them are written.

        Raises:
            UsageError: the output does not belong to this input.
            OSError: the input cannot be read.
        """
        self._engine.observe(self._happened)
        while (line := await self._next()) is not None:
            if not self._needs_nothing(line):
                await self._take(line)
        await self._until(lambda: not (self._open or self._writing))
        self.finished = True

    async def _next(self) -> InputLine | None:
        while not self._lines:
            lines = await self._source.read()
            if lines is None:
                self._check_length()
                return None
            self._lines.extend(lines)
            # A file never waits, and thousands of lines may need nothing: others are to have their turn.
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

    def _needs_nothing(self, line: InputLine) -> bool:
        """Whether the line is blank or answered."""
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
        if job_id in self._left:  # killed after its line was written and before it was forgotten
            job = self._engine.job(job_id)
            if job is not None and job.status.terminal:
                self._left.discard(job_id)
                self._engine.forget(job)
        return True

    async def _take(self, line: InputLine) -> None:
        """Make a job of ``line`` once there is room for one more."""
        if self._room() <= 0:
            await self._until(lambda: self._room() > AHEAD // 2)  # half of it: lines that come together share a commit
        try:
            request = read_request(line, self._longest)
        except RequestError as error:
            self._write(refused(line, str(error)), line)
            return
        if self._is_under_way(request.id):  # the id of a line before
            await self._until(lambda: not self._is_under_way(request.id))
        # No other job can have the id, so the store need not be asked; but for those that an earlier run has left.
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
            except RequestError:  # noqa: PERF203 - it waits anyway
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
            if job.status.terminal:  # an earlier run brought it to its end
                self._ended(job)
        elif not self._engine.draining:
            self._close(job_id)
            self._write(refused(line, str(error)), line)

    def _is_under_way(self, job_id: str) -> bool:
        return job_id in self._open or job_id in self._writing

    def _room(self) -> int:
        running = self._engine.running
        waiting = len(self._open) - running
        if self._sink.full or self._late or (self._waiting_bytes > AHEAD_BYTES and waiting > 0):
            return 0
        return AHEAD + 2 * running - waiting

    # --- the way out ----------------------------------------------------------------------------------------------------

    def _happened(self, happening: Happening) -> None:
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
        self._look()

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
        """The sink has written the next ``lines``: the store may forget them."""
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
        self._look()

    async def flush(self) -> None:
        """Wait until what has ended is written."""
        await self._until(lambda: not self._writing)

    # --- waiting --------------------------------------------------------------------------------------------------------

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Until ``reached`` is true, seen within ``LOOK_S``. One waits at a time: who feeds, and in the end who drains."""
        while not reached():
            self._reached = reached
            self._changed.clear()
            timer = asyncio.get_running_loop().call_later(LOOK_S, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    def _look(self) -> None:
        if self._reached():
            self._changed.set()
