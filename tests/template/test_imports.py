"""What is read from a handler's source, which is never run."""

from __future__ import annotations

import re
import site
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from supervisor.template.preload import imports
from supervisor.wire.messages import HandlerSpec

# Installed here, whatever else is.
A, B = "msgspec", "pytest"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are is a place for packages, also in an environment that finds them by a ``.pth`` file."""
    monkeypatch.setattr(site, "USER_SITE", str(Path(msgspec.__file__).parents[1]))


@pytest.fixture
def read(tmp_path: Path, monkeypatch):
    (tmp_path / "changes_environ.py").write_text("import os\nos.environ['HF_HOME'] = '/models'\n")
    (tmp_path / "deep.py").write_text("import changes_environ\n")
    (tmp_path / "harmless.py").write_text(f"import {B}\nLIMIT = 3\ndef limit(): return LIMIT\n")
    (tmp_path / "calls_itself.py").write_text("def prepare(): ...\nprepare()\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.py").write_text("import os\nos.environ.pop('A', None)\n")
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))

    def read(text: str) -> imports.SourceImports:
        path = tmp_path / "handler.py"
        path.write_text(textwrap.dedent(text))
        return imports.read(HandlerSpec("file", str(path)))

    return read


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        (f"import {A}", [A]),
        (f"import {A}.json as j, {B}", [f"{A}.json", B]),
        (f"from {A} import json, Struct", [A]),
        (f"try:\n    import {A}\nexcept ImportError:\n    import {B}", [A]),
        (f"try:\n    pass\nfinally:\n    import {A}", [A]),
        (f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {A}\nelse:\n    import {B}", ["typing", B]),
        (f"if not TYPE_CHECKING:\n    import {A}", [A]),
        (f"import sys\nif sys.version_info < (3, 99):\n    import {A}", ["sys"]),
        (f"import warnings\nwith warnings.catch_warnings():\n    import {A}", ["warnings", A]),
        (f"if __name__ == '__main__':\n    import {A}", [A]),
        (f"def handler(job):\n    import {A}", []),
        (f"class Late:\n    import {A}", []),
        (f"from __future__ import annotations\nimport {A}", [A]),
        (f"import no_such_module, runpod_is_not_this\nimport {A}", [A]),
        (f"import supervisor.serverless\nimport {A}", [A]),
    ],
)
def test_what_is_imported_at_the_top(read, text: str, modules: list[str]) -> None:
    reading = read(text)
    assert [entry.module for entry in reading.imports] == modules
    assert reading.left_out == ()


def test_names_are_kept_since_asking_for_them_may_load_more(read) -> None:
    assert read(f"from {A} import Struct as S, json\nfrom {A} import *").imports == (
        imports.Import(A, ("Struct", "json")),
        imports.Import(A),
    )


HARMLESS = """
    import importlib.metadata, importlib.resources, importlib.util
    import logging, os, sys, time
    from importlib.util import find_spec
    from pathlib import Path
    from dataclasses import dataclass
    logger = logging.getLogger(__name__)
    logger.setLevel("INFO")
    HERE = Path(__file__).resolve().parent / "models"
    TOKEN = os.environ.get("TOKEN", "") or os.environ["HOME"]
    if "DEBUG" in os.environ and os.getenv("DEBUG") != "0":
        print("debug", sys.path[0], file=sys.stderr)
    @dataclass
    class Config:
        size: int = int(os.environ.get("SIZE", 3))
    def prepare():
        os.environ["LATER"] = "1"
    names = [name.upper() for name in ("a", "b")]
    sys.stdout.flush()
    FAST = find_spec("flash_attn") is not None or importlib.util.find_spec("xformers") is not None
    VERSION = importlib.metadata.version("msgspec"), importlib.resources.files("msgspec")
    import harmless
    logging.getLogger(harmless.NAME).setLevel("INFO")
