"""The handlers' API: ``from supervisor import serverless``; any process may import it, but it has effects only in a worker.

::

    def handler(job):
        serverless.progress_update(job, {"percent": 50})
        return {"answer": job["input"]["question"]}

    serverless.start({"handler": handler})
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Check = TypeVar("Check", bound=Callable[[], object])


class Host(Protocol):
    """Interface of the worker process to this module."""

    pid: int

    def start(self, config: object) -> None:
        """Serve ``config``; return only while the module of a function named on the command line is imported."""

    def progress(self, job: Any, value: object) -> None:
        """Report the progress of ``job``."""

    def current_job(self) -> str | None:
        """Return the id of the caller's job, if any."""

    def add_fitness_check(self, check: Callable[[], object]) -> None:
        """Run ``check`` before the first job."""


_host: Host | None = None
"""This process's worker: the only global of the program, needed because handlers call plain functions. Set once, by ``attach``,
before any user code runs; ``None`` in every other process."""


def attach(host: Host) -> None:
    """Connect the functions below to ``host``. The worker process calls this once, as it starts."""
    global _host  # noqa: PLW0603 - see _host
    _host = host


def start(config: dict[str, Any]) -> None:
    """Serve ``config["handler"]``; does not return. In the handler's own child processes it returns at once without effect.

    Keys beside ``handler``: ``refresh_worker``, ``return_aggregate_stream``, ``concurrency_modifier``.

    Raises:
        SystemExit: no supervisor runs this file.
        RuntimeError: the worker is serving already, or this is not the main thread.
    """
    if _host is not None:
        if _host.pid == os.getpid():
            _host.start(config)
    elif not _in_multiprocessing_child():
        raise SystemExit(f"a handler is served by its supervisor; run it with: supervise {_name_of_main()}")


def progress_update(job: dict[str, Any], value: object) -> None:
    """Report ``value`` (any JSON) as the progress of ``job``, replacing older values. Any thread may call it; never blocks.

    Raises:
        EncodeError: ``value`` cannot be written as JSON; the message says where.
    """
    if _host is not None and _host.pid == os.getpid():
        _host.progress(job, value)


def current_job() -> str | None:
    """Return the id of the caller's job; None outside of jobs.

    Tasks, ``asyncio.to_thread`` and forked children inherit the job; other threads and spawned children do not.
    """
    return _host.current_job() if _host is not None else None


def upload_file(job: dict[str, Any], path: str | os.PathLike[str], key: str | None = None) -> str:
    """Upload the file at ``path`` to the job's bucket and return a URL with which anyone can read it for 7 days.

    The bucket is that of ``job["s3Config"]``, else of the variables ``BUCKET_ENDPOINT_URL``, ``BUCKET_ACCESS_KEY_ID``,
    ``BUCKET_SECRET_ACCESS_KEY`` and ``BUCKET_NAME``. ``key`` is the object's name there, by default the job's id, a slash and the
    file's name. Blocks until all is sent: in a coroutine, ``await asyncio.to_thread(serverless.upload_file, job, path)``.

    Raises:
        OSError: the file does not exist or cannot be read.
        UploadError: boto3 is not installed, no bucket is given, or the server returned an error.
    """
    from supervisor.upload import upload  # noqa: PLC0415 - most handlers upload nothing

    return upload(job, path, key)


def register_fitness_check(check: Check) -> Check:
    """Run ``check`` (a function or coroutine function) in each new worker before its first job; usable as a decorator.

    A check that raises keeps the worker out of service.
    """
    if _host is not None and _host.pid == os.getpid():
        _host.add_fitness_check(check)
    return check


def _in_multiprocessing_child() -> bool:
    # Spawned children import the main file as __mp_main__, before parent_process() is set; in forked ones it is set.
    process = sys.modules.get("multiprocessing.process")
    return "__mp_main__" in sys.modules or (process is not None and process.parent_process() is not None)


def _name_of_main() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec is not None else (sys.argv[0] or "FILE")
