"""Stands in for ``runpod.serverless``: its functions are those of ``supervisor.serverless``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _supervise_runpod import host

from runpod import _absent
from runpod.serverless import modules, utils
from runpod.serverless.modules.rp_progress import progress_update

__all__ = ["modules", "progress_update", "register_fitness_check", "start", "utils"]


def start(config: dict[str, Any]) -> None:
    """Serve ``config["handler"]`` in this worker; does not return. In its multiprocessing children it returns at once.

    Raises:
        SystemExit: this is no worker.
    """
    serverless = host.serverless()
    if serverless is None:
        raise SystemExit("runpod.serverless.start serves in a worker of supervise only, and this is another process")
    serverless.start(config)


def register_fitness_check(func: Callable[[], object]) -> Callable[[], object]:
    """Run ``func`` in each new worker before its first job; usable as a decorator."""
    serverless = host.serverless()
    if serverless is not None:
        serverless.register_fitness_check(func)
    return func


def __getattr__(name: str) -> object:
    return _absent.lookup(__name__, name)
