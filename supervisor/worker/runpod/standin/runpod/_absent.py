"""Errors for everything that the stand-in lacks, with what to do; in the worker and in any Python that a handler starts.

To add a module to the stand-in, add its file: packages import their modules on demand, also as attributes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDER = str(Path(__file__).parent)


class AbsentError(ImportError):
    """The stand-in lacks ``name`` (dotted). Not a ModuleNotFoundError: ``from package import name`` would swallow that and its
    text."""

    def __init__(self, name: str) -> None:
        what = f"{name} is not in supervise's stand-in for the package runpod"
        super().__init__(f"{what}; for the real one: pip install runpod", name=name)


def getter(module: str) -> Callable[[str], object]:
    """Return a ``__getattr__`` for ``module``: in a package, it imports submodules on demand; for all else it raises.

    A name that a package lacks raises AttributeError. One that another module lacks raises AbsentError, unless it begins with an
    underscore, because ``from module import name`` would replace an AttributeError's text.
    """

    def get(name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if not hasattr(sys.modules[module], "__path__"):
            raise AbsentError(f"{module}.{name}")
        try:
            return importlib.import_module(f"{module}.{name}")
        except AbsentError as error:
            raise AttributeError(str(error)) from None

    return get


class _AbsentFinder:
    """Last finder, reached when a module of the stand-in has no file."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> None:  # noqa: ARG002 - PEP 451
        """Find nothing.

        Raises:
            AbsentError: ``fullname`` is a module of the stand-in.
        """
        if fullname.startswith("runpod.") and path and any(entry.startswith(_FOLDER) for entry in path):
            raise AbsentError(fullname)


def install() -> None:
    """Append the finder to ``sys.meta_path``."""
    sys.meta_path.append(_AbsentFinder())