"""


def test_what_changes_nothing_is_passed_over(read) -> None:
    reading = read(textwrap.dedent(HARMLESS) + f"import {A}")
    assert reading.imports[-1] == imports.Import(A)
    assert reading.left_out == ()


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("os.environ['A'] = '1'", "changes os.environ"),
        ("os.environ.setdefault('A', '1')", "changes os.environ"),
        ("os.environ.update(A='1')", "changes os.environ"),
        ("os.environ |= {'A': '1'}", "changes os.environ"),
        ("del os.environ['A']", "changes os.environ"),
        ("env = os.environ", "changes os.environ"),
        ("prepare(os.environ)", "changes os.environ"),
        ("from os import environ as e; e['A'] = '1'", "changes os.environ"),
        ("import os as o; o.putenv('A', '1')", "changes os.environ"),
        ("import posix as o; o.environ[b'A'] = b'1'", "changes os.environ"),
        ("if True:\n    os.environ['A'] = '1'", "changes os.environ"),
        ("try:\n    import no_such\nexcept ImportError:\n    os.environ['A'] = '1'", "changes os.environ"),
        ("class C:\n    os.environ['A'] = '1'", "changes os.environ"),
        ("def f(a=os.environ.pop('A')): ...", "changes os.environ"),
        ("sys.path.insert(0, 'src')", "changes sys.path"),
        ("sys.path = []", "changes sys.path"),
        ("sys.path[0:0] = ['src']", "changes sys.path"),
        ("from sys import path; path.append('src')", "changes sys.path"),
        ("sys.modules['a'] = None", "changes sys.modules"),
        ("os.chdir('/')", "changes the current folder"),
        ("from contextlib import chdir\nwith chdir('/'): ...", "changes the current folder"),
        ("def setup(): ...\nsetup()", "calls setup()"),
        (f"import {B}\n{B}.register_assert_rewrite('a')", f"calls {B}.register_assert_rewrite()"),
        (f"import {B}\n@{B}.fixture\ndef f(): ...", f"calls {B}.fixture()"),
        (f"try:\n    import {B}\nexcept ImportError:\n    {B} = None\n{B}.fixture()", f"calls {B}.fixture()"),
        (f"import {B}\nwith {B} as f:\n    f.open()", "calls f.open()"),
        ("def setup(): ...\nbegin = [setup][0]\nbegin()", "calls begin()"),
        ("begin = lambda: None\nbegin()", "calls begin()"),
        ("from os import *\nenviron['A'] = '1'", "changes os.environ"),
        ("import changes_environ, _pytest", "runs changes_environ.py, which changes os.environ"),
        ("exec('1')", "calls exec()"),
        ("import importlib; importlib.import_module('changes_environ')", "calls importlib.import_module()"),
        ("import importlib.util; load = importlib.util.module_from_spec\nload()", "calls load()"),
        ("def importlib(): ...\nimportlib.metadata.version('a')", "calls importlib.metadata.version()"),
        ("import changes_environ", "runs changes_environ.py, which changes os.environ"),
        ("import deep", "runs changes_environ.py, which changes os.environ"),
        ("from folder import inside", "runs inside.py, which changes os.environ"),
        ("from calls_itself import prepare", "runs calls_itself.py, which calls prepare()"),
    ],
)
def test_below_a_change_nothing_is_preloaded(read, statement: str, why: str) -> None:
    reading = read(f"import os, sys\nimport {A}\n{statement}\nimport {B}.no, _pytest\n")
    assert imports.Import(A) in reading.imports
    assert {"_pytest", f"{B}.no"}.isdisjoint(entry.module for entry in reading.imports)
    reason = dict(reading.left_out)["_pytest"]
    assert re.fullmatch(rf"imported below line \d+, which {re.escape(why)}", reason)


def test_a_file_beside_the_handler_shadows_a_package(read, tmp_path: Path) -> None:
    (tmp_path / f"{A}.py").write_text("")
    (tmp_path / B).mkdir()  # no package, so the installed one is found
    assert [entry.module for entry in read(f"import {A}, {B}").imports] == [B]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(("def (", "not Python"), ("\0", "not Python"), (None, "cannot be read")),
        (f"import {A}\nx = {' + '.join('1' * 2000)}", "recursion"),
    ],
)
def test_a_source_that_cannot_be_read_gives_nothing(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "handler.py"
    if text is not None:
        path.write_text(text)
    ((name, reason),) = imports.read(HandlerSpec("file", str(path))).left_out
    assert name == str(path)
    assert why in reason


class TestModules:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch) -> Path:
        package = tmp_path / "endpoint"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('this was run')")
        (package / "config.py").write_text("import os\nos.environ['A'] = '1'")
        (package / "main.py").write_text(f"import {A}\nfrom . import config\nimport {B}")
        (package / "__main__.py").write_text(f"import {A}\nif __name__ == '__main__':\n    import {B}")
        monkeypatch.chdir(tmp_path)
        return package

    def test_found_without_running_its_package(self) -> None:
        reading = imports.read(HandlerSpec("function", "endpoint.main", "handler"))
        assert reading.imports == (imports.Import(A),)
        assert reading.left_out == ((B, "imported below line 2, which runs config.py, which changes os.environ"),)
        assert "endpoint" not in sys.modules

    def test_a_package_runs_its_main(self) -> None:
        assert imports.read(HandlerSpec("module", "endpoint")).imports == (imports.Import(A), imports.Import(B))

    def test_what_its_package_changes_counts(self, package: Path) -> None:
        (package / "__init__.py").write_text("import sys\nsys.path.append('src')")
        reading = imports.read(HandlerSpec("module", "endpoint"))
        assert reading.imports == ()
        assert dict(reading.left_out)[A] == "in a package that changes sys.path"

    def test_one_that_is_missing(self) -> None:
        reading = imports.read(HandlerSpec("module", "endpoint.nothing"))
        assert reading.left_out == (("endpoint.nothing", "its source was not found"),)
