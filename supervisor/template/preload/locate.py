"""Finds the modules that a handler imports, as its worker will, without importing any; in the template process."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from enum import Enum
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from supervisor.wire.messages import HandlerSpec


class ModuleOrigin(Enum):
    """Kind of module that a name refers to."""

    STANDARD = "the standard library"
    INSTALLED = "an installed package"
    NAMESPACE = "an installed namespace package"
    USERS = "code of the user's own"
    OTHER = "nothing; this package, or the stand-in for runpod"


def folder_of(handler: HandlerSpec) -> Path:
    """Return the folder that comes first on ``sys.path`` when ``handler`` imports something."""
    return Path(handler.target).resolve().parent if handler.kind == "file" else Path.cwd()


def shadowed(name: str, folder: Path) -> bool:
    """Return whether ``import name`` (no dots) finds its module in ``folder``. A namespace package there does not count."""
    spec = PathFinder.find_spec(name, [str(folder)])
    return spec is not None and spec.origin is not None


class ModuleFinder:
    """Finds modules for one handler."""

    def __init__(self, handler: HandlerSpec) -> None:
        """Search the handler's folder first, then ``sys.path``."""
        self._folder = folder_of(handler)
        self._own = None if handler.kind == "file" else handler.target.partition(".")[0]
        self._path = [str(self._folder), *sys.path]
        self._standard = _prefixes(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
        pure, platform = (sysconfig.get_path(name) for name in ("purelib", "platlib"))
        self._packages = _prefixes([pure, platform, *site.getsitepackages(), site.getusersitepackages()])

    def kind(self, name: str) -> ModuleOrigin:
        """Return the origin of the top-level module of the dotted ``name``."""
        top = name.partition(".")[0]
        if top in sys.builtin_module_names:
            return ModuleOrigin.STANDARD
        if top == self._own or shadowed(top, self._folder):
            return ModuleOrigin.USERS
        spec = self._find(top)
        if top == "supervisor" or spec is None:
            return ModuleOrigin.OTHER
        if spec.origin is None:
            installed = all(_is_in(self._packages, folder) for folder in spec.submodule_search_locations or ())
            return ModuleOrigin.NAMESPACE if installed else ModuleOrigin.USERS
        if _is_in(self._packages, spec.origin):
            return ModuleOrigin.INSTALLED
        standard = spec.origin == "frozen" or _is_in(self._standard, spec.origin)
        return ModuleOrigin.STANDARD if standard and top in sys.stdlib_module_names else ModuleOrigin.USERS

    def chain(self, name: str) -> list[ModuleSpec]:
        """Return the modules that ``import name`` runs: its packages, then itself; fewer if one is missing."""
        parts = name.split(".")
        specs: list[ModuleSpec] = []
        spec = self._find(parts[0])
        while spec is not None:
            specs.append(spec)
            if len(specs) == len(parts) or spec.submodule_search_locations is None:
                break
            try:
                spec = PathFinder.find_spec(".".join(parts[: len(specs) + 1]), list(spec.submodule_search_locations))
            except KeyError:
                break  # a namespace package whose parent is not imported
        return specs

    def _find(self, top: str) -> ModuleSpec | None:
        try:
            # Other finders know editable installs.
            return PathFinder.find_spec(top, self._path) or importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None


def _prefixes(folders: Iterable[str]) -> tuple[str, ...]:
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def _is_in(prefixes: tuple[str, ...], path: str) -> bool:
    return os.path.realpath(path).startswith(prefixes)
