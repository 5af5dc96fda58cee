"""Whole batches, with real processes: results, pipes, kills, signals, and what is refused."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.cli import app

if TYPE_CHECKING:
    from conftest import Batches

STORE = "out.jsonl.supervise.db"
FILES = ("--input", "in.jsonl", "--output", "out.jsonl")


def error_type(error: str) -> str:
    return str(json.loads(error)["error_type"])


def test_every_line_has_its_answer(batch: Batches) -> None:
    path = batch.write(
        {"n": 1},
        b"",
        {"input": {"n": 3}, "id": "mine"},
        "raise",
        b"nonsense",
        b'{"input":"\xc3\xa9","id":"mine"}\r',
        "exit",
        b'{"input":1,"id":"no spaces"}',
        b"x" * 2000,
        None,
    )
    path.write_bytes(path.read_bytes() + b'["no line end"]')
    run = batch(*FILES, "--max-body", "1000")
    results = batch.results()
    assert run.returncode == 1
    assert run.stdout == b""
    assert b"10 lines done, 5 failed" in run.stderr
    assert b"line 5 FAILED: the line is not JSON: invalid character at byte 1" in run.stderr
    assert [result["line"] for result in results] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    by_line = {result["line"]: result for result in results}
    completed = {
        number: result["output"]["got"] for number, result in by_line.items() if result["status"] == "COMPLETED"
    }
    assert completed == {1: {"n": 1}, 3: {"n": 3}, 6: "é", 10: None, 11: ["no line end"]}
    assert by_line[3]["id"] == by_line[3]["output"]["id"] == by_line[6]["id"] == "mine"
    assert by_line[1]["id"] == by_line[1]["output"]["id"] == "line-1-0af73c42"
    assert set(by_line[1]) == {"id", "status", "delayTime", "executionTime", "workerId", "output", "retries", "line"}
    assert error_type(by_line[4]["error"]) == "<class 'ValueError'>"
    assert "exited with code 7" in by_line[7]["error"]
    assert by_line[8]["error"].startswith("id: expected 1 to 128 letters")
    assert by_line[9]["error"] == "the line is 2001 bytes long, more than --max-body allows (1000)"
    assert batch.files() == {"in.jsonl", "out.jsonl"}, "the store goes with the end of the batch"

    calls = batch.calls()
    again = batch(*FILES, "--max-body", "1000")
    assert again.returncode == 1
    assert b"10 lines are answered already" in again.stderr
    assert batch.calls() == calls
    assert batch.results() == results


def test_a_store_behind_a_link_goes_and_the_link_stays(batch: Batches) -> None:
    (batch.folder / STORE).symlink_to("tmp/jobs.db")
    batch.write(1)
    assert batch(*FILES).returncode == 0
    assert (batch.folder / STORE).is_symlink()
    assert not list(batch.temporary.iterdir())


@pytest.mark.parametrize(("text", "lines"), [(b"", 0), (b"\n\r\n \n", 0), (b"1", 1), (b"1\n\n", 1)])
def test_small_files(batch: Batches, text: bytes, lines: int) -> None:
    (batch.folder / "in.jsonl").write_bytes(text)
    assert batch(*FILES).returncode == 0
    assert len(batch.results()) == lines
    assert batch.files() == {"in.jsonl", "out.jsonl"}


def test_in_a_shell_pipe(batch: Batches) -> None:
    command = " ".join(batch.command("--input", "-", "--workers", 2))
    script = f"seq 1 500 | {command} | grep -c COMPLETED; echo ${{PIPESTATUS[*]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=batch.folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.split("\n")[:2] == ["500", "0 0 0"]
    assert "500 lines done, 0 failed" in done.stderr
    assert not list(batch.temporary.iterdir())


def test_standard_output_can_be_a_file(batch: Batches) -> None:
    with (batch.folder / "out.jsonl").open("wb") as out:
        run = batch.start("--input", "-", "--output", "-", stdin=subprocess.PIPE, stdout=out)
        run.communicate(b"1\n2\n", timeout=30)
    assert run.returncode == 0
    assert [result["output"]["got"] for result in batch.results()] == [1, 2]


def test_a_reader_that_leaves_ends_it(batch: Batches) -> None:
    run = batch.start("--input", "-", stdin=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    run.stdout = None
    _, err = run.communicate(b"1\n2\n", timeout=30)
    assert run.returncode == 1
    assert b"cannot be written: Broken pipe" in err


def test_a_slow_reader_holds_back_the_producer(batch: Batches) -> None:
    run = batch.start("--input", "-", "--workers", 2, stdin=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    line, offered, taken = json.dumps("x" * 100_000).encode() + b"\n", 100_000_000, 0
    os.set_blocking(run.stdin.fileno(), False)
    os.set_blocking(run.stdout.fileno(), False)
    while taken < len(line):
        select.select([], [run.stdin], [])
        taken += os.write(run.stdin.fileno(), line[taken:][:4096])
    select.select([run.stdout], [], [])  # the first result is there, and nobody reads it
    while taken < offered and select.select([], [run.stdin], [], 1.5)[1]:
        taken += os.write(run.stdin.fileno(), line[taken % len(line) :][:65536])
    assert taken < 60_000_000, "nothing held it back"
    os.set_blocking(run.stdin.fileno(), True)
    os.set_blocking(run.stdout.fileno(), True)
    out, _ = run.communicate(line[taken % len(line) :], timeout=30)
    assert run.returncode == 0
    assert len(out.splitlines()) == -(-taken // len(line)) + (taken % len(line) == 0)


def test_killed_half_way_it_does_only_what_is_missing(batch: Batches, gate: Path) -> None:
    held = {"gate": str(gate)}
    batch.write(*range(1, 10), {**held, "n": 10}, *range(11, 20), {**held, "n": 20}, *range(21, 101))
    run = batch.start(*FILES, "--workers", 2)
    out = batch.folder / "out.jsonl"
    batch.until(lambda: len(batch.calls()) == 20 and out.exists() and out.read_bytes().count(b"\n") == 18)
    run.kill()
    run.wait()
    with out.open("ab") as file:
        file.write(b'{"id":"line-21-0000')
    assert STORE in batch.files()
    gate.unlink()

    again = batch(*FILES, "--workers", 2)
    results, calls = batch.results(), batch.calls()
    assert again.returncode == 0, again.stderr
    assert b"18 lines are answered already" in again.stderr
    assert [result["line"] for result in results] == list(range(1, 101))
    assert {result["status"] for result in results} == {"COMPLETED"}
    assert [result["retries"] for result in results] == [int(n in (10, 20)) for n in range(1, 101)]
    twice = {call for call in calls if calls.count(call) > 1}
    assert twice == {results[9]["id"], results[19]["id"]}
    assert len(calls) == 102
    assert batch.files() == {"in.jsonl", "out.jsonl"}


def test_another_handler_does_not_go_on_with_it_unasked(batch: Batches, gate: Path) -> None:
    batch.write(1, {"gate": str(gate)}, 3)
    run = batch.start(*FILES, "--workers", 1)
    out = batch.folder / "out.jsonl"
    batch.until(lambda: len(batch.calls()) == 2 and out.exists() and out.read_bytes().count(b"\n") == 1)
    run.kill()
    run.wait()
    gate.unlink()
    before = out.read_bytes()

    (batch.folder / "tmp/echo.py").write_text((batch.folder / "echo.py").read_text().replace("got", "had"))
    batch.handler = "tmp/echo.py"
    refused = batch(*FILES, "--endpoint-id", "echo")  # which names no store here
    assert refused.returncode == 2
    said = refused.stderr.decode()
    for word in (STORE, f"{batch.folder}/echo.py", f"{batch.folder}/tmp/echo.py", "--output", "--adopt"):
        assert word in said
    assert out.read_bytes() == before
    assert len(batch.calls()) == 2

    adopted = batch(*FILES, "--adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert b"2 unfinished jobs (--adopt)" in adopted.stderr
    assert ["had" in result["output"] for result in batch.results()] == [False, True, True]
    assert batch.files() == {"in.jsonl", "out.jsonl"}


def test_what_ended_and_was_not_written_is_not_run_again(batch: Batches, gate: Path) -> None:
    batch.write(1, 2, {"gate": str(gate)}, 4)
    run = batch.start(*FILES)
    out = batch.folder / "out.jsonl"
    batch.until(lambda: len(batch.calls()) == 3 and out.exists() and out.read_bytes().count(b"\n") == 2)
    run.kill()
    run.wait()
    first = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(first[0] + first[1][:-10])  # the kill came in the middle of the second line
    gate.unlink()
    assert batch(*FILES).returncode == 0
    assert [result["line"] for result in batch.results()] == [1, 2, 3, 4]
    names = [call.split("-")[1] for call in batch.calls()]
    # Line 2 was not yet forgotten by the store when the kill came: forgetting rides on a later commit.
    assert sorted(names) in (["1", "2", "3", "3", "4"], ["1", "2", "2", "3", "3", "4"])
    assert out.read_bytes().startswith(first[0])


def test_failed_lines_taken_out_of_the_output_run_again(batch: Batches) -> None:
    batch.write(1, "raise", 3)
    assert batch(*FILES).returncode == 1
    out = batch.folder / "out.jsonl"
    kept = [line for line in out.read_bytes().splitlines(keepends=True) if b"FAILED" not in line]
    out.write_bytes(b"".join(kept))
    batch.write(1, "mended", 3, 4)
    assert batch(*FILES).returncode == 0
    assert [result["output"]["got"] for result in batch.results()] == [1, "mended", 3, 4]
    assert len(batch.calls()) == 5


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_lines_end(batch: Batches, gate: Path, signum: int) -> None:
    batch.write({"gate": str(gate)}, *range(2, 300))
    run = batch.start(*FILES, "--log-format", "json")
    assert run.stderr is not None
    with gate.open("wb") as opened:
        run.send_signal(signum)
        for line in run.stderr:
            if json.loads(line)["event"] == "draining":
                break
        opened.write(b"go on")
    last = json.loads(run.stderr.read().splitlines()[-1])
    assert run.wait(30) == 1
    assert (last["event"], last["lines"], last["finished"]) == ("batch", 1, False)
    assert last["text"].endswith("; the same command does the rest")
    assert [result["line"] for result in batch.results()] == [1]
    gate.unlink()
    assert batch(*FILES).returncode == 0
    assert len(batch.results()) == 299
    assert len(batch.calls()) == 299


def test_a_second_interrupt_does_not_wait(batch: Batches, gate: Path) -> None:
    batch.write({"gate": str(gate)}, 2)
    run = batch.start(*FILES, "--log-format", "json")
    assert run.stderr is not None
    with gate.open("wb"):
        run.send_signal(signal.SIGINT)
        for line in run.stderr:
            if json.loads(line)["event"] == "draining":
                run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    assert batch.results() == []


def test_the_bar_is_shown_on_a_terminal(batch: Batches, gate: Path) -> None:
    batch.write(1, {"gate": str(gate)})
    ours, theirs = pty.openpty()
    run = batch.start(*FILES, stderr=theirs)
    os.close(theirs)
    shown = b""
    with gate.open("wb"):
        while b"1 done" not in shown:
            shown += os.read(ours, 4096)
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:  # how a terminal says that nobody has it open any more
        pass
    os.close(ours)
    assert run.wait(30) == 0
    assert b"\r\x1b[2K" in shown
    assert b"2 lines done, 0 failed" in shown.rpartition(b"\x1b[2K")[2] or shown.rstrip().endswith(b"\x1b[2K")


# --- what is refused -------------------------------------------------------------------------------------------------------


def another_input(batch: Batches) -> None:
    batch.write(1, 2, 3)
    assert batch(*FILES).returncode == 0
    batch.write(1, 7, 3, 4)


def shorter_input(batch: Batches) -> None:
    batch.write(1, 2, 3)
    assert batch(*FILES).returncode == 0
    batch.write(1, 2)


def foreign_output(batch: Batches) -> None:
    batch.write(1)
    batch.write({"precious": True}, name="out.jsonl")


def contents(folder: Path) -> dict[Path, bytes | None]:
    paths = [path for path in folder.rglob("*") if not {"locks", "__pycache__"} & set(path.parts)]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "none.jsonl"), "--input: cannot read {folder}/none.jsonl: No such file or directory"),
        (("--input", "folder"), "--input: {folder}/folder is a folder"),
        (("--input", "in.jsonl", "--output", "folder"), "--output: cannot write {folder}/folder: Is a directory"),
        (("--input", "in.jsonl", "--output", "no/out.jsonl"), "--output: there is no folder {folder}/no"),
        (("--input", "in.jsonl", "--output", "in.jsonl"), "--output: {folder}/in.jsonl is the input"),
        (("--input", "in.jsonl", "--output", "link.jsonl"), "--output: {folder}/link.jsonl is the input"),
        (("--output", "out.jsonl"), "--output is for the results of a batch; name its lines with --input"),
        (("--input", "in.jsonl", "--test-input", "1"), "--input and --test-input are mutually exclusive"),
    ],
)
def test_wrong_usage_is_found_before_anything_is_started(
    batch: Batches,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    batch.write(1)
    (batch.folder / "folder").mkdir()
    (batch.folder / "link.jsonl").symlink_to("in.jsonl")
    monkeypatch.chdir(batch.folder)
    for name in [name for name in os.environ if name.startswith("SUPERVISE_")]:
        monkeypatch.delenv(name)
    before = contents(batch.folder)
    assert app.main(batch.command(*arguments)[2:]) == 2
    assert f"supervise: {message.format(folder=batch.folder)}" in capsys.readouterr().err
    assert contents(batch.folder) == before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (foreign_output, "line 1 is not the output of a batch; name another file with --output"),
        (another_input, "the output belongs to another input: line 2 is not the one that it answers"),
        (
            shorter_input,
            "the output belongs to another input: it has an answer to line 3, and the input ends at line 2",
        ),
    ],
)
def test_the_output_of_something_else_is_left_as_it_is(
    batch: Batches, prepare: Callable[[Any], None], message: str
) -> None:
    prepare(batch)
    before = contents(batch.folder)
    run = batch(*FILES)
    assert run.returncode == 2, run.stderr
    assert message in run.stderr.decode()
    assert contents(batch.folder) == before


def test_two_at_once_on_one_output(batch: Batches, gate: Path) -> None:
    batch.write({"gate": str(gate)})
    first = batch.start(*FILES)
    with gate.open("wb"):
        second = batch(*FILES)
        assert second.returncode == 2
        assert b"is held by supervise echo.py" in second.stderr
    assert first.wait(30) == 0
    assert len(batch.results()) == 1


def test_a_handler_that_cannot_be_loaded(batch: Batches) -> None:
    batch.write(1)
    (batch.folder / "echo.py").write_text("import nothing_of_that_name\n")
    run = batch(*FILES)
    assert run.returncode == 2
    assert b"ModuleNotFoundError" in run.stderr
    assert STORE not in batch.files()
