"""The frames in which jobs share one log pipe: what is read is what was written, however it is cut."""

from __future__ import annotations

import os
import select
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import WireError
from supervisor.wire.log_frames import MarkReader, frames, new_mark

MARK = "0123456789abcdef"
BEGIN = b"\0" + MARK.encode()

# Pieces of marks and zero bytes outside of frames are what could confuse a reader.
TEXTS = st.one_of(st.binary(max_size=20), st.sampled_from([b"\0", BEGIN, BEGIN[:5], b"line\n", b"x" * 9_000]))
JOBS = st.sampled_from(["a", "job-2", "ü", "j" * 128])
PLAIN = st.one_of(st.binary(max_size=20), st.sampled_from([b"\0", BEGIN[:5], b"\0\0", b"line\n"]))
WRITES = st.lists(st.one_of(st.tuples(JOBS, TEXTS), st.tuples(st.none(), PLAIN)), max_size=8)


def framed(job: str | None, data: bytes) -> bytes:
    return data if job is None else b"".join(frame for frame, _ in frames(MARK, job, data))


def merged(pieces: list[tuple[str | None, bytes]]) -> list[tuple[str | None, bytes]]:
    """``pieces`` with neighbours of one job put together."""
    found: list[tuple[str | None, bytes]] = []
    for job, data in pieces:
        if found and found[-1][0] == job:
            found[-1] = (job, found[-1][1] + data)
        elif data:
            found.append((job, data))
    return found


@settings(deadline=None)
@given(WRITES, st.lists(st.integers(1, 5_000), max_size=10))
def test_what_is_read_is_what_was_written(writes: list[tuple[str | None, bytes]], cuts: list[int]) -> None:
    data = b"".join(framed(job, text) for job, text in writes)
    reader = MarkReader(MARK)
    pieces, at = [], 0
    for cut in [*cuts, len(data) or 1]:
        pieces += reader.feed(data[at : at + cut])
        at += cut
    pieces.append((None, reader.rest()))
    assert merged(pieces) == merged(writes)


def test_a_frame_is_one_atomic_write() -> None:
    made = [frame for frame, _ in frames(MARK, "j" * 128, b"x" * 100_000)]
    assert max(map(len, made)) == select.PIPE_BUF
    assert sum(size for _, size in frames(MARK, "a", b"x" * 100_000)) == 100_000


def test_a_frame_that_is_whole_does_not_wait() -> None:
    reader = MarkReader(MARK)
    assert reader.feed(framed("a", b"no newline")) == [("a", b"no newline")]
    assert reader.feed(b"plain") == [(None, b"plain")]


def test_writers_in_one_pipe_do_not_tear_each_others_frames() -> None:
    read, write = os.pipe()
    line = b"x" * 6_000

    def flood(job: str | None) -> None:
        for _ in range(40):
            for frame, _ in frames(MARK, job, line) if job else [(b"plain\n", 0)]:
                os.write(write, frame)

    writers = [threading.Thread(target=flood, args=(job,)) for job in ("a", "b", None)]
    for writer in writers:
        writer.start()
    threading.Thread(target=lambda: ([writer.join() for writer in writers], os.close(write))).start()
    reader, got = MarkReader(MARK), {"a": b"", "b": b"", None: b""}
    while data := os.read(read, 1_000):
        for job, text in reader.feed(data):
            got[job] += text
    os.close(read)
    assert got == {"a": line * 40, "b": line * 40, None: b"plain\n" * 40}


@pytest.mark.parametrize("mark", ["", "0123", "\0" * 16, "0" * 17, "not hexadecimal!"])
def test_only_a_mark_is_taken_for_one(mark: str) -> None:
    with pytest.raises(WireError, match="is not a mark"):
        MarkReader(mark)


def test_no_two_marks_are_alike() -> None:
    assert MarkReader(new_mark()).feed(framed("a", b"text")) == [(None, framed("a", b"text"))]
