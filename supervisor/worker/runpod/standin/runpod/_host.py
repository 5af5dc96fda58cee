"""Finds what the stand-in's functions call; in the worker and in any Python that a handler starts."""

from __future__ import annotations

from types import ModuleType


def serverless() -> ModuleType | None:
    """``supervisor.serverless``; ``None`` in an interpreter that lacks it or has supervisord under that name: no worker."""
    try:
        from supervisor import serverless  # noqa: PLC0415 - a subprocess may lack it
    except ImportError:
        return None
    return serverless
