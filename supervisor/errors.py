"""The errors that the program raises; imported by every process.

::

    SuperviseError
    ├── UsageError              exit code 2: wrong option, handler, GPU or port
    │   ├── HandlerError        the handler was not found, has no function, or raised while it loaded
    │   ├── GpuError            a requested GPU does not exist
    │   └── LockedError         a GPU or a store belongs to another supervisor
    ├── StartError              exit code 3: no worker could start
    ├── StoreError              the job database cannot be used
    │   ├── StoreVersionError   it was written by a newer version of this program
    │   ├── SecretError         the file of a job's s3Config cannot be used; carries its name and the reason
    │   └── TransitionError     a job cannot go from its state to the requested one
    ├── WireError               a message between processes violates the protocol
    │   └── FrameTooLargeError  it is longer than its reader accepts
    ├── EncodeError             a handler's value cannot become JSON
    ├── UploadError             a handler's file could not be put into its bucket
    ├── JobError                a job did not complete; carries its id, status and error
    │   ├── JobFailed           FAILED: the handler raised or returned an error
    │   │   └── WorkerDied      the process that ran it crashed, exited or was killed
    │   ├── JobCancelled        CANCELLED
    │   └── JobTimedOut         TIMED_OUT
    ├── RequestError            a client's request cannot be served; carries the HTTP status
    └── ClientError             a running supervisor could not be reached, or returned an error
        ├── UnreachableError    no process listens at its address
        └── RefusedError        it returned an error; carries the HTTP status
"""

from __future__ import annotations


class SuperviseError(Exception):
    """supervise failed."""

    def __init__(self, message: str | None = None) -> None:
        """Set ``message``, by default the class's docstring."""
        super().__init__(message or (type(self).__doc__ or type(self).__name__))


class UsageError(SuperviseError):
    """The command line or an option is invalid."""


class HandlerError(UsageError):
    """The handler cannot be loaded."""


class GpuError(UsageError):
    """A requested GPU does not exist."""


class LockedError(UsageError):
    """Another supervisor holds this."""


class StartError(SuperviseError):
    """No worker could start."""


class StoreError(SuperviseError):
    """The job store cannot be used."""


class StoreVersionError(StoreError):
    """The job store was written by a newer version of supervise."""


class SecretError(StoreError):
    """The file of a job's s3Config cannot be used."""

    def __init__(self, file: str, reason: str) -> None:
        """Make the message from the ``file`` and the operating system's ``reason``."""
        super().__init__(f"{file}: the file of a job's s3Config cannot be used ({reason})")
        self.file = file
        self.reason = reason


class TransitionError(StoreError):
    """The job is not in a state that allows this."""


class WireError(SuperviseError):
    """A message between processes breaks the protocol."""


class FrameTooLargeError(WireError):
    """A message between processes is longer than its reader accepts."""


class EncodeError(SuperviseError):
    """The value cannot be written as JSON."""


class UploadError(SuperviseError):
    """The file could not be uploaded."""


class JobError(SuperviseError):
    """The job did not complete."""

    def __init__(self, job_id: str, status: str, error: str | None, summary: str) -> None:
        """Set the job's ``id``, ``status`` and ``error``, as in `/status`, and ``summary``, the message."""
        super().__init__(summary)
        self.args = (job_id, status, error, summary)  # so that it can be pickled
        self.id = job_id
        self.status = status
        self.error = error

    def __str__(self) -> str:
        return str(self.args[3])


class JobFailed(JobError):  # noqa: N818 - a public name, and a state
    """The job has failed."""


class WorkerDied(JobFailed):
    """The worker died while it ran the job."""


class JobCancelled(JobError):  # noqa: N818 - a public name, and a state
    """The job was cancelled."""


class JobTimedOut(JobError):  # noqa: N818 - a public name, and a state
    """The job took too long."""


class RequestError(SuperviseError):
    """The request cannot be served."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        """Set the HTTP ``status`` (4xx or 503), the ``message`` for the client, and ``retry_after`` in seconds."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ClientError(SuperviseError):
    """The supervisor could not be reached."""


class UnreachableError(ClientError):
    """No supervisor listens there."""


class RefusedError(ClientError):
    """The supervisor returned an error."""

    def __init__(self, status: int, message: str) -> None:
        """Set the HTTP ``status`` of the answer, and the ``message`` for the user."""
        super().__init__(message)
        self.status = status
