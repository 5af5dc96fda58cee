"""Finds what a handler's source imports before it can have changed how imports work, without running it; in the template process.

Reads the statements in execution order until one changes, or may change, ``os.environ``, ``sys.path`` or the current folder: a
module may read these while it is imported. The user's own files that it imports are read too, but only for such changes; the
worker imports them, and what they import.
"""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path

import msgspec

from supervisor.template.preload.effects import Names, running
from supervisor.template.preload.locate import ModuleFinder, ModuleOrigin
from supervisor.wire.messages import HandlerSpec

MOST_FILES = 300
"""Maximum number of the user's own files that are read; what comes after them is left to the worker."""


class Import(msgspec.Struct, frozen=True):
    """``import module``; with ``names``, ``from module import names``, which may load more of the module."""

    module: str
    names: tuple[str, ...] = ()


class SourceImports(msgspec.Struct, frozen=True):
    """Installed modules that a handler imports, in order, and (module, reason) of those that must be left to its worker."""

    imports: tuple[Import, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


class _File(msgspec.Struct, frozen=True):
    """A source file. ``package`` is the base of its relative imports; ``runs``: as ``__main__``."""

    path: Path
    package: str = ""
    runs: bool = False


class _UnreadableError(Exception):
    """The source is missing, or is not Python."""


def read(handler: HandlerSpec) -> SourceImports:
    """Return what may be imported ahead of ``handler``; for a source that cannot be read nothing, and the reason."""
    reader = _Reader(ModuleFinder(handler))
    try:
        *packages, own = reader.files_of(handler)
        stops = filter(None, map(reader.effect_of, packages))  # Python runs them first
        return reader.read(own, next((f"in a package that {stop}" for stop in stops), None))
    except (_UnreadableError, RecursionError) as error:
        return SourceImports((), ((handler.target, str(error)),))


class _Reader:
    """Reads files as Python would run them."""

    def __init__(self, finder: ModuleFinder) -> None:
        self._finder = finder
        self._followed: set[Path] = set()

    def files_of(self, handler: HandlerSpec) -> list[_File]:
        """Return the files that Python runs for ``handler``; the last is its own.

        Raises:
            _UnreadableError: its own file was not found.
        """
        if handler.kind == "file":
            return [_File(Path(handler.target), runs=True)]
        name = handler.target
        chain = self._finder.chain(name)
        if handler.kind == "module" and chain and chain[-1].submodule_search_locations is not None:
            name += ".__main__"
            chain = self._finder.chain(name)
        files = [_file(spec, handler.kind == "module" and spec.name == name) for spec in chain]
        if not chain or chain[-1].name != name or files[-1] is None:
            raise _UnreadableError("its source was not found")
        return [file for file in files if file is not None]

    def read(self, file: _File, stop: str | None) -> SourceImports:
        """Return what ``file`` imports; imports after a ``stop`` are left out, for that reason.

        Raises:
            _UnreadableError: it cannot be read.
        """
        self._followed.add(file.path)
        imports, left_out, names = list[Import](), dict[str, str](), Names()
        for node, certain in _steps(_parse(file.path), file.runs):
            for wanted, _ in _imported(node, file.package) if certain else ():
                kind = self._finder.kind(wanted.module)
                if kind is ModuleOrigin.NAMESPACE:
                    left_out.setdefault(wanted.module, "it is in a namespace package")
                elif kind is ModuleOrigin.INSTALLED and stop is not None:
                    left_out.setdefault(wanted.module, stop)
                elif kind in (ModuleOrigin.INSTALLED, ModuleOrigin.STANDARD) and stop is None:
                    imports.append(wanted)
            if stop is None and (what := self._effect(node, file, names)) is not None:
                stop = f"imported below line {node.lineno}, which {what}"
        return SourceImports(tuple(imports), tuple(left_out.items()))

    def effect_of(self, file: _File) -> str | None:
        """Return what running ``file`` may do that later imports see; None if nothing, or if it has run already."""
        if file.path in self._followed:
            return None
        self._followed.add(file.path)
        if len(self._followed) > MOST_FILES:
            return f"is one of more than {MOST_FILES} files"
        try:
            steps = _steps(_parse(file.path), file.runs)
        except _UnreadableError as error:
            return f"cannot be followed: {error}"
        names = Names()
        return next(filter(None, (self._effect(node, file, names) for node, _ in steps)), None)

    def _effect(self, node: ast.stmt, file: _File, names: Names) -> str | None:
        for wanted, bound in (found for inner in running(node) for found in _imported(inner, file.package)):
            kind = self._finder.kind(wanted.module)
            for name, meaning in bound.items():
                names.bind(name, meaning if kind is ModuleOrigin.STANDARD else None)
            if kind is ModuleOrigin.USERS and (what := self._effect_of_import(wanted)) is not None:
                return what
        return names.effect(node)

    def _effect_of_import(self, wanted: Import) -> str | None:
        """Return what importing ``wanted``, a module of the user's own, may do that later imports see; None if nothing."""
        # An imported name that has no file is an attribute.
        for name in (wanted.module, *(f"{wanted.module}.{name}" for name in wanted.names)):
            for spec in self._finder.chain(name):
                found = _file(spec)
                if found is None and spec.origin is not None:
                    return f"runs {spec.name}, which has no source"
                if found is not None and (what := self.effect_of(found)) is not None:
                    # Of files that import one another, the one that does it is enough.
                    return what if what.startswith("runs ") else f"runs {found.path.name}, which {what}"
        return None


def _file(spec: ModuleSpec, runs: bool = False) -> _File | None:
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    is_package = spec.submodule_search_locations is not None
    return _File(Path(spec.origin), spec.name if is_package else spec.name.rpartition(".")[0], runs)


def _parse(path: Path) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the worker will issue it
            return ast.parse(path.read_bytes(), str(path)).body
    except OSError as error:
        raise _UnreadableError(f"its source cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _UnreadableError(f"its source is not Python: {error}") from None


def _steps(statements: Sequence[ast.stmt], runs: bool, certain: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Yield the statements in execution order, and whether each is certain to run. Opens blocks. ``runs``: as ``__main__``."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from ((ast.copy_location(ast.Import([alias]), node), certain) for alias in node.names)
        elif isinstance(node, ast.Try):
            yield from _steps(node.body, runs, certain)
            for handler in node.handlers:  # fallbacks for a failed import may not be needed
                yield from _steps(handler.body, runs, False)
            yield from _steps([*node.orelse, *node.finalbody], runs, certain)
        elif isinstance(node, ast.With):
            yield ast.copy_location(ast.With(node.items, []), node), certain
            yield from _steps(node.body, runs, certain)
        elif isinstance(node, ast.If) and (outcome := _outcome(node.test, runs)) is not None:
            yield from _steps(node.body if outcome else node.orelse, runs, certain)
        else:
            yield node, certain


def _outcome(test: ast.expr, runs: bool) -> bool | None:
    """Return the condition's value; None if it is not known."""
    text = ast.unparse(test).replace("typing.", "")
    if text in ("TYPE_CHECKING", "not TYPE_CHECKING"):
        return text != "TYPE_CHECKING"
    return runs if text in ("__name__ == '__main__'", "'__main__' == __name__") else None


def _imported(node: ast.AST, package: str) -> Iterator[tuple[Import, dict[str, str]]]:
    """Yield what ``node`` imports, with the names that it binds and their meanings."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            meant = alias.name if alias.asname else alias.name.partition(".")[0]
            yield Import(alias.name), {alias.asname or meant: meant}
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        with contextlib.suppress(ImportError):  # a relative import beyond the package: the worker will raise it
            module = resolve_name("." * node.level + (node.module or ""), package)
            bound = {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
            yield Import(module, tuple(alias.name for alias in node.names if alias.name != "*")), bound
