"""Says what to do about everything that the stand-in lacks; in the worker and in any Python that a handler starts.

To add a module to the stand-in, add its file: packages import theirs when they are asked for, as attributes too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDER = str(Path(__file__).parent)


class AbsentError(ImportError):
    """The stand-in lacks ``name``, dotted, in ``runpod``. No ModuleNotFoundError: ``from package import name`` would swallow
    that and its text."""

    def __init__(self, name: str) -> None:
        what = f"{name} is not in supervise's stand-in for the package runpod"
        super().__init__(f"{what}; for the real one: pip install runpod", name=name)


def getter(module: str) -> Callable[[str], object]:
    """The ``__getattr__`` of ``module``: in a package, imports a module of it that is not there yet; tells about all else.

    What a package lacks is an AttributeError, what another module lacks an AbsentError, but for names with an underscore:
    ``from module import name`` would replace an AttributeError's text.
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
    """Asked last, when a module of the stand-in has no file."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> None:  # noqa: ARG002 - PEP 451
        """Find nothing, ever.

        Raises:
            AbsentError: ``fullname`` is looked for in the stand-in's folder.
        """
        if fullname.startswith("runpod.") and path and any(entry.startswith(_FOLDER) for entry in path):
            raise AbsentError(fullname)


def install() -> None:
    """Put the finder last in ``sys.meta_path``."""
    sys.meta_path.append(_AbsentFinder())
