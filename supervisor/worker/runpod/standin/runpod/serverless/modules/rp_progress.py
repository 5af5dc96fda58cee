"""Stands in for ``runpod.serverless.modules.rp_progress``."""

from __future__ import annotations

from typing import Any

from _supervise_runpod import host

from runpod import _absent


def progress_update(job: dict[str, Any], progress: object) -> None:
    """Show ``progress`` (any JSON) as how far ``job`` is: from any thread of the worker; returns at once; the newest wins."""
    serverless = host.serverless()
    if serverless is not None:
        serverless.progress_update(job, progress)


def __getattr__(name: str) -> object:
    return _absent.refuse(__name__, name)
