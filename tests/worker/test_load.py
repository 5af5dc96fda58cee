"""How a handler is found and loaded: as Python would run it, and what is said when it cannot be."""

from __future__ import annotations

import json

import pytest

from supervisor.wire import messages as wire
from supervisor.worker.main import EXIT_LOAD_FAILED

START = "from supervisor import serverless\n"
TELL = """
def handler(job):
    import sys
    main = sys.modules["__main__"]
    return {
        "argv": sys.argv, "path": sys.path[0], "file": getattr(main, "__file__", None), "main": main.__name__,
        "spec": main.__spec__ and main.__spec__.name, "package": main.__package__, "is_main": handler.__globals__ is vars(main),
    }
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TELL, id="never-started"),
        pytest.param(
            START + TELL + "serverless.start({'handler': handler})\nraise RuntimeError('start returned')",
            id="at-import",
        ),
        pytest.param(
            START + TELL + "if __name__ == '__main__':\n    serverless.start({'handler': handler})", id="under-main"
        ),
        pytest.param(
            START + TELL + "def run():\n    serverless.start({'handler': handler})\nrun()", id="in-a-function"
        ),
    ],
)
def test_a_file_runs_as_python_would_run_it(launch, write, tmp_path, text):
    path = write("folder/served.py", text)
    child = launch("file", path, argv=("--flag", "1"))
    child.ready()
    assert json.loads(child.job().output) == {
        "argv": [str(path), "--flag", "1"],
        "path": str(tmp_path / "folder"),
        "file": str(path),
        "main": "__main__",
        "spec": None,
        "package": None,
        "is_main": True,
    }
    assert child.finish() == 0


def test_a_module_runs_as_python_m_would_run_it(launch, write, tmp_path):
    path = write("package/served.py", TELL)
    write("package/__init__.py", "")
    child = launch("module", "package.served", argv=("x",))
    child.ready()
    assert json.loads(child.job().output) == {
        "argv": [str(path), "x"],
        "path": str(tmp_path),
        "file": str(path),
        "main": "__main__",
        "spec": "package.served",
        "package": "package",
        "is_main": True,
    }


def test_a_package_runs_its_main(launch, write):
    write("package/__init__.py", "import sys; argv0 = sys.argv[0]")
    write("package/__main__.py", "from package import argv0\nfrom .other import handler")
    write(
        "package/other.py",
        "def handler(job):\n    import __main__\n    return [__main__.__spec__.name, __main__.argv0]",
    )
    child = launch("module", "package")
    child.ready()
    assert json.loads(child.job().output) == ["package.__main__", "-m"]


@pytest.mark.parametrize("attribute", ["serve", "Group.serve", None])
def test_a_function_is_imported_plainly(launch, write, attribute):
    write(
        "package/functions.py",
        """
        def serve(job):
            return [__name__, job["input"]]
        class Group:
            serve = staticmethod(serve)
        handler = serve
        if __name__ == "__main__":
            raise RuntimeError("run as the main module")
        """,
    )
    child = launch("function", "package.functions", attribute)
    child.ready()
    assert json.loads(child.job(5).output) == ["package.functions", 5]


def test_a_named_function_is_served_with_the_config_that_its_module_starts(launch, write):
    write(
        "started.py",
        START + "def asked(job): return 'asked'\ndef handler(job): return 'started'\n"
        "serverless.start({'handler': handler, 'refresh_worker': True})\n",
    )
    child = launch("function", "started", "asked")
    assert child.ready().refresh_worker
    assert child.job().output == b'"asked"'


def test_what_lies_beside_the_file_can_be_imported_and_future_flags_are_its_own(launch, write):
    write("folder/beside.py", "VALUE = 7")
    path = write(
        "folder/served.py",
        "from beside import VALUE\ndef handler(job, x: int = 0):\n    return [VALUE, str(handler.__annotations__)]",
    )
    child = launch("file", path)
    child.ready()
    assert json.loads(child.job().output) == [7, "{'x': <class 'int'>}"]


def test_a_link_to_a_file_imports_from_where_it_points(launch, write, tmp_path):
    write("real/beside.py", "VALUE = 7")
    path = write("real/served.py", "from beside import VALUE\ndef handler(job): return VALUE")
    (tmp_path / "link.py").symlink_to(path)
    child = launch("file", tmp_path / "link.py")
    child.ready()
    assert child.job().output == b"7"


FAILING = {
    "raises": (
        "raised",
        "def f():\n    raise ValueError('boom')\nf()",
        "raised while it was loaded: ValueError: boom",
        "raise ValueError",
    ),
    "syntax": ("raised", "def handler(job:\n", "SyntaxError: '(' was never closed", "def handler(job:"),
    "null": ("raised", "x = 1\0", "raised while it was loaded", ""),
    "exits": ("raised", "import sys\nsys.exit(3)", "called sys.exit(3) while it was loaded", "sys.exit(3)"),
    "imports": ("raised", "import no_such_thing", "No module named 'no_such_thing'", "import no_such_thing"),
    "surrogate": ("raised", "raise ValueError('\\ud800')", "ValueError: \\ud800", "raise ValueError"),
    "cause": (
        "raised",
        "try:\n    1/0\nexcept Exception as e:\n    raise KeyError('k') from e",
        "KeyError: 'k'",
        "ZeroDivisionError",
    ),
    "no handler": ("no_handler", "x = 1", "calls no start() and has no function named handler", ""),
    "not callable": ("no_handler", "handler = 1", "calls no start() and has no function named handler", ""),
    "no dict": ("bad_config", START + "serverless.start([])", "start() takes a dict, not list", "serverless.start([])"),
    "no key": ("bad_config", START + "serverless.start({})", "the key 'handler'", "serverless.start({})"),
    "bad key": (
        "bad_config",
        START + "serverless.start({'handler': 3})",
        "'handler' must be callable, not int",
        "serverless.start",
    ),
    "bad modifier": (
        "bad_config",
        START + "serverless.start({'handler': print, 'concurrency_modifier': 3})",
        "'concurrency_modifier' must be callable, not int",
        "serverless.start",
    ),
    "in a loop": (
        "raised",
        START + "import asyncio\nasync def main():\n    serverless.start({'handler': print})\nasyncio.run(main())",
        "start() cannot be called inside a running event loop",
        "asyncio.run(main())",
    ),
    "fitness": (
        "fitness",
        START
        + "@serverless.register_fitness_check\ndef gpu_is_there():\n    raise OSError('no gpu')\ndef handler(job): pass",
        "the fitness check gpu_is_there raised: OSError: no gpu",
        "raise OSError('no gpu')",
    ),
    "async fitness": (
        "fitness",
        START
        + "@serverless.register_fitness_check\nasync def check():\n    raise SystemExit(1)\ndef handler(job): pass",
        "the fitness check check raised: SystemExit: 1",
        "raise SystemExit(1)",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_cannot_be_served_says_why(launch, write, name):
    reason, text, message, line = FAILING[name]
    child = launch("file", write("served.py", text))
    failed = child.receive()
    assert isinstance(failed, wire.LoadFailed)
    assert failed.reason == reason
    assert message in failed.message
    assert line in failed.traceback
    assert "/supervisor/" not in failed.traceback
    assert "frozen" not in failed.traceback
    assert child.wait() == EXIT_LOAD_FAILED


@pytest.mark.parametrize(
    ("kind", "target", "attribute", "reason", "message"),
    [
        (
            "file",
            "/no/such/file.py",
            None,
            "not_found",
            "cannot read the handler /no/such/file.py: No such file or directory",
        ),
        ("file", "/", None, "not_found", "Is a directory"),
        ("module", "no_such_module", None, "not_found", "there is no Python module no_such_module"),
        ("module", "there.none", None, "not_found", "there is no Python module there.none"),
        ("module", "folder", None, "not_found", "there is no Python module folder.__main__"),
        ("module", "thee", None, "not_found", "there is no Python module thee; did you mean there?"),
        (
            "module",
            "folder.insid",
            None,
            "not_found",
            "there is no Python module folder.insid; did you mean folder.inside?",
        ),
        (
            "function",
            "folder.insid",
            "f",
            "not_found",
            "there is no Python module folder.insid; did you mean folder.inside?",
        ),
        ("module", "broken.served", None, "raised", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("function", "no_such_module", "f", "not_found", "there is no Python module no_such_module"),
        ("function", "there", "f", "no_handler", "there has no f"),
        ("function", "there", "VALUE", "no_handler", "there:VALUE is no function but int"),
        ("function", "broken.served", "f", "raised", "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_what_is_not_there_is_told_apart_from_what_is_broken(launch, write, kind, target, attribute, reason, message):
    write("there.py", "VALUE = 1")
    write("folder/__init__.py", "")
    write("folder/inside.py", "")
    write("broken/__init__.py", "import no_such_thing")
    child = launch(kind, target, attribute)
    failed = child.receive()
    assert failed.reason == reason
    assert message in failed.message
    assert "frozen" not in failed.traceback
    assert child.wait() == EXIT_LOAD_FAILED


def test_unknown_keys_of_the_config_warn_once(launch, write):
    child = launch(
        "file", write("served.py", START + "serverless.start({'handler': print, 'one': 1, 2: 2, 'refresh_worker': 1})")
    )
    warning = child.receive()
    assert warning == wire.Warning("unknown keys in the config are ignored: one, 2")
    assert child.ready().refresh_worker


def test_fitness_checks_run_in_order_before_ready(launch, write):
    text = """
    import asyncio
    from supervisor import serverless
    seen = []
    serverless.register_fitness_check(lambda: seen.append(1))
    @serverless.register_fitness_check
    async def second():
        await asyncio.sleep(0)
        seen.append(2)
    serverless.start({"handler": lambda job: seen})
    """
    child = launch("file", write("served.py", text))
    child.ready()
    assert child.job().output == b"[1,2]"


@pytest.mark.parametrize(
    ("setup", "same"),
    [
        pytest.param("seen = asyncio.get_event_loop()", True, id="ours-is-there-at-import"),
        pytest.param("asyncio.run(asyncio.sleep(0))\nseen = None", False, id="asyncio-run-left-none"),
        pytest.param("asyncio.get_event_loop().close()\nseen = None", False, id="ours-was-closed"),
        pytest.param("seen = asyncio.new_event_loop()\nasyncio.set_event_loop(seen)", True, id="their-own-is-kept"),
        pytest.param(
            "seen = asyncio.new_event_loop()\nasyncio.set_event_loop(seen)\nseen.close()",
            False,
            id="their-own-was-closed",
        ),
    ],
)
def test_one_event_loop_lives_as_long_as_the_worker(serve, setup, same):
    child = serve(
        f"import asyncio\n{setup}\nloops = []\n"
        "async def handler(job):\n"
        "    loops.append(asyncio.get_running_loop())\n"
        "    return [seen is loops[0], all(loop is loops[0] for loop in loops), len(loops)]\n"
    )
    child.job()
    assert json.loads(child.job().output) == [same, True, 2]
