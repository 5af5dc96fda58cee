"""``rp_debugger`` without time measurement; in the worker and in any Python that a handler starts.

RunPod's worker clears the real one's list of names after each job; without that, the second job that uses a timer fails with a
KeyError. The times cannot be requested here (``--rp_debugger`` is an option of that worker), so none are measured.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, Callable, TypeVar  # noqa: UP035 - Python 3.8 cannot subscript the other Callable

__all__ = ["Checkpoints", "FunctionTimer", "LineTimer", "clear_debugger_output", "get_debugger_output"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Checkpoints:
    """Accepts names of steps and ignores them."""

    def add(self, name: str) -> None:
        """Do nothing."""

    start = stop = add

    def get_checkpoints(self) -> list[dict[str, Any]]:
        """Return an empty list."""
        return []

    def clear(self) -> None:
        """Do nothing."""


class LineTimer:
    """A context manager that does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None: ...


def FunctionTimer(function: Function) -> Function:  # noqa: N802 - the real one is a class
    """Return ``function`` unchanged, so that a decorated handler is still recognised as a coroutine function or a generator."""
    return function


def get_debugger_output() -> dict[str, Any]:
    """Return information about the system, and no times."""
    system = {
        "os": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or "Unable to get processor info.",
        "python_version": platform.python_version(),
        "runpod": getattr(sys.modules.get("runpod"), "__version__", None),
    }
    return {"system_info": system, "timestamps": []}


def clear_debugger_output() -> None:
    """Do nothing."""
