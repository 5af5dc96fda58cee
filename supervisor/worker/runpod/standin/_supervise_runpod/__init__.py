"""What the stand-in and the routed real package share; in the worker, and in any Python that a handler starts.

Routing imports it by its full name, the stand-in by this short one: an interpreter of the handler's own has no ``supervisor``.
Nothing here needs more than Python 3.8.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, TypeVar  # noqa: UP035 - Python 3.8 cannot subscript the other Callable

Check = TypeVar("Check", bound=Callable[[], object])


def start(config: dict[str, Any]) -> None:
    """Serve ``config["handler"]`` in this worker; does not return. In its multiprocessing children it returns at once.

    ``sys.argv`` and ``test_input.json`` play no part.

    Raises:
        SystemExit: this is no worker.
    """
    serverless = _serverless()
    if serverless is None:
        raise SystemExit("runpod.serverless.start serves in a worker of supervise only, and this is another process")
    serverless.start(config)


def progress_update(job: dict[str, Any], progress: object) -> None:
    """Show ``progress`` (any JSON) as how far ``job`` is: from any thread of the worker; returns at once; the newest wins."""
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
    """The id of the job that calls this; ``None`` outside of one, and where that cannot be told (a thread, a subprocess)."""
    serverless = _serverless()
    return serverless.current_job() if serverless is not None else None


def _serverless() -> ModuleType | None:
    """``supervisor.serverless``; ``None`` in an interpreter that lacks it or has supervisord under that name: no worker."""
    try:
        from supervisor import serverless  # noqa: PLC0415 - a subprocess may lack it
    except ImportError:
        return None
    return serverless
