"""The log pipe of a worker: whole lines, by job where they name one, and nothing lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.errors import WireError
from supervisor.pool.pipes import log_pipe
from supervisor.pool.pipes.log_pipe import LINE_BYTES, LOG_PIPE_BYTES, NO_JOB, TAIL_LINES, TURN_LINES, LogPipe
from supervisor.wire.log_frames import frames

MARK = "0123456789abcdef"
PACKAGE = Path(log_pipe.__file__).parents[2]


class Pipe:
    """Both ends of a log pipe."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
        os.set_blocking(read, False)
        self.log = LogPipe(read)

    def write(self, text: str, job: str | None = None) -> None:
        data = text.encode()
        for frame in [data] if job is None else [frame for frame, _ in frames(MARK, job, data)]:
            os.write(self._write, frame)

    def read(self, *running: str) -> list[tuple[str | None, list[str]]]:
        return [tuple(said) for said in self.log.read(running)]

    def ended(self, job: str, *running: str) -> list[tuple[str | None, list[str]]]:
        return [tuple(said) for said in self.log.read_end_of(job, running)]

    def close(self) -> None:
        self.log.close()
        os.close(self._write)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def marked(pipe: Pipe) -> Pipe:
    pipe.log.expect_marks(MARK)
    return pipe


def test_lines_of_a_worker_with_one_job_name_none(pipe: Pipe) -> None:
    pipe.write("one\ntw")
    assert pipe.read("a") == [(None, ["one"])]
    pipe.write("o\r\n\nthree")
    assert pipe.read("a") == [(None, ["two", ""])]
    assert pipe.ended("a", "a") == [(None, ["three"])]


def test_what_looks_like_a_frame_is_text_where_no_mark_is_expected(pipe: Pipe) -> None:
    pipe.write("forged\n", "b")
    (said,) = pipe.read("a", "b")
    assert said[0] is None


def test_lines_go_to_the_jobs_that_they_name(marked: Pipe) -> None:
    for text, job in [("a1", "a"), ("b1", "b"), ("native\n", None), ("\n", "b"), ("\na2", "a"), ("b2\nb3", "b")]:
        marked.write(text, job)
    assert marked.read("a", "b") == [(None, ["native"]), ("b", ["b1"]), ("a", ["a1"]), ("b", ["b2"])]


def test_the_end_of_a_job_finishes_only_its_own_line(marked: Pipe) -> None:
    for job in ("a", "b", None):
        marked.write(f"unfinished {job}", job)
    assert marked.log.pending
    assert marked.ended("a", "a", "b") == [("a", ["unfinished a"])]
    marked.write("!\n", "b")
    assert marked.read("b") == [("b", ["unfinished b!"])]
    assert marked.ended("b", "b") == [(None, ["unfinished None"])]
    assert not marked.log.pending


def test_a_job_that_has_ended_is_not_named(marked: Pipe) -> None:
    marked.write("left behind\n", "a")
    assert marked.read("b") == [(NO_JOB, ["left behind"])]
    assert marked.log.tail_of("b") == []


def test_the_output_tail_has_the_lines_of_the_job_and_of_no_job_in_order(marked: Pipe) -> None:
    for text, job in [("one\n", "a"), ("secret\n", "b"), ("Fatal Python error\n", None), ("two\n", "a"), ("thr", "a")]:
        marked.write(text, job)
    marked.log.read_rest(("a", "b"))
    assert marked.log.tail_of("a") == ["one", "Fatal Python error", "two", "thr"]
    assert marked.log.tail_of("b") == ["secret", "Fatal Python error"]


def test_a_talkative_job_does_not_push_out_the_words_of_another(marked: Pipe) -> None:
    marked.write("quiet\n", "a")
    for n in range(200):
        marked.write(f"line {n}\n", "b")
    marked.log.read_rest(("a", "b"))
    assert marked.log.tail_of("a") == ["quiet"]
    assert marked.log.tail_of("b") == [f"line {n}" for n in range(200 - TAIL_LINES, 200)]
    marked.log.clear_tails()
    assert marked.log.tail_of("b") == []


def test_a_frame_that_a_death_cut_off_is_not_lost(marked: Pipe) -> None:
    marked.write("\0" + MARK[:7])
    assert marked.read("a") == []
    assert [tuple(said) for said in marked.log.read_rest(("a",))] == [(None, ["\0" + MARK[:7]])]


@pytest.mark.parametrize("job", [None, "a"])
@pytest.mark.parametrize("length", [LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1, 3 * LINE_BYTES, 100_000])
def test_a_long_line_is_cut_alike_however_it_arrives(marked: Pipe, length: int, job: str | None) -> None:
    pieces = [min(LINE_BYTES, length - at) for at in range(0, length, LINE_BYTES)]
    lines = []
    for part in ("x" * length, "\n"):
        marked.write(part, job)
        while said := marked.read("a"):
            lines += [line for _, printed in said for line in printed]
    assert list(map(len, lines)) == pieces


def test_what_is_no_mark_breaks_the_protocol(pipe: Pipe) -> None:
    with pytest.raises(WireError):
        pipe.log.expect_marks("anything")


def test_lines_that_are_too_many_for_one_turn_are_for_the_next(pipe: Pipe) -> None:
    lines = [str(number) for number in range(TURN_LINES + 10)]
    pipe.write("".join(f"{line}\n" for line in lines) + "and the beg")
    assert pipe.read() == [(None, lines[:TURN_LINES])]
    assert pipe.log.more
    pipe.write("inning\n")
    assert pipe.read() == [(None, [*lines[TURN_LINES:], "and the beginning"])]
    assert not pipe.log.more


def test_lines_that_were_held_back_are_not_lost_at_the_end_of_a_job(pipe: Pipe) -> None:
    pipe.write("\n" * (TURN_LINES + 10) + "last")
    assert pipe.read("a") == [(None, [""] * TURN_LINES)]
    assert pipe.log.pending
    assert pipe.ended("a", "a") == [(None, [*[""] * 10, "last"])]
    assert not pipe.log.pending


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "ä\n€\n", "\ud800\n\x80\n", "\n\n", "a\0b\n", "x" * LINE_BYTES + "\n"])
def test_lines_read_the_same_one_by_one(pipe: Pipe, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    os.write(pipe._write, data)
    expected = [line.rstrip("\r") for line in data.decode("utf-8", "replace").split("\n")[:-1]]
    assert pipe.read() == [(None, expected)]


def test_a_stack_shows_the_users_frames_alone(pipe: Pipe) -> None:
    own = f'  File "{PACKAGE}/worker/run.py", line 119'
    users = ["Current thread 0x1 (most recent call first):", '  File "/h.py", line 5 in handler']
    pipe.write("\n".join([*users, f"{own} in _call", f"{own}, in a_traceback", ""]))
    assert pipe.read() == [(None, [*users, f"{own}, in a_traceback"])]
