"""``bin/supervise`` as a person meets it: what is asked for reaches the settings; what is wrong is said once, with a code."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.__main__ import name_clash
from supervisor.cli import app
from supervisor.cli.serving.shutdown import Fault, serving
from supervisor.errors import ClientError, GpuError, StartError, StoreError, SuperviseError, UsageError

ROOT = Path(__file__).parents[2]
Supervise = Callable[..., subprocess.CompletedProcess[str]]

#: The command line with a stand-in for what serves: it shows the settings it got, or raises what its first argument says.
WITH_STAND_IN = """
import builtins, sys, types
sys.path.insert(0, sys.argv[1])
from supervisor import errors
from supervisor.cli.serving.shutdown import Fault
def serve(settings):
    if settings.handler_args[:1] == ("raise",):
        name, *said = settings.handler_args[1:]
        raise {**vars(builtins), **vars(errors), "Fault": Fault}[name](*said or ["what happened"])
    names = ("handler", "handler_args", "port", "refresh_worker", "api_key", "no_auth")
    print(*(f"{name}={getattr(settings, name)}" for name in names))
    print(*(name for name in ("rich", "uvicorn", "pynvml") if name in sys.modules))
    return 7
def stand_in(name, **parts):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(parts)
stand_in("supervisor.cli.serving.run", run_to_end=lambda kind, settings: serve(settings))
stand_in("supervisor.cli.serving.serve", Serving=None, TestJob=None)
sys.argv = ["supervise", *sys.argv[2:]]
from supervisor.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def with_stand_in(folder: Path) -> Supervise:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITH_STAND_IN, str(ROOT), *arguments]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )

    return run


# --- wrong usage, through the real program --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["handlr.py"], "supervise: handlr.py: no such file; did you mean handler.py?"),
        (["handler.py", "--prot", "1"], "supervise: --prot: no such option; did you mean --port?"),
        (["handler.py", "--port", "x"], "supervise: --port: 'x' is not a number; give a whole number from 0 to 65535"),
        (["handler.py", "--host", "0.0.0.0"], "--api-key"),
        (["srve", "handler.py"], "supervise: srve: no such command, file or module; did you mean serve?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(supervise: Supervise, arguments: list[str], message: str) -> None:
    done = supervise(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_arguments_it_shows_the_help(supervise: Supervise) -> None:
    done = supervise()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: supervise HANDLER")
    assert done.stdout == ""


def test_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-m", "supervisor", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout[:10]) == (0, "supervise ")


def test_a_reader_of_the_help_that_leaves(supervise: Supervise, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "bin/supervise"), "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(writing)
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_it_serves(folder: Path) -> None:
    os.mkfifo("supervise.toml")
    command = [sys.executable, str(ROOT / "bin/supervise"), "handler.py", "--config", "supervise.toml"]
    # Started in the background of a script, these tests run with SIGINT ignored, and that is inherited.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:  # noqa: PLW1509 - one thread
        with open("supervise.toml", "wb"):  # opens once the program reads it, and it waits for more
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


# --- the rest of the mistakes, in this process ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpo"], "tpo: no such command, file or module; did you mean top?"),
        (["server"], "server: no such command, file or module; did you mean serve?"),
        (["serve"], "no handler: name a file or a module"),
        (
            ["serve", "handler.py", "--refresh-wroker"],
            "--refresh-wroker: no such option; did you mean --refresh-worker?",
        ),
        (["handler.py", "--xyzzy"], "--xyzzy: no such option\n"),
        (["--url", "http://there", "jobs"], "--url: goes after a command, as in supervise jobs --url URL\n"),
        (["handler.py", "--port"], "option '--port' requires an argument"),
        (["handler.py", "a", "b"], "unexpected argument 'a'; put the handler's arguments after --: "),
        (["handler.py", "--gpus", "atuo"], "did you mean auto?"),
        (["handler.py", "--log-format", "jsn"], "did you mean json?"),
        (["handler.py", "--config", "none.toml"], "--config: cannot read"),
        (["handler.py", "--api-key-file", "none.txt"], "--api-key-file: cannot read"),
        (["--", "handler.py"], "no handler"),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert app.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("supervise: ")
    assert said.out == ""


def test_the_environment_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUPERVISE_MAX_BODY", "huge")
    assert app.main(["handler.py"]) == 2
    assert "SUPERVISE_MAX_BODY: invalid size 'huge'" in capsys.readouterr().err


# --- what is right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["handler.py"], "handler=handler.py handler_args=() port=8900 refresh_worker=False api_key=() no_auth=False"),
        (["--port", "1", "handler.py"], "handler=handler.py handler_args=() port=1"),
        (["serve", "handler.py", "--port=1"], "handler=handler.py handler_args=() port=1"),
        (["serve", "serve"], "handler=serve"),
        (["srve"], "handler=srve"),
        (["handler.py", "--", "--port", "2", "--", "x"], "handler_args=('--port', '2', '--', 'x') port=8900"),
        (["handler.py", "--refresh-worker"], "refresh_worker=True"),
        (["handler.py", "--refresh-worker", "--no-refresh-worker"], "refresh_worker=False"),
        (["handler.py", "--no-auth"], "no_auth=True"),
        (["handler.py", "--no-auth", "--auth"], "no_auth=False"),
        (["handler.py", "--api-key", "a", "--api-key", "b"], "api_key=('***', '***')"),
    ],
)
def test_what_is_asked_for_is_what_is_served(
    folder: Path, with_stand_in: Supervise, arguments: list[str], settings: str
) -> None:
    (folder / "srve.py").touch()  # near the name of a command, and a handler of the user
    done = with_stand_in(*arguments)
    assert settings in done.stdout
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines()[1] == "", "what serving needs not was imported"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("StartError", 3, "supervise: what happened\n"),
        ("LockedError", 2, "supervise: what happened\n"),
        ("OSError", 2, "supervise: the system refused: what happened\n"),
        ("KeyboardInterrupt", 130, ""),
    ],
)
def test_errors_while_it_serves(with_stand_in: Supervise, error: str, code: int, said: str) -> None:
    done = with_stand_in("handler.py", "--", "raise", error)
    assert (done.returncode, done.stderr.strip("\n"), done.stdout) == (code, said.strip("\n"), "")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (["StartError"], 3, "what happened"),
        (["OSError"], 2, "the system refused: what happened"),
        (["RuntimeError", "can't start new thread"], 2, "the system refused: no thread can be started"),
    ],
)
def test_the_last_error_is_a_line_like_the_others(
    with_stand_in: Supervise, raised: list[str], code: int, said: str
) -> None:
    done = with_stand_in("handler.py", "--log-format", "json", "--", "raise", *raised)
    line = json.loads(done.stderr)
    assert done.returncode == code
    assert line["text"].startswith(said)
    assert (line["event"], sorted(line)) == ("error", ["event", "text", "ts"])


