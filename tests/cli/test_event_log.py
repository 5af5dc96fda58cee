"""The lines on stderr, over real pipes and a real terminal: what they look like, and that nobody waits for a slow reader."""

from __future__ import annotations

import io
import json
import os
import re
import select
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from supervisor.cli.serving import event_log
from supervisor.cli.serving.event_log import LIMIT, PAUSE, EventLog

AT = 1_700_000_000_123
DEADLINE_S = 20.0


class End:
    """The end of a pipe or terminal that lines are written to, as a stream; the other end reads them."""

    def __init__(self, reading: int, writing: int, encoding: str = "utf-8") -> None:
        self.reading = reading
        self.writing = writing
        self.encoding = encoding

    def fileno(self) -> int:
        return self.writing

    def isatty(self) -> bool:
        return os.isatty(self.writing)

    def read_to_end(self) -> bytes:
        """All that was written, once the lines are closed."""
        os.close(self.writing)
        self.writing = -1
        data = b""
        while True:
            try:
                part = os.read(self.reading, 1 << 16)
            except OSError:  # a terminal whose other end is closed
                return data
            if not part:
                return data
            data += part


def end_of(descriptors: tuple[int, int], encoding: str = "utf-8") -> Iterator[End]:
    end = End(*descriptors, encoding)
    yield end
    for descriptor in (end.reading, end.writing):
        if descriptor >= 0:
            os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[End]:
    yield from end_of(os.pipe())


@pytest.fixture
def terminal() -> Iterator[End]:
    yield from end_of(os.openpty())


def written(end: End, log_format: str, *said: tuple[object, ...]) -> str:
    """What is read when each of ``said`` is an event (3 parts) or a log line (4 parts)."""
    lines = EventLog(end, log_format)
    for parts in said:
        if len(parts) == 3:
            lines.event(*parts)  # type: ignore[arg-type]  # the table below has them in order
        else:
            lines.log(*parts)  # type: ignore[arg-type]
    assert lines.close(DEADLINE_S)
    return end.read_to_end().decode().replace("\r\n", "\n")


LISTENING = (AT, "listening", "listening on http://127.0.0.1:8900")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (LISTENING, "listening on http://127.0.0.1:8900\n"),
        ((AT, "gpu0", "job-1", "hello"), "gpu0 │ job-1 │ hello\n"),
        ((AT, "gpu0", None, "hello"), "gpu0 │ hello\n"),
        ((AT, "gpu0", None, "a\nb\n"), "gpu0 │ a\ngpu0 │ b\n"),
        ((AT, "gpu0", None, ""), "gpu0 │ \n"),
        ((AT, "gpu0", None, "10%\r50%\r100%\r"), "gpu0 │ 100%\n"),
        ((AT, "gpu0", "a\nb\x1b", "x"), "gpu0 │ a\\x0ab\\x1b │ x\n"),
        ((AT, "gpu0", None, "\tindented"), "gpu0 │ \tindented\n"),
        ((AT, "gpu0", None, "half\ud800"), "gpu0 │ half\\ud800\n"),
    ],
)
def test_text(pipe: End, said: tuple[object, ...], line: str) -> None:
    assert written(pipe, "text", said) == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1bcreset", "reset"),
        ("bell\x07", "bell\\x07"),
        ("\x1b[", ""),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("färbig 🎨", "färbig 🎨"),
    ],
)
def test_a_terminal_is_not_driven_by_what_handlers_print(pipe: End, terminal: End, text: str, shown: str) -> None:
    assert written(terminal, "text", (AT, "gpu0", None, text)) == f"gpu0 │ {shown}\n"
    assert written(pipe, "text", (AT, "gpu0", None, text)) == f"gpu0 │ {text}\n"


def test_json(pipe: End) -> None:
    lines = EventLog(pipe, "json")
    lines.event(AT, "refreshed", "gpu0 refreshed", slot="gpu0", freed_mib=512)
    lines.log(AT, "gpu0", None, "tab\t newline\n\x1b[31m half\ud800")
    assert lines.close(DEADLINE_S)
    first, second = map(json.loads, pipe.read_to_end().splitlines())
    assert first == {
        "ts": "2023-11-14T22:13:20.123Z",
        "event": "refreshed",
        "slot": "gpu0",
        "freed_mib": 512,
        "text": "gpu0 refreshed",
    }
    assert (second["event"], second["slot"], second["job"]) == ("log", "gpu0", None)
    assert second["text"] == "tab\t newline\n\x1b[31m half\\ud800"


def test_a_locale_without_the_bar() -> None:
    for end in end_of(os.pipe(), encoding="ascii"):
        assert written(end, "text", (AT, "gpu0", "j", "naïve")) == "gpu0 | j | na\\xefve\n"


