"""The future of a job in a Python program; used in the program's threads, and settled in the supervisor's."""

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
    """The future of a job, a ``concurrent.futures.Future``: ``wait``, ``as_completed`` and ``asyncio.wrap_future`` accept it.

    In addition, ``cancel`` stops a running job too, and ``result`` raises according to how the job ended.
    """

    def __init__(self, job_id: str, runner: EngineThread) -> None:
        super().__init__()
        self.id = job_id
        self._runner = runner
        self._status: JobStatus | None = None
        self._error: JobError | None = None
        self._value: Any = _UNREAD
        self.accepted: asyncio.Future[jobs.Job] | None = None  # belongs to the loop

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
        """Return whether a worker runs the job now."""
        return not self.done() and self.status is JobStatus.IN_PROGRESS

    def result(self, timeout: float | None = None) -> Any:
        """Return the job's output, once it completed.

        Raises:
            JobFailed: the handler raised, or the worker died (``WorkerDied``).
            JobCancelled, JobTimedOut: the job ended so.
            RequestError: the job was rejected, since the queue or the disk is full.
            TimeoutError: the job has not ended within ``timeout`` seconds.
        """
        with self._translated(timeout):
            output = super().result(timeout)
        if self._value is _UNREAD:
            self._value = None if output is None else _decode(output)
            self._result = None  # free the bytes
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that ``result`` would raise, or None for a completed job.

        Raises:
            TimeoutError: the job has not ended within ``timeout`` seconds.
            JobCancelled: the job was cancelled.
        """
        with self._translated(timeout):
            return super().exception(timeout)

    def cancel(self) -> bool:
        """Cancel the job, even if it runs; return, once that is on disk, True, or False if it had ended otherwise before.

        A callback cannot wait: there it returns whether the job had not ended yet.
        """
        return self.cancelled() or (not self.done() and self._runner.cancel(self))

    def progress(self) -> Any:
        """Return the newest progress that the running job reported; None without any, and once it has ended."""
        newest = None if self.done() else self._runner.call(lambda engine: engine.progress(self.id))
        return None if newest is None else _decode(newest)

    def stream(self) -> Iterator[Any]:
        """Yield the handler's chunks as they come, each delivered once; then raise what ``result`` would."""
        while True:
            chunks = self._runner.wait_for(lambda: self._runner.take_chunks(self))
            if not chunks and self.done():
                break
            yield from map(_decode, chunks)
        with self._translated(None):
            super().result()

    # --- the loop's side ------------------------------------------------------------------------------------------------

    def settle(self, ended: jobs.Job) -> None:
        """Set the result or the exception of a job that has ended."""
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

    def reject(self, error: BaseException) -> None:
        """Set the exception of a job that will not run."""
        self.accepted = None
        self._status = JobStatus.FAILED
        self.set_exception(error)

    @contextlib.contextmanager
    def _translated(self, timeout: float | None) -> Iterator[None]:
        """Translate the exceptions of ``concurrent.futures`` into ours."""
        try:
            yield
        except CancelledError:
            if self._error is None:
                raise
            raise self._error from None
        except concurrent.futures.TimeoutError:  # the built-in one only since Python 3.11
            raise TimeoutError(f"job {self.id} has not ended within {timeout:g} s") from None


class _WorkerTraceback(Exception):  # noqa: N818 - shown as the cause of another
    """The handler's own traceback."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _error_of(job: jobs.Job) -> JobError:
    """Make the exception for a job that ended but did not complete."""
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
        exception.__cause__ = _WorkerTraceback(raised.error_traceback)
    return exception
