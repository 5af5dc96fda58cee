"""HANDLER: a file, a module or a function, told apart without importing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config.handler import parse_handler
from supervisor.errors import HandlerError
from supervisor.wire.messages import HandlerSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("package.module", HandlerSpec("module", "package.module")),
        ("module", HandlerSpec("module", "module")),
        ("package.module:function", HandlerSpec("function", "package.module", "function")),
        ("module:Class.method", HandlerSpec("function", "module", "Class.method")),
        ("módulo", HandlerSpec("module", "módulo")),
        ("m" * 5000, HandlerSpec("module", "m" * 5000)),
    ],
)
def test_modules_and_functions(folder: Path, text: str, spec: HandlerSpec) -> None:
    assert parse_handler(text) == spec


@pytest.mark.parametrize(
    "text", ["handler.py", "./handler.py", "sub/inner.py", "sub/script", "script", "with space.py"]
)
def test_files_become_absolute(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    for name in ("sub/inner.py", "sub/script", "script", "with space.py"):
        (folder / name).touch()
    spec = parse_handler(text, ("--fast",))
    assert spec == HandlerSpec("file", str(folder / text), None, ("--fast",))


def test_a_file_is_not_resolved_through_its_link(folder: Path) -> None:
    (folder / "link.py").symlink_to("handler.py")
    assert parse_handler("link.py").target == str(folder / "link.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("handlr.py", "handlr.py: no such file; did you mean handler.py?"),
        ("./nowhere.py", "./nowhere.py: no such file"),
        ("hander/x.py", "hander/x.py: no such file: there is no folder hander; did you mean handlers?"),
        ("handlers/quick.py", "handlers/quick.py: no such file; did you mean handlers/quick_start.py?"),
        ("handlers/", "handlers/: a folder; name the file in it: handlers/quick_start.py"),
        ("handler.py:run", "handler.py:run: a file is served whole; write handler.py, or handler:run"),
        ("handlers/a.py:run", "write handlers/a.py, or handlers.a:run for that function alone"),
        ("my-handler", "my-handler: no such file, and not a module's name; did you mean my-handler.py?"),
        ("module:", "not a module's name"),
        ("a..b", "not a module's name"),
        ("a:b:c", "not a module's name"),
        ("-" * 5000, "not a module's name"),
    ],
)
def test_what_is_refused_and_how(folder: Path, text: str, message: str) -> None:
    (folder / "handlers").mkdir()
    (folder / "handlers/quick_start.py").touch()
    (folder / "my-handler.py").touch()
    with pytest.raises(HandlerError) as refusal:
        parse_handler(text)
    assert message in str(refusal.value)


def test_nothing_is_imported(folder: Path) -> None:
    (folder / "loud.py").write_text("raise SystemExit('imported')")
    assert parse_handler("loud").kind == "module"
    assert parse_handler("loud:run").kind == "function"