def test_order_is_kept(pipe: End) -> None:
    text = written(pipe, "text", *[(AT, "gpu0", None, str(number)) for number in range(3000)])
    assert [int(line.rpartition(" ")[2]) for line in text.splitlines()] == list(range(3000))


def test_flush_waits_for_what_was_said(pipe: End) -> None:
    lines = EventLog(pipe, "text")
    lines.event(*LISTENING)
    assert lines.flush(DEADLINE_S)
    assert select.select([pipe.reading], [], [], 0)[0]
    assert os.read(pipe.reading, 100) == b"listening on http://127.0.0.1:8900\n"
    assert lines.close(DEADLINE_S)


def test_a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed(pipe: End) -> None:
    lines = EventLog(pipe, "text")
    line = "x" * 1000
    started = time.monotonic()
    count = 3 * LIMIT // len(line)
    for _ in range(count):
        lines.log(AT, "gpu0", None, line)
    lines.event(*LISTENING)
    assert not lines.flush(0.05)
    assert time.monotonic() - started < DEADLINE_S

    received = io.BytesIO()

    def read() -> None:
        while part := os.read(pipe.reading, 1 << 16):
            received.write(part)

    reader = threading.Thread(target=read)
    reader.start()
    assert lines.close(DEADLINE_S)
    os.close(pipe.writing)
    pipe.writing = -1
    reader.join(DEADLINE_S)
    text = received.getvalue().decode()
    missing = re.search(r"^(\d+) lines are missing here", text, re.MULTILINE)
    assert missing is not None
    assert text.count("gpu0 │ x") + int(missing[1]) == count
    assert text.endswith("listening on http://127.0.0.1:8900\n"), "events of the program come through all the same"


def test_close_has_a_deadline(pipe: End) -> None:
    lines = EventLog(pipe, "text")
    for _ in range(200):
        lines.log(AT, "gpu0", None, "x" * 1000)
    started = time.monotonic()
    assert not lines.close(0.1)
    assert time.monotonic() - started < DEADLINE_S
    os.close(pipe.reading)
    pipe.reading = -1
    lines._writer.join(DEADLINE_S)  # else it would write into who gets the number of this pipe next


@pytest.mark.parametrize("patience", [60.0, 0.1])
def test_the_last_words_wait_for_a_slow_machine_and_not_for_ever(
    pipe: End, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """The writer gets no processor for much longer than a reader would be waited for."""
    go_on, looks = threading.Event(), 0
    write, is_full = event_log._write, event_log._is_full

    def late(fd: int, data: bytes) -> None:
        assert go_on.wait(DEADLINE_S)
        write(fd, data)

    def look(fd: int) -> bool:
        nonlocal looks
        looks += 1
        if looks == 50:
            go_on.set()
        return is_full(fd)

    monkeypatch.setattr(event_log, "_write", late)
    monkeypatch.setattr(event_log, "_is_full", look)
    monkeypatch.setattr(event_log, "PATIENCE", patience)
    lines = EventLog(pipe, "text")
    lines.event(*LISTENING)
    assert lines.close(5 * PAUSE) is (patience > 50 * PAUSE)
    go_on.set()
    lines._writer.join(DEADLINE_S)
    assert pipe.read_to_end() == b"listening on http://127.0.0.1:8900\n"


def test_a_terminal_that_is_held_is_not_waited_for(terminal: End) -> None:
    """As by Ctrl-S."""
    termios.tcflow(terminal.writing, termios.TCOOFF)
    lines = EventLog(terminal, "text")
    lines.event(*LISTENING)
    assert not lines.close(0.05)
    termios.tcflow(terminal.writing, termios.TCOON)
    lines._writer.join(DEADLINE_S)
    assert os.read(terminal.reading, 100) == b"listening on http://127.0.0.1:8900\r\n"


def test_a_reader_that_left_hurts_nobody(pipe: End) -> None:
    os.close(pipe.reading)
    pipe.reading = -1
    lines = EventLog(pipe, "text")
    lines.event(*LISTENING)
    assert not lines.flush(5)
    for _ in range(10):
        lines.log(AT, "gpu0", None, "x" * LIMIT)
    assert not lines.close(5)


def test_a_terminal_that_another_program_made_non_blocking(pipe: End) -> None:
    os.set_blocking(pipe.writing, False)
    lines = EventLog(pipe, "text")
    sent = [f"{number:0999}" for number in range(500)]
    for text in sent:
        lines.log(AT, "gpu0", None, text)
    received = b""
    while received.count(b"\n") < len(sent):
        assert select.select([pipe.reading], [], [], DEADLINE_S)[0], "the writer stopped"
        received += os.read(pipe.reading, 1 << 16)
    assert received.decode().split("\n")[:-1] == [f"gpu0 │ {text}" for text in sent]
    assert lines.close(DEADLINE_S)
