"""What a statement may change of the world that later imports see, told by its names alone; in the template process.

Reading ``os.environ`` is harmless, and any other mention of it is a change; so for ``sys.path`` and its like. Calls of built-in
functions, of the standard library, and of what was made with them, are harmless. All other calls may do anything.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

_GUARDED = {
    "os.environ": "os.environ",
    "os.environb": "os.environ",
    "sys.path": "sys.path",
    "sys.modules": "sys.modules",
    "sys.meta_path": "sys.meta_path",
    "sys.path_hooks": "sys.path_hooks",
}
_READS = frozenset({"get", "copy", "keys", "values", "items", "index", "count"})
_CHANGES = {
    "environ": "os.environ",
    "environb": "os.environ",
    "putenv": "os.environ",
    "unsetenv": "os.environ",
    "addsitedir": "sys.path",
    "chdir": "the current folder",
    "fchdir": "the current folder",
}
_MAY_DO_ANYTHING = frozenset(
    {"__import__", "breakpoint", "delattr", "eval", "exec", "getattr", "globals", "locals", "setattr", "vars"}
)
_LOADERS = ("ctypes", "importlib", "pkgutil", "runpy", "site", "unittest")
_HARMLESS_LOADERS = ("importlib.metadata", "importlib.resources", "importlib.util.find_spec")


class Names:
    """What the names of one file mean so far. A name with no known meaning may be anything."""

    def __init__(self) -> None:
        """Only the built-in names are known."""
        self._known: dict[str, str | None] = dict.fromkeys({*vars(builtins), "__file__"} - _MAY_DO_ANYTHING)

    def learn(self, name: str, dotted: str | None = None) -> None:
        """``name`` is ``dotted`` of the standard library; without it, a value that was made with the library alone."""
        self._known[name] = dotted

    def forget(self, name: str) -> None:
        """``name`` may be anything."""
        self._known.pop(name, None)

    def is_known(self, name: str) -> bool:
        """Whether it is of the standard library, or made with it."""
        return name in self._known

    def dotted(self, node: ast.AST) -> str | None:
        """The full name of what ``node`` names, if that is in the standard library."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.dotted(node.value)
            return f"{owner}.{node.attr}" if owner is not None else None
        return None


def effect(statement: ast.stmt, names: Names) -> str | None:
    """What ``statement`` does that later imports may see, as in ``changes os.environ``; None if nothing. What is nested in it is
    left out. Learns the names that it binds.
    """
    judge = _Judge(names)
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        for decorator in statement.decorator_list:
            judge.call(decorator)
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        judge.visit_all([*statement.decorator_list, *_defaults(statement.args)])
    else:
        nested = (ast.stmt, ast.ExceptHandler, ast.match_case)
        judge.visit_all(part for part in ast.iter_child_nodes(statement) if not isinstance(part, nested))
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        names.forget(statement.name)
    judge.learn_bound()
    return judge.found


class _Judge(ast.NodeVisitor):
    """Looks at all that runs now. ``bound`` are the names it binds, to known things if ``all_known``."""

    def __init__(self, names: Names) -> None:
        self.found: str | None = None
        self.bound: set[str] = set()
        self.all_known = True
        self._names = names

    def visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def learn_bound(self) -> None:
        """What was bound so far is known, or may be anything."""
        for name in self.bound:
            if self.all_known:
                self._names.learn(name)
            else:
                self._names.forget(name)

    def visit_all_of_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self.visit_all(node.generators)
        self.learn_bound()
        self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_all_of_comprehension  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.all_known = False
        self.visit_all(_defaults(node.args))

    def visit_Name(self, node: ast.Name) -> None:
        self._change(self._guarded(node))
        if not isinstance(node.ctx, ast.Load):
            self.bound.add(node.id)
        elif not self._names.is_known(node.id):
            self.all_known = False

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _READS and self._guarded(node.value):
            return
        self._change(self._guarded(node))
        self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.ctx, ast.Load) and self._guarded(node.value)):
            self.visit(node.value)
        self.visit(node.slice)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.visit(node.left)
        for operator, value in zip(node.ops, node.comparators, strict=True):
            if not (isinstance(operator, (ast.In, ast.NotIn)) and self._guarded(value)):
                self.visit(value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)  # a change is worth more words than a doubt
        self.call(node.func)

    def call(self, function: ast.expr) -> None:
        """``function`` is called."""
        if not _is_harmless(function, self._names):
            self.found = self.found or f"calls {ast.unparse(function)[:80]}()"

    def _change(self, of: str | None) -> None:
        if of is not None:
            self.found = self.found or f"changes {of}"

    def _guarded(self, node: ast.AST) -> str | None:
        dotted = self._names.dotted(node) or ""
        last = node.attr if isinstance(node, ast.Attribute) else dotted.rpartition(".")[2]
        return _GUARDED.get(dotted) or _CHANGES.get(last)


def _is_harmless(function: ast.expr, names: Names) -> bool:
    dotted = names.dotted(function)
    if dotted is not None:
        return dotted.partition(".")[0] not in _LOADERS or dotted.startswith(_HARMLESS_LOADERS)
    if isinstance(function, ast.Name):
        return names.is_known(function.id)
    if isinstance(function, (ast.Attribute, ast.Subscript)):
        return _is_harmless(function.value, names)
    if isinstance(function, ast.Call):
        return _is_harmless(function.func, names)
    if isinstance(function, ast.BinOp):
        return _is_harmless(function.left, names) and _is_harmless(function.right, names)
    return isinstance(function, (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set))


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    return [*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)]
