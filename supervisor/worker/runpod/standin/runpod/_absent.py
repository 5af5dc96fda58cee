"""Says what to do about everything that the stand-in lacks; in the worker and in any Python that a handler starts.

To add a module to the stand-in, add its file: packages import theirs when they are asked for, as attributes too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = str(Path(__file__).parent)


def message(name: str) -> str:
    """What the user reads about ``name``, a dotted name in ``runpod``."""
    return f"{name} is not in supervise's stand-in for the package runpod; for the real one: pip install runpod"


def lookup(package: str, name: str) -> object:
    """The attribute ``name`` of ``package`` that is not there yet: a module of it, imported now.

    Raises:
        AttributeError: the stand-in has no such module.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{package}.{name}")
    except AbsentError as error:
        raise AttributeError(str(error)) from None


def refuse(module: str, name: str) -> object:
    """Tell about ``name`` that ``module``, which is no package, lacks.

    Raises:
        ImportError: always, but for names with an underscore. ``from module import name`` would replace an AttributeError's text.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    raise AbsentError(message(f"{module}.{name}"))


class AbsentError(ImportError):
    """The stand-in lacks this. No ModuleNotFoundError: ``from package import name`` would swallow that and its text."""


class _Finder:
    """Asked last, when a module of the stand-in has no file."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> None:  # noqa: ARG002 - PEP 451
        """Find nothing, ever.

        Raises:
            AbsentError: ``fullname`` is looked for in the stand-in's folder.
        """
        if fullname.startswith("runpod.") and path and any(entry.startswith(_FOLDER) for entry in path):
            raise AbsentError(message(fullname), name=fullname)


def install() -> None:
    """Put the finder last in ``sys.meta_path``."""
    sys.meta_path.append(_Finder())
