"""Judges by its names whether a statement may change what later imports see; in the template process.

Reading ``os.environ``, ``sys.path`` and the like is harmless; any other mention counts as a change. Definitions are harmless, and
so are calls of built-in functions, of the standard library, and of objects made with these alone; other calls may do anything.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

_GUARDED = {name: name for name in ("sys.path", "sys.modules", "sys.meta_path", "sys.path_hooks")}
_GUARDED_ANYWHERE = {
    **dict.fromkeys(("environ", "environb", "putenv", "unsetenv"), "os.environ"),
    **dict.fromkeys(("chdir", "fchdir"), "the current folder"),
    "addsitedir": "sys.path",
}
_READS = frozenset({"get", "copy", "keys", "values", "items", "index", "count"})
_MAY_DO_ANYTHING = {
    "__import__",
    "breakpoint",
    "delattr",
    "eval",
    "exec",
    "getattr",
    "globals",
    "locals",
    "setattr",
    "vars",
}
_LOADERS = ("ctypes", "importlib", "pkgutil", "runpy", "site", "unittest")
_HARMLESS_LOADERS = ("importlib.metadata", "importlib.resources", "importlib.util.find_spec")


class Names:
    """Meanings of the names in a file: a dotted name of the standard library, or "" for what was made with it alone. A name
    that has no meaning, or once had none, may be anything."""

    def __init__(self) -> None:
        self._meanings = dict.fromkeys({*vars(builtins), "__file__"} - _MAY_DO_ANYTHING, "")
        self._unknown: set[str] = set()
        self._loaders: set[str] = set()

    def bind(self, name: str, meaning: str | None) -> None:
        """Record what ``name`` means; None: it may be anything."""
        if meaning is None:
            self._unknown.add(name)
        else:
            self._meanings[name] = meaning
            if meaning.startswith(_LOADERS) and not meaning.startswith(_HARMLESS_LOADERS):
                self._loaders.add(name)

    def effect(self, node: ast.AST) -> str | None:
        """Return what ``node`` does that later imports may see, such as ``changes os.environ``, or None. Binds its names."""
        nodes = list(running(node))
        self._bind_all(nodes)
        read = {id(part) for one in nodes for part in _read_by(one)}
        for one in nodes:
            if id(one) not in read and (changed := self._guarded(one)):
                return f"changes {changed}"
        called = (one.func for one in nodes if isinstance(one, ast.Call))
        decorators = (each for one in nodes for each in getattr(one, "decorator_list", ()))
        for function in (*called, *decorators):
            if not self._is_harmless(function):
                return f"calls {ast.unparse(function)[:80]}()"
        return None

    def _bind_all(self, nodes: list[ast.AST]) -> None:
        bound = {one.id for one in nodes if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)}
        meaning = "" if self._is_known(nodes, bound) else None
        for name in bound:
            self.bind(name, meaning)
        for one in nodes:
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self.bind(one.name, None)

    def _is_harmless(self, function: ast.expr) -> bool:
        """Return whether it can be called: by its full name, or since all that it was got from is known."""
        origins = list(_origins(function))
        if self._dotted(function).startswith(_HARMLESS_LOADERS):
            return all(one.id in self._meanings.keys() - self._unknown for one in origins if isinstance(one, ast.Name))
        return self._is_known(origins)

    def _is_known(self, nodes: list[ast.AST], bound: set[str] | None = None) -> bool:
        known = self._meanings.keys() - self._unknown - self._loaders | (bound or set())
        return all(one.id in known if isinstance(one, ast.Name) else not isinstance(one, ast.Lambda) for one in nodes)

    def _guarded(self, node: ast.AST) -> str | None:
        dotted = self._dotted(node)
        return _GUARDED.get(dotted) or _GUARDED_ANYWHERE.get(dotted.rpartition(".")[2])

    def _dotted(self, node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        return (self._meanings.get(node.id) or node.id) if isinstance(node, ast.Name) else ""


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield ``node`` and the parts of it that run when it does: not the bodies of functions."""
    yield node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        parts = [*getattr(node, "decorator_list", ()), *node.args.defaults, *filter(None, node.args.kw_defaults)]
    else:
        parts = list(ast.iter_child_nodes(node))
    for part in parts:
        yield from running(part)


def _origins(function: ast.expr) -> Iterator[ast.AST]:
    """Return what a function was got from: of ``get(a).b`` that is ``get``."""
    while isinstance(function, (ast.Attribute, ast.Subscript, ast.Call)):
        function = function.func if isinstance(function, ast.Call) else function.value
    return ast.walk(function)


def _read_by(node: ast.AST) -> list[ast.expr]:
    """Return the parts of ``node`` that it only reads."""
    if isinstance(node, ast.Attribute):
        return [node.value] if node.attr in _READS else []
    if isinstance(node, ast.Subscript):
        return [node.value] if isinstance(node.ctx, ast.Load) else []
    if isinstance(node, ast.Compare):
        pairs = zip(node.ops, node.comparators, strict=True)
        return [value for operator, value in pairs if isinstance(operator, (ast.In, ast.NotIn))]
    return []