def test_what_is_wrong_with_the_options_is_a_line_like_the_others(supervise: Supervise) -> None:
    done = supervise("handlr.py", "--log-format", "json")
    assert (done.returncode, json.loads(done.stderr)["event"]) == (2, "error")


def test_a_thread_that_cannot_be_started_is_a_refusal(with_stand_in: Supervise) -> None:
    done = with_stand_in("handler.py", "--", "raise", "RuntimeError", "can't start new thread")
    assert done.returncode == 2
    assert done.stderr.startswith("supervise: the system refused: no thread can be started")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", ["Fault", "RuntimeError", "ValueError"])
def test_a_fault_of_ours_shows_where_it_was(with_stand_in: Supervise, error: str) -> None:
    done = with_stand_in("handler.py", "--", "raise", error)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith(f"{error}: what happened")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("can't start new thread")])
def test_what_the_system_refuses_while_it_serves_is_a_fault(error: Exception) -> None:
    with pytest.raises(Fault) as failure, serving():
        raise error
    assert failure.value.__cause__ is error


def test_a_store_that_fails_while_it_serves_is_worth_another_try() -> None:
    with pytest.raises(SuperviseError, match="its disk cannot be read") as failure, serving():
        raise StoreError("jobs.db: its disk cannot be read")
    assert app.exit_code(failure.value) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError(), 2),
        (GpuError(), 2),
        (StoreError(), 2),
        (StartError(), 3),
        (ClientError(), 1),
        (SuperviseError(), 1),
    ],
)
def test_exit_codes(error: SuperviseError, code: int) -> None:
    assert app.exit_code(error) == code


# --- the import name that supervisord has too ---------------------------------------------------------------------------------


def test_supervisord_in_the_same_folder_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "supervisord.py").touch()
    warning = name_clash(tmp_path, [])
    assert warning is not None
    assert str(tmp_path) in warning
    assert "virtual environment of its own" in warning


@pytest.mark.parametrize("name", ["supervisor-4.2.5.dist-info", "supervisor-4.2.5-py3.11.egg-info"])
def test_supervisord_elsewhere_on_the_path_is_noticed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    warning = name_clash(ROOT / "supervisor", ["", "/does/not/exist", str(tmp_path)])
    assert warning is not None
    assert name in warning


def test_others_are_not_taken_for_it(tmp_path: Path) -> None:
    for name in ("supervisor_quick-0.1.4.dist-info", "supervise_gpu-0.1.0.dist-info"):
        (tmp_path / name).mkdir()
    assert name_clash(ROOT / "supervisor", [str(tmp_path)]) is None


def test_the_clash_is_said_once_and_ends_the_program_only_when_it_broke_it(tmp_path: Path) -> None:
    (tmp_path / "supervisor").symlink_to(ROOT / "supervisor")
    (tmp_path / "supervisor-4.2.5.dist-info").mkdir()
    command = [sys.executable, "-m", "supervisor", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("supervisord (supervisor-4.2.5.dist-info)") == 1

    (tmp_path / "supervisor").unlink()
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor/__init__.py").touch()
    (tmp_path / "supervisor/supervisord.py").touch()
    (tmp_path / "supervisor/__main__.py").symlink_to(ROOT / "supervisor/__main__.py")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "each overwrites files of the other" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin/supervise"), "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr == "supervise: the package click is missing; install what supervise needs: pip install .\n"
