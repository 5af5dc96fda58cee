"""Lines, one by one: how they are cut, what they ask for, which are answered already, and how far it all is."""

from __future__ import annotations

import asyncio
import os
import zlib
from pathlib import Path

import pytest

from supervisor.batch import results
from supervisor.batch import source as source_module
from supervisor.batch.request import id_of, output_line, read_request, refused
from supervisor.batch.results import Done, FileSink, read_output
from supervisor.batch.source import Line, Source
from supervisor.cli.serving.progress_bar import Reading, draw, say
from supervisor.errors import RequestError, UsageError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.store.writes import End, Forget, Insert

LONGEST = 40


def read_all(fd: int) -> list[Line]:
    async def read() -> list[Line]:
        source, lines = Source(fd, asyncio.get_running_loop(), LONGEST), []
        while (more := await source.read()) is not None:
            lines += more
        return lines

    return asyncio.run(read())


def line_of(text: bytes, number: int = 1) -> Line:
    fd = os.memfd_create("lines")
    try:
        os.write(fd, b"\n" * (number - 1) + text)
        os.lseek(fd, 0, os.SEEK_SET)
        return read_all(fd)[number - 1]
    finally:
        os.close(fd)


TEXT = b'\xef\xbb\xbf{"a":1}\r\n\n  \n[1, "\xc3\xa9"] \n' + b"x" * 41 + b"\n" + b'"' + b"y" * 38 + b'"\n"last"'


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 45, 1000])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_lines_are_the_same_however_they_arrive(chunk: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK", chunk)
    if kind == "file":
        fd = os.memfd_create("lines")
        os.write(fd, TEXT)
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        fd, end = os.pipe()
        os.write(end, TEXT)
        os.close(end)
    try:
        lines = read_all(fd)
    finally:
        os.close(fd)
    assert [line.text for line in lines] == [
        b'{"a":1}',
        b"",
        b"",
        b'[1, "\xc3\xa9"]',
        None,
        b'"' + b"y" * 38 + b'"',
        b'"last"',
    ]
    assert [line.number for line in lines] == list(range(1, 8))
    assert sum(line.size for line in lines) == len(TEXT)
    assert lines[4].name == "line-5-" + format(zlib.crc32(b"x" * 41), "08x")
    assert len({line.digest for line in lines}) == 6  # the two blank ones have the same


def test_where_a_line_ends_does_not_change_its_name() -> None:
    assert len({line_of(b'{"a":1}' + end).name for end in (b"", b"\n", b"\r\n", b" \n")}) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'{"a":1}', JobRequest("", b'{"a":1}', generated=True)),
        (b'{"input":{"a":1}}', JobRequest("", b'{"a":1}', generated=True)),
        (b'{"input":null}', JobRequest("", b"null", generated=True)),
        (b'{"id":"mine","input":1}', JobRequest("mine", b"1")),
        (b'{"\\u0069d":"mine","input":1}', JobRequest("mine", b"1")),
        (b'{"id":"mine"}', JobRequest("", b'{"id":"mine"}', generated=True)),
        (b"[1]", JobRequest("", b"[1]", generated=True)),
        (b'"text"', JobRequest("", b'"text"', generated=True)),
    ],
)
def test_what_a_line_asks_for(text: bytes, wanted: JobRequest) -> None:
    line = line_of(text)
    request = read_request(line, LONGEST)
    assert (request.input, request.generated) == (wanted.input, wanted.generated)
    assert request.id == (line.name if wanted.generated else wanted.id) == id_of(line, LONGEST)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"nonsense", "the line is not JSON: invalid character at byte 1"),
        (b'{"a":1', "the line is not JSON: unexpected end at byte 6"),
        (b"1,2", "the line is not JSON: trailing characters at byte 2"),
        (b"NaN", "the line is not JSON: invalid character at byte 0"),
        (b'{"a":"\xff"}', "the line is not UTF-8: invalid start byte at byte 6"),
        (b'{"input":1,"id":7}', "id: expected a string"),
        (b'{"input":1,"policy":7}', "policy: expected an object"),
        (b"x" * 41, "the line is 41 bytes long, more than --max-body allows (40)"),
    ],
)
def test_what_is_wrong_with_a_line(text: bytes, reason: str) -> None:
    line = line_of(text, 3)
    with pytest.raises(RequestError) as raised:
        read_request(line, LONGEST)
    assert str(raised.value) == reason
    assert id_of(line, LONGEST) == line.name
    told = output_line(refused(line, reason), line.number)
    assert told.startswith(b'{"id":"line-3-')
    assert b'"status":"FAILED","delayTime":0,"executionTime":0,' in told
    assert told.endswith(b',"retries":0,"line":3}\n')


