"""Functions that the stand-in and the routed real package share; in the worker, and in any Python that a handler starts.

Routing imports it by its full name, the stand-in by this short one: another interpreter may lack ``supervisor``.
Nothing here needs more than Python 3.8.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, TypeVar  # noqa: UP035 - Python 3.8 cannot subscript the other Callable

Check = TypeVar("Check", bound=Callable[[], object])


def start(config: dict[str, Any]) -> None:
    """Serve ``config["handler"]`` in this worker; does not return. In its multiprocessing children it returns at once.

    ``sys.argv`` and ``test_input.json`` are not used.

    Raises:
        SystemExit: this process is not a worker.
    """
    serverless = _serverless()
    if serverless is None:
        raise SystemExit("runpod.serverless.start serves in a worker of supervise only, and this is another process")
    serverless.start(config)


def progress_update(job: dict[str, Any], progress: object) -> None:
    """Report ``progress`` (any JSON) of ``job``, from any thread of the worker, without blocking; the newest value wins."""
    serverless = _serverless()
    if serverless is not None:
        serverless.progress_update(job, progress)


def register_fitness_check(func: Check) -> Check:
    """Run ``func`` in each new worker before its first job; usable as a decorator."""
    serverless = _serverless()
    if serverless is not None:
        serverless.register_fitness_check(func)
    return func


def current_job() -> str | None:
    """Return the id of the calling job; None outside a job, or where it is unknown (in a thread, a subprocess)."""
    serverless = _serverless()
    return serverless.current_job() if serverless is not None else None


def _serverless() -> ModuleType | None:
    """Return ``supervisor.serverless``; None in an interpreter that lacks it, or has supervisord under that name."""
    try:
        from supervisor import serverless  # noqa: PLC0415 - a subprocess may lack it
    except ImportError:
        return None
    return serverless
