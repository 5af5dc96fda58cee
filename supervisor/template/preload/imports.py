"""What a handler's source imports before it can have changed how imports work, read without running it; in the template process.

Its statements are read in the order in which they run, until one changes, or may change, ``os.environ``, ``sys.path`` or the
current folder: a module may look at these while it is imported. Files of the user's own that it imports are read too, for that
question only; they, and what they import, are left to the worker.
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
from supervisor.template.preload.locate import Place, Places
from supervisor.wire.messages import HandlerSpec

MOST_FILES = 300
"""How many files of the user's own are read; a handler that imports more is left to the worker from there on."""


class Import(msgspec.Struct, frozen=True):
    """``import module``; with ``names``, ``from module import names``, which may load more of the module."""

    module: str
    names: tuple[str, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """The installed modules that a handler imports, in order, and (module, why) of those that its worker must import."""

    imports: tuple[Import, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


class _File(msgspec.Struct, frozen=True):
    """A source file. ``package`` is where its relative imports start; ``runs``: as ``__main__``."""

    path: Path
    package: str = ""
    runs: bool = False


class _UnreadableError(Exception):
    """There is no source, or it is not Python."""


def read(handler: HandlerSpec) -> Reading:
    """What of ``handler`` may be imported ahead of it. A source that cannot be read gives nothing, and the reason."""
    reader = _Reader(Places(handler))
    try:
        *packages, own = reader.files_of(handler)
        stops = filter(None, map(reader.effect_of, packages))  # Python runs them first
        return reader.read(own, next((f"in a package that {stop}" for stop in stops), None))
    except (_UnreadableError, RecursionError) as error:
        return Reading((), ((handler.target, str(error)),))


class _Reader:
    """Reads files as Python would run them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._followed: set[Path] = set()

    def files_of(self, handler: HandlerSpec) -> list[_File]:
        """The files that Python runs for ``handler``; the last is its own.

        Raises:
            _UnreadableError: that one is not there.
        """
        if handler.kind == "file":
            return [_File(Path(handler.target), runs=True)]
        name = handler.target
        chain = self._places.chain(name)
        if handler.kind == "module" and chain and chain[-1].submodule_search_locations is not None:
            name += ".__main__"
            chain = self._places.chain(name)
        files = [_file(spec, handler.kind == "module" and spec.name == name) for spec in chain]
        if not chain or chain[-1].name != name or files[-1] is None:
            raise _UnreadableError("its source was not found")
        return [file for file in files if file is not None]

    def read(self, file: _File, stop: str | None) -> Reading:
        """What ``file`` imports; what comes after a ``stop`` is left out with that reason.

        Raises:
            _UnreadableError: it cannot be read.
        """
        self._followed.add(file.path)
        imports, left_out, names = list[Import](), dict[str, str](), Names()
        for node, certain in _steps(_parse(file.path), file.runs):
            for wanted, _ in _imported(node, file.package) if certain else ():
                kind = self._places.kind(wanted.module)
                if kind is Place.NAMESPACE:
                    left_out.setdefault(wanted.module, "it is in a namespace package")
                elif kind is Place.INSTALLED and stop is not None:
                    left_out.setdefault(wanted.module, stop)
                elif kind in (Place.INSTALLED, Place.STANDARD) and stop is None:
                    imports.append(wanted)
            if stop is None and (what := self._effect(node, file, names)) is not None:
                stop = f"imported below line {node.lineno}, which {what}"
        return Reading(tuple(imports), tuple(left_out.items()))

    def effect_of(self, file: _File) -> str | None:
        """What running ``file`` may do that later imports see; None if nothing, or if it has run already."""
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
            kind = self._places.kind(wanted.module)
            for name, meaning in bound.items():
                names.bind(name, meaning if kind is Place.STANDARD else None)
            if kind is Place.USERS and (what := self._effect_of_import(wanted)) is not None:
                return what
        return names.effect(node)

    def _effect_of_import(self, wanted: Import) -> str | None:
        """A name that no file has is one inside a module."""
        for name in (wanted.module, *(f"{wanted.module}.{name}" for name in wanted.names)):
            for spec in self._places.chain(name):
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
            warnings.simplefilter("ignore")  # the worker will say it
            return ast.parse(path.read_bytes(), str(path)).body
    except OSError as error:
        raise _UnreadableError(f"its source cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _UnreadableError(f"its source is not Python: {error}") from None


def _steps(statements: Sequence[ast.stmt], runs: bool, certain: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """What runs, in order, and whether it is certain to: blocks around imports are opened. ``runs``: as ``__main__``."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from ((ast.copy_location(ast.Import([alias]), node), certain) for alias in node.names)
        elif isinstance(node, ast.Try):
            yield from _steps(node.body, runs, certain)
            for handler in node.handlers:  # what stands in when an import fails may not be wanted
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
    """How a condition turns out, if that is known."""
    text = ast.unparse(test).replace("typing.", "")
    if text in ("TYPE_CHECKING", "not TYPE_CHECKING"):
        return text != "TYPE_CHECKING"
    return runs if text in ("__name__ == '__main__'", "'__main__' == __name__") else None


def _imported(node: ast.AST, package: str) -> Iterator[tuple[Import, dict[str, str]]]:
    """What ``node`` imports, and the names that it binds, with what they stand for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            meant = alias.name if alias.asname else alias.name.partition(".")[0]
            yield Import(alias.name), {alias.asname or meant: meant}
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        with contextlib.suppress(ImportError):  # it leads out of the package: the worker will say it
            module = resolve_name("." * node.level + (node.module or ""), package)
            bound = {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
            yield Import(module, tuple(alias.name for alias in node.names if alias.name != "*")), bound
