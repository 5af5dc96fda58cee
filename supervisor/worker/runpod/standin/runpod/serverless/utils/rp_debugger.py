"""Stands in for ``runpod.serverless.utils.rp_debugger``."""

from __future__ import annotations

from _supervise_runpod.timers import (
    Checkpoints,
    FunctionTimer,
    LineTimer,
    clear_debugger_output,
    get_debugger_output,
)

from runpod import _absent

__all__ = ["Checkpoints", "FunctionTimer", "LineTimer", "clear_debugger_output", "get_debugger_output"]


def __getattr__(name: str) -> object:
    return _absent.refuse(__name__, name)
