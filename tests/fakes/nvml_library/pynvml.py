"""Stands before the real ``pynvml`` on ``PYTHONPATH``: loads that one in its place, then puts the fake library under it."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_here = Path(__file__).resolve().parent
_spec = PathFinder.find_spec("pynvml", [path for path in sys.path if Path(path or ".").resolve() != _here])
if _spec is None or _spec.loader is None:
    raise ImportError("nvidia-ml-py is not installed")
_real = importlib.util.module_from_spec(_spec)
sys.modules["pynvml"] = _real
_spec.loader.exec_module(_real)

from fake_driver import Library  # noqa: E402 - it needs the real module

_real.nvmlLib = Library(Path(os.environ["FAKE_NVML"]))
