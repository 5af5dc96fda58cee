"""What a handler's source imports before it can have changed how imports work, read without running it; in the template process.

Python runs a file from top to bottom. Its statements are followed here in that order, as far as none of them changes, or may
change, ``os.environ``, ``sys.path`` or the current folder: a module may look at these while it is imported. Files of the user's
own that are imported on the way are followed too, for that question only; they, and what they import, are left to the worker.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec

from supervisor.template.preload.effects import Names, effect
from supervisor.template.preload.locate import Place, Places
from supervisor.wire.messages import HandlerSpec

MOST_FILES = 300
"""How many files of the user's own are followed; a handler that imports more is left to the worker from there on."""


class Import(msgspec.Struct, frozen=True):
    """``import module``; with ``names``, ``from module import names``, which may load more of the module."""

    module: str
    names: tuple[str, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """The installed modules that a handler imports, in order, and (module, why) of those that its worker must import."""

    imports: tuple[Import, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def read(handler: HandlerSpec) -> Reading:
    """What of ``handler`` may be imported ahead of it. A source that cannot be read gives nothing, and the reason."""
    places = Places(handler)
    files = _files_of(handler, places)
    if files is None:
        return Reading((), ((handler.target, "its source was not found"),))
    follower = _Follower(places)
    for file in files[:-1]:  # the packages that the handler is in: Python runs them first
        follower.follow(file, collects=False)
    try:
        follower.follow(files[-1], collects=True)
    except _UnreadableError as error:
        return Reading((), ((handler.target, str(error)),))
    return Reading(tuple(follower.imports), tuple(follower.left_out.items()))


class _File:
    """One source file. ``package`` is where its relative imports start; ``runs``: as ``__main__``."""

    def __init__(self, path: Path, package: str = "", runs: bool = False) -> None:
        self.path = path
        self.package = package
        self.runs = runs
        self.names = Names()


class _UnreadableError(Exception):
    """There is no source, or it is not Python."""


def _files_of(handler: HandlerSpec, places: Places) -> list[_File] | None:
    if handler.kind == "file":
        return [_File(Path(handler.target), runs=True)]
    name = handler.target
    chain = places.chain(name)
    if handler.kind == "module" and chain and chain[-1].submodule_search_locations is not None:
        name += ".__main__"
        chain = places.chain(name)
    files = [_file(spec) for spec in chain]
    if not chain or chain[-1].name != name or files[-1] is None:
        return None
    files[-1].runs = handler.kind == "module"
    return [file for file in files if file is not None]


def _file(spec: ModuleSpec) -> _File | None:
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    is_package = spec.submodule_search_locations is not None
    return _File(Path(spec.origin), spec.name if is_package else spec.name.rpartition(".")[0])


def _parse(path: Path) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the worker will say it
            return ast.parse(path.read_bytes(), str(path)).body
    except OSError as error:
        raise _UnreadableError(f"its source cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _UnreadableError(f"its source is not Python: {error}") from None


class _Stop(msgspec.Struct, frozen=True):
    """What may have changed what imports see. ``placed``: it says in which file."""

    what: str
    placed: bool = False


class _Follower:
    """Goes through files as Python would, until something may have changed what imports see."""

    def __init__(self, places: Places) -> None:
        self.imports: list[Import] = []
        self.left_out: dict[str, str] = {}
        self._places = places
        self._followed: set[Path] = set()
        self._stop: _Stop | None = None
        self._line: int | None = None

    def follow(self, file: _File, collects: bool) -> None:
        """Go through ``file``; with ``collects`` what it imports is asked for.

        Raises:
            _UnreadableError: it cannot be read, and ``collects``.
        """
        if file.path in self._followed:
            return
        self._followed.add(file.path)
        try:
            statements = _parse(file.path)
        except _UnreadableError as error:
            if collects:
                raise
            self._stop = self._stop or _Stop(f"runs {file.path.name}: {error}", placed=True)
            return
        if len(self._followed) > MOST_FILES:
            self._stop = self._stop or _Stop(f"runs more than {MOST_FILES} files", placed=True)
        self._block(statements, file, collects)

    def _reason(self, stop: _Stop) -> str:
        where = "in a package that" if self._line is None else f"imported below line {self._line}, which"
        return f"{where} {stop.what}"

    def _block(self, statements: Sequence[ast.stmt], file: _File, collects: bool) -> None:
        for statement in statements:
            if self._stop is None or collects:
                self._statement(statement, file, collects)
            if self._stop is not None and self._line is None and collects:
                self._line = statement.lineno

    def _statement(self, node: ast.stmt, file: _File, collects: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._import(Import(alias.name), collects)
                meant = alias.name if alias.asname else alias.name.partition(".")[0]
                self._bind(alias.asname or meant, meant, file)
        elif isinstance(node, ast.ImportFrom):
            self._import_from(node, file, collects)
        else:
            if self._stop is None:
                what = effect(node, file.names)
                self._stop = None if what is None else _Stop(what)
            self._nested(node, file, collects)

    def _nested(self, node: ast.stmt, file: _File, collects: bool) -> None:
        if isinstance(node, ast.If):
            known = _outcome(node.test, file)
            for branch, runs in ((node.body, known), (node.orelse, None if known is None else not known)):
                if runs is not False:
                    self._block(branch, file, collects and runs is True)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            self._block(node.body, file, collects)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            self._block([*node.body, *node.orelse], file, False)
        elif isinstance(node, ast.ClassDef):
            self._block(node.body, file, False)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                self._block(case.body, file, False)
        elif isinstance(node, ast.Try):
            self._try(node, file, collects)
        elif sys.version_info >= (3, 11) and isinstance(node, ast.TryStar):
            self._block([*node.body, *node.orelse, *node.finalbody], file, False)

    def _try(self, node: ast.Try, file: _File, collects: bool) -> None:
        self._block(node.body, file, collects)
        for handler in node.handlers:  # what stands in when an import fails may not be wanted
            self._block(handler.body, file, False)
        self._block([*node.orelse, *node.finalbody], file, collects)

    def _import_from(self, node: ast.ImportFrom, file: _File, collects: bool) -> None:
        module = node.module or ""
        if node.level:
            parts = file.package.split(".")
            base = parts[: len(parts) - node.level + 1]
            module = ".".join([*base, module] if module else base)
        names = tuple(alias.name for alias in node.names if alias.name != "*")
        if not module or module == "__future__":
            return
        self._import(Import(module, names), collects)
        for alias in node.names:
            self._bind(alias.asname or alias.name, f"{module}.{alias.name}", file)

    def _import(self, wanted: Import, collects: bool) -> None:
        kind = self._places.kind(wanted.module)
        if kind is Place.USERS and self._stop is None:
            for name in (wanted.module, *(f"{wanted.module}.{name}" for name in wanted.names)):
                self._run_users(name)
        elif not collects:
            return
        elif kind is Place.NAMESPACE:
            self.left_out.setdefault(wanted.module, "it is in a namespace package")
        elif kind is Place.INSTALLED and self._stop is not None:
            self.left_out.setdefault(wanted.module, self._reason(self._stop))
        elif kind in (Place.INSTALLED, Place.STANDARD) and self._stop is None:
            self.imports.append(wanted)

    def _run_users(self, name: str) -> None:
        """Follow what ``import name`` runs. A name that no file has is one inside a module."""
        for spec in self._places.chain(name):
            found = _file(spec)
            if found is not None:
                self.follow(found, collects=False)
                if self._stop is not None and not self._stop.placed:
                    self._stop = _Stop(f"runs {found.path.name}, which {self._stop.what}", placed=True)
            elif spec.origin is not None:
                self._stop = _Stop(f"runs {spec.name}, which has no source", placed=True)
            if self._stop is not None:
                return

    def _bind(self, name: str, meant: str, file: _File) -> None:
        if self._places.kind(meant) is Place.STANDARD:
            file.names.learn(name, meant)
        else:
            file.names.forget(name)


def _outcome(test: ast.expr, file: _File) -> bool | None:
    """How a condition turns out, if that is known."""
    text = ast.unparse(test)
    if text in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return False
    if text in ("not TYPE_CHECKING", "not typing.TYPE_CHECKING"):
        return True
    if text in ("__name__ == '__main__'", "'__main__' == __name__"):
        return file.runs
    return None
