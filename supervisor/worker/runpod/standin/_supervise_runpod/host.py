"""Finds the worker around the stand-in's functions; in the worker and in any Python that a handler starts."""

from __future__ import annotations

from types import ModuleType


def serverless() -> ModuleType | None:
    """``supervisor.serverless``; ``None`` in an interpreter that lacks it or has supervisord under that name: no worker."""
    try:
        from supervisor import serverless  # noqa: PLC0415 - a subprocess may lack it
    except ImportError:
        return None
    return serverless


def current_job() -> str | None:
    """The id of the job that calls this; ``None`` outside of one, and where that cannot be told (a thread, a subprocess)."""
    worker = serverless()
    return worker.current_job() if worker is not None else None