def test_a_line_that_is_nested_too_deeply() -> None:
    for text in (b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(RequestError, match="nested too deeply"):
            read_request(Line(1, len(text), 0, text), 2**30)


def test_an_output_is_one_line() -> None:
    job = Job(1, "a", JobStatus.COMPLETED, b"", 0, started_ms=1, ended_ms=2, output=b'{\n"a": "b\\n"\n}')
    assert output_line(job, 7).count(b"\n") == 1


# --- what is answered ------------------------------------------------------------------------------------------------------


def answered(path: Path, text: bytes) -> Done:
    path.write_bytes(text)
    fd = os.open(path, os.O_RDWR)
    try:
        return read_output(fd, path)
    finally:
        os.close(fd)


def test_what_the_output_has(tmp_path: Path) -> None:
    whole = b'{"id":"a","status":"COMPLETED","output":[1],"line":5000}\n{"id":"b","status":"FAILED","line":1}\n'
    path = tmp_path / "out.jsonl"
    for torn in (b"", b'{"id":"c","sta', b'{"id":"c","status":"COMPLETED","line":2}', b"\0\0\0"):
        done = answered(path, whole + torn)
        assert path.read_bytes() == whole
        assert (done.count, done.failed, done.last) == (2, 1, 5000)
        assert [number in done for number in (1, 2, 4999, 5000, 10**15)] == [True, False, False, True, False]
        assert done.by(1, "b")
        assert not done.by(1, "a")


@pytest.mark.parametrize(
    "foreign",
    [
        b"hello\n",
        b"{}\n",
        b'{"id":"a","status":"DONE","line":1}\n',
        b'{"id":"a","status":"FAILED","line":0}\n',
        b"\xff\n",
        b"\n",
    ],
)
def test_an_output_of_something_else_is_refused_and_kept(tmp_path: Path, foreign: bytes) -> None:
    text = b'{"id":"a","status":"COMPLETED","line":1}\n' + foreign + b"torn"
    with pytest.raises(UsageError, match="line 2 is not the output of a batch"):
        answered(tmp_path / "out.jsonl", text)
    assert (tmp_path / "out.jsonl").read_bytes() == text


@pytest.mark.parametrize(
    "text", [b"hello", b"{", b'{"id":', b'{"idea": "mine"}', b'{"id":"c","sta', b"\0\0", b"\0\0\0\x18ftypmp42"]
)
def test_a_first_line_without_an_end_is_cut_only_where_it_may_be_ours(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "out.jsonl"
    if b'{"id":'.startswith(text[:6]) or not text.strip(b"\0"):
        assert answered(path, text).count == 0
        assert path.read_bytes() == b""
    else:
        with pytest.raises(UsageError, match="line 1 is not the output of a batch"):
            answered(path, text)
        assert path.read_bytes() == text


def test_ten_million_answers_cost_little() -> None:
    done = Done()
    for number in range(10_000_000, 10_100_000):
        done.add(number, "a", completed=True)
    size = sum(len(page) * page.itemsize for page in done._pages.values())
    assert size <= 2 * (100_000 + 2 * 4096)


def test_what_a_full_disk_refuses_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RETRY_S", 0.01)

    async def write() -> None:
        loop, written, troubles = asyncio.get_running_loop(), asyncio.Event(), []
        counts: list[int] = []

        def trouble(error: OSError | None) -> None:
            troubles.append(error and error.strerror)
            if error is not None:
                os.dup2(room, fd)

        sink = FileSink(fd, loop, lambda count: (counts.append(count), written.set()), trouble)
        sink.put(b"1\n")
        sink.put(b"2\n")
        await asyncio.wait_for(written.wait(), 30)
        assert (counts, troubles) == ([2], ["No space left on device", None])

    fd, room = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        asyncio.run(write())
    finally:
        os.close(fd)
        os.close(room)
    assert (tmp_path / "out").read_bytes() == b"1\n2\n"


# --- what is forgotten -----------------------------------------------------------------------------------------------------


def test_a_job_is_forgotten_once_it_has_ended() -> None:
    def commit(*writes: object) -> None:
        store.commit(writes, told.append)  # type: ignore[arg-type]  # the union of all writes

    told: list[object] = []
    with Store.open(MEMORY) as store:
        commit(Insert(1, JobRequest("a", b"1"), 0), Insert(2, JobRequest("b", b"x" * 5000), 0, 1, "w"))
        commit(Forget(1), Forget(2), Forget(3))
        assert [store.get(name) is not None for name in "ab"] == [True, True]
        commit(End(2, Outcome(JobStatus.COMPLETED), 5), Forget(2), Insert(3, JobRequest("b", b"2"), 6))
        again = store.get("b")
        assert again is not None
        assert (again.seq, again.input) == (3, b"2")
        assert store.counts().jobs[JobStatus.COMPLETED] == 0
        assert told == [None, None, None]


# --- how far it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "told", "row"),
    [
        (
            Reading(1234, 0, 2, 0.25, 410.0, 9.0),
            "1,234 lines done (25%), 0 failed, 2 running, 410/s, 9 s left",
            "━━━━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ 25% 1,234 done 0 failed 2 running 410/s 9 s left",
        ),
        (
            Reading(3, 1, 1, None, 0.5, None),
            "3 lines done, 1 failed, 1 running, 0.5/s",
            "3 done 1 failed 1 running 0.5/s",
        ),
    ],
)
def test_how_far_it_is(reading: Reading, told: str, row: str) -> None:
    assert say(reading) == told
    assert draw(reading, 100).plain == row
    for width in range(1, 100):
        assert draw(reading, width).cell_len <= width
