"""What the real package's downloads see as ``os``: their fixed folders lead into this generation's own; in the worker.

The package's functions stay what they are, in every version of it; only where they put their files is another place. They name it
by ``os.makedirs`` and ``os.path.join`` (runpod 1.12, ``serverless/utils/rp_download.py``).
"""

from __future__ import annotations

import os
from typing import Any

from supervisor.worker.runpod.standin._supervise_runpod import files


class _RoutedPath:
    """``os.path``, but for paths that begin with one of the package's folders."""

    def join(self, first: str, *rest: str) -> str:
        """The path that ``first/rest`` stands for."""
        return str(files.routed(first, *rest) or os.path.join(first, *rest))  # noqa: PTH118 - it is that function

    def __getattr__(self, name: str) -> Any:
        """All else of ``os.path``."""
        return getattr(os.path, name)


class RoutedOs:
    """The module ``os``, but for paths that begin with one of the package's folders."""

    path = _RoutedPath()

    def makedirs(self, name: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make the folder that ``name`` stands for."""
        os.makedirs(files.routed(name) or name, mode, exist_ok)  # noqa: PTH103 - it is that function

    def __getattr__(self, name: str) -> Any:
        """All else of ``os``."""
        return getattr(os, name)
