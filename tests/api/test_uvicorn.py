"""uvicorn's protocol class is extended beyond its documented face: each name that is used there must be there."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from supervisor.api.http import connection

TREE = ast.parse(Path(connection.__file__).read_text("utf-8"))


def names_of(tree: ast.AST, *, stored: bool) -> set[str]:
    """What is taken of ``self``, or given to it."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and isinstance(node.ctx, ast.Store) is stored
    }


def of_uvicorn() -> Iterator[str]:
    """The names that our class takes of its own and does not make, and those that it overrides."""
    ours = next(node for node in TREE.body if isinstance(node, ast.ClassDef) and node.name == "Connection")
    methods = {node.name for node in ours.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    made = names_of(next(node for node in ours.body if getattr(node, "name", "") == "__init__"), stored=True)
    yield from sorted(names_of(ours, stored=False) - methods - made)
    yield from sorted(name for name in methods if name.startswith("on_") or name in dir(asyncio.Protocol))


@pytest.mark.parametrize("name", [*of_uvicorn()])
def test_uvicorn_has_what_is_used_of_it(name: str) -> None:
    source = ast.parse(Path(inspect.getfile(HttpToolsProtocol)).read_text("utf-8"))
    assert name in {*dir(HttpToolsProtocol), *names_of(source, stored=True)}


def test_there_are_such_names() -> None:
    assert {"transport", "cycle", "on_headers_complete"} <= set(of_uvicorn())
