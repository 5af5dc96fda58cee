"""How the package speaks: docstrings say what is done, and a class name means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import supervisor

ROOT = Path(supervisor.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))
DESCRIBES_NOTHING_DONE = re.compile(r"(What|Who|Whom|Whose|Whether|How)\b")
NO_VERB = re.compile(r"(The|A|An|All|Its|Those|Why|Where|When|Which|Until)\b")

Documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def docstrings() -> Iterator[tuple[str, ast.AST, str]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}", node, text


def is_property(node: ast.AST) -> bool:
    return any("property" in ast.unparse(each) for each in getattr(node, "decorator_list", ()))


def test_no_docstring_opens_with_a_question_word() -> None:
    assert [where for where, _, text in docstrings() if DESCRIBES_NOTHING_DONE.match(text)] == []


def test_docstrings_of_functions_open_with_a_verb() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [each for each in docstrings() if isinstance(each[1], functions) and not is_property(each[1])]
    assert len(found) > 1000
    assert [where for where, _, text in found if NO_VERB.match(text)] == []


def test_a_class_name_stands_once() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
