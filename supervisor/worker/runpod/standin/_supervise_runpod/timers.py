"""``rp_debugger`` without its clock: in the worker and in any Python that a handler starts.

RunPod's worker empties the real one's list of names after each job; without that, the second job that uses a timer fails with a
KeyError. Nobody can ask for the times here (``--rp_debugger`` is an option of that worker), so none are taken.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, Callable, TypeVar  # noqa: UP035 - Python 3.8 cannot subscript the other Callable

__all__ = ["Checkpoints", "FunctionTimer", "LineTimer", "clear_debugger_output", "get_debugger_output"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Checkpoints:
    """Takes names of steps and forgets them."""

    def add(self, name: str) -> None:
        """Do nothing."""

    start = stop = add

    def get_checkpoints(self) -> list[dict[str, Any]]:
        """An empty list."""
        return []

    def clear(self) -> None:
        """Do nothing."""


class LineTimer:
    """A ``with`` block like any other."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None: ...


def FunctionTimer(function: Function) -> Function:  # noqa: N802 - the real one is a class
    """``function`` as it is, so a decorated handler is still seen to be a coroutine function or a generator."""
    return function


def get_debugger_output() -> dict[str, Any]:
    """Which system this is, and no times."""
    system = {
        "os": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or "Unable to get processor info.",
        "python_version": platform.python_version(),
        "runpod": getattr(sys.modules.get("runpod"), "__version__", None),
    }
    return {"system_info": system, "timestamps": []}


def clear_debugger_output() -> None:
    """Do nothing."""
