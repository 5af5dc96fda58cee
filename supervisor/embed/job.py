"""A job as Python programs have it: a future; used in their threads, and settled in the supervisor's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import msgspec

from supervisor import job as jobs
from supervisor.cause import WorkerLost
from supervisor.errors import JobCancelled, JobError, JobFailed, JobTimedOut, WorkerDied
from supervisor.job import JobStatus
from supervisor.protocol.job_error import first_line, raised_in
from supervisor.protocol.wording import error_of

if TYPE_CHECKING:
    from supervisor.embed.runtime import EngineThread

_decode = msgspec.json.Decoder().decode
_UNREAD = object()


class JobFuture(Future[Any]):
    """One job, like any ``concurrent.futures.Future``: ``wait``, ``as_completed`` and ``asyncio.wrap_future`` take it.

    Unlike theirs, ``cancel`` also stops a job that runs, and ``result`` says in what way a job did not complete.
    """

    def __init__(self, job_id: str, runner: EngineThread) -> None:
        super().__init__()
        self.id = job_id
        self._runner = runner
        self._status: JobStatus | None = None
        self._error: JobError | None = None
        self._value: Any = _UNREAD
        self.accepted: asyncio.Future[jobs.Job] | None = None  # the loop's

    def __repr__(self) -> str:
        return f"<Job {self.id} {self._status.value if self._status is not None else 'has not ended'}>"

    @property
    def status(self) -> JobStatus:
        """The job's state."""
        if self._status is None:
            known = self._runner.call(lambda engine: engine.job(self.id))
            return known.status if known is not None else JobStatus.IN_QUEUE
        return self._status

    def running(self) -> bool:
        """Whether a worker runs it now."""
        return not self.done() and self.status is JobStatus.IN_PROGRESS

    def result(self, timeout: float | None = None) -> Any:
        """The job's output, once it completed.

        Raises:
            JobFailed: also ``WorkerDied``, which is one.
            JobCancelled, JobTimedOut: the job ended so.
            RequestError: it was refused, since the queue is full or the disk is.
            TimeoutError: it has not ended within ``timeout`` seconds.
        """
        with self._translated(timeout):
            output = super().result(timeout)
        if self._value is _UNREAD:
            self._value = None if output is None else _decode(output)
            self._result = None  # the bytes
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What ``result`` would raise, ``None`` for a job that completed.

        Raises:
            TimeoutError: it has not ended within ``timeout`` seconds.
            JobCancelled: it was cancelled.
        """
        with self._translated(timeout):
            return super().exception(timeout)

    def cancel(self) -> bool:
        """Cancel the job, also if it runs; returns once that is on disk: whether it is cancelled, or had ended before.

        In a callback nothing can be waited for: there it returns whether the job had not ended yet.
        """
        return self.cancelled() or (not self.done() and self._runner.cancel(self))

    def progress(self) -> Any:
        """The newest progress that the running job reported; ``None`` without any, and once it has ended."""
        newest = None if self.done() else self._runner.call(lambda engine: engine.progress(self.id))
        return None if newest is None else _decode(newest)

    def stream(self) -> Iterator[Any]:
        """The chunks that the handler yields, as they come, each handed out once; then raises what ``result`` would."""
        while True:
            chunks = self._runner.wait_for(lambda: self._runner.take_chunks(self))
            if not chunks and self.done():
                break
            yield from map(_decode, chunks)
        with self._translated(None):
            super().result()

    # --- the loop's side ------------------------------------------------------------------------------------------------

    def settle(self, ended: jobs.Job) -> None:
        """It ended as ``ended`` says."""
        self.accepted = None
        self._status = ended.status
        if ended.status is JobStatus.COMPLETED:
            self.set_result(ended.output)
            return
        self._error = _error_of(ended)
        if ended.status is JobStatus.CANCELLED:
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(self._error)

    def refuse(self, error: BaseException) -> None:
        """It will not be run."""
        self.accepted = None
        self._status = JobStatus.FAILED
        self.set_exception(error)

    @contextlib.contextmanager
    def _translated(self, timeout: float | None) -> Iterator[None]:
        """The futures' own exceptions as ours."""
        try:
            yield
        except CancelledError:
            if self._error is None:
                raise
            raise self._error from None
        except concurrent.futures.TimeoutError:  # the built-in one only since Python 3.11
            raise TimeoutError(f"job {self.id} has not ended within {timeout:g} s") from None


class _InTheWorker(Exception):  # noqa: N818 - shown as the cause of another
    """The handler's own traceback."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _error_of(job: jobs.Job) -> JobError:
    """The exception for a job that ended but did not complete."""
    error = error_of(job)
    kind: type[JobError] = JobFailed
    if job.status is JobStatus.CANCELLED:
        kind = JobCancelled
    elif job.status is JobStatus.TIMED_OUT:
        kind = JobTimedOut
    elif isinstance(job.cause, WorkerLost):
        kind = WorkerDied
    raised = raised_in(job.error) if job.error is not None else None
    what = first_line(error) if raised is not None and error is not None else error
    exception = kind(
        job.id, job.status.value, error, f"job {job.id} is {job.status.value}" + (f": {what}" if what else "")
    )
    if raised is not None and raised.error_traceback:
        exception.__cause__ = _InTheWorker(raised.error_traceback)
    return exception
