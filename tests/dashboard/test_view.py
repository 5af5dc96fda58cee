"""The picture: every fact in its place at every size, and nothing that users wrote can break it."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from supervisor.dashboard import machine, work
from supervisor.dashboard.view import ViewState, picture
from supervisor.notice import Level
from supervisor.protocol import views as s

Make = Callable[..., s.Snapshot]
change = msgspec.structs.replace


def frame(view: s.Snapshot, width: int = 80, height: int | None = 24, **state: Any) -> list[str]:
    """The lines of the picture as a terminal of that size would get them."""
    console = Console(file=io.StringIO(), record=True, width=width, height=height or 25, color_system=None)
    console.print(picture(view, width, height, ViewState(**state)), soft_wrap=True, end="")
    return console.export_text(styles=False).split("\n")


def text(view: s.Snapshot, width: int = 80, height: int | None = 24, **state: Any) -> str:
    return "\n".join(frame(view, width, height, **state))


@pytest.mark.parametrize("gpus", [0, 1, 2, 16])
@pytest.mark.parametrize("state", [{}, {"selected": "gpu0"}, {"big_log": True}, {"help": True}, {"embedded": True}])
def test_no_line_is_too_wide_and_no_picture_too_high(snapshot: Make, gpus: int, state: dict[str, Any]) -> None:
    view = snapshot(gpus, notice="a notice", draining=True)
    for width, height in [(80, 24), (120, 40), (200, 50), (40, 10), (149, 33), (151, 33), (60, 14), (24, 5), (25, 100)]:
        lines = frame(view, width, height, **state)
        assert len(lines) == height
        assert {cell_len(line) for line in lines} == {width}, (width, height)


def test_no_size_raises(snapshot: Make) -> None:
    views = [snapshot(3), snapshot(0, 1), snapshot(2, workers=(), running=(), ended=(), log=())]
    for view in views:
        for width in range(1, 90, 7):
            for height in range(1, 30, 2):
                lines = frame(view, width, height, selected="gpu1")
                assert len(lines) <= height
                assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_everything_has_its_place(snapshot: Make, width: int, height: int) -> None:
    shown = text(snapshot(2), width, height)
    for fact in (
        "supervise 0.1.0 · my_handler",
        "up 3h 12m",
        "handlers/my_handler.py   http://127.0.0.1:8900   pid 48190",
        *("GPUs", "slots", "jobs", "running", "ended", "log"),
        "8.7/140.4 GiB",
        "97%",
        "● busy",
        "○ idle",
        "62%",
        "812 MiB",
        "gpu0 refreshed",
        "end 1.9 + release 1.2 + start 1.0 ms",
        "5 in queue   1 running   1,204 completed   3 failed   2 retried",
        "12.3 jobs/s   waited p50 3.2 ms p99 41 ms   ran p50 1.8 s p99 3.4 s",
        "✔ COMPLETED",
        "saved /tmp/out.png (2.1 MiB)",
        "q quit  ↑↓ select  r refresh  l log  p pause  ? help",
    ):
        assert fact in shown, fact


def test_room_shows_more(snapshot: Make) -> None:
    wide = text(snapshot(2), 200, 50)
    for fact in (
        "48213",
        "4.1 ms = 1.9 + 1.2 + 1.0 ms · freed 812 MiB",
        "jupyter-lab (3121) · 1204 MiB",
        "413 W",
        "61°C",
        "denoising",
        "✖ FAILED",
        "worker gpu1 (pid 48101) was k",
        "d3f0a1c2-4b7e-4d1a-9c55-0e2f7a61b000",
    ):
        assert fact in wide, fact
    running, ended = (next(line for line in wide.split("\n") if title in line) for title in ("─ running ", "─ ended "))
    assert running == ended  # side by side


def test_what_does_not_fit_gives_way_by_importance(snapshot: Make) -> None:
    small = text(snapshot(2), 40, 10)
    assert "slots" in small
    assert "5 in queue" in small
    assert "GPUs" in small
    assert "ended" not in small
    assert "running ─" not in small
    assert "d3f0a1c2-4b7e-…" in small


def test_a_picture_without_a_height_is_as_high_as_it_needs(snapshot: Make) -> None:
    lines = frame(snapshot(2), 100, None, keys=False)
    assert 24 <= len(lines) <= 40
    assert lines[-1] == f"╰{'─' * 98}╯"
    assert len(frame(snapshot(8), 100, None)) > len(lines)


def test_many_slots_are_a_window_around_the_selected_one(snapshot: Make) -> None:
    shown = text(snapshot(16), selected="gpu13")
    assert "▸ gpu13" in shown
    assert " 13  H200" in shown
    assert "of 16" in shown
    assert "gpu2 " not in shown
    assert shown.count("H200") < 16
    assert text(snapshot(16), 200, 60).count("H200") == 16


def test_no_gpu_means_no_gpu_columns(snapshot: Make) -> None:
    shown = text(snapshot(0, 2), 160, 40)
    assert "GPUs" not in shown
    assert "GPU MiB" not in shown
    assert "freed" not in shown
    assert "cpu1" in shown
    assert "no GPU on this machine: 2 CPU slots" in shown


def test_a_gpu_in_trouble_is_seen(snapshot: Make) -> None:
    gpus = snapshot(4).gpus
    shown = text(
        snapshot(
            4,
            gpus=(
                change(gpus[0], lost=True, error="GPU is lost (Xid 79)"),
                change(gpus[1], error="Unknown Error"),
                change(gpus[2], memory_used_mib=None, utilization=None, processes=None, power_w=None),
                gpus[3],
            ),
        ),
        110,
        40,
    )
    assert "0  H200      ✖ lost: GPU is lost (Xid 79)" in shown.replace("H200  ✖", "H200      ✖")
    assert "NVML cannot read it: Unknown Error" in shown
    assert "┄┄┄" in shown


@pytest.mark.parametrize(
    ("processes", "shown"),
    [
        ((s.GpuProcessView(31, 1204, "/usr/bin/jupyter-lab"),), "jupyter-lab (31) · 1204 MiB"),
        ((s.GpuProcessView(31, None, "jupyter-lab"),), "jupyter-lab (31) · ?"),
        ((s.GpuProcessView(31, 1204, "xorg"), s.GpuProcessView(32, None, "b")), "xorg (31) and 1 more · 1204 MiB+"),
        ((s.GpuProcessView(4190000, 1204, visible=False),), "unknown (4190000) · 1204 MiB"),
        ((s.GpuProcessView(31, 1204),), "process (31) · 1204 MiB"),
    ],
)
def test_what_is_not_known_of_others_is_not_made_up(
    snapshot: Make, processes: tuple[s.GpuProcessView, ...], shown: str
) -> None:
    assert shown in text(snapshot(1, gpus=(change(snapshot(1).gpus[0], processes=processes),)), 180, 40)


def test_simulated_gpus_are_labelled(snapshot: Make) -> None:
    gpus = tuple(change(gpu, simulated=True) for gpu in snapshot(2).gpus)
    shown = text(snapshot(2, gpus=gpus), 120, 40)
    assert "GPUs · simulated, not real" in shown
    mixed = text(snapshot(2, gpus=(gpus[0], snapshot(2).gpus[1])), 150, 40)
    assert "not real" not in mixed
    assert mixed.count("H200 (simulated)") == 1


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("held", "812 MiB still in use by pid 3121"),
        ("broken", "died 5 times in a row before its first job"),
        ("backoff", "exit code 1; next start in 4 s"),
        ("lost", "GPU 0 has fallen off the bus"),
        ("parked", "idle for 60 s; starts when jobs wait"),
        ("later", "something new"),
    ],
)
def test_why_a_slot_does_not_work_is_said(snapshot: Make, state: str, reason: str) -> None:
    worker = change(snapshot(1).workers[0], state=state, reason=reason, running=())
    shown = text(snapshot(1, workers=(worker,)), 100, 30)
    assert state in shown
    assert reason in shown


def test_a_refresh_that_nvml_could_not_prove_is_called_unverified(snapshot: Make) -> None:
    worker = snapshot(1).workers[0]
    assert worker.last_refresh is not None
    blind = change(worker, last_refresh=change(worker.last_refresh, verified=False, freed_mib=None))
    shown = text(snapshot(1, workers=(blind,)), 120, 30)
    assert "4.1 ms · unverified" in shown
    assert "freed" not in shown


def test_several_jobs_in_one_worker(snapshot: Make) -> None:
    view = snapshot(1)
    ids = ("a", "b", "c")
    running = tuple(s.RunningJobView(name, "gpu0", view.at - 1000, n + 1) for n, name in enumerate(ids))
    shown = text(change(view, workers=(change(view.workers[0], running=ids),), running=running), 100, 40)
    assert "3 jobs: a" in shown
    assert "attempt 3" in shown


def test_the_order_of_what_the_api_sends_does_not_matter(snapshot: Make) -> None:
    view = snapshot(2)
    assert text(change(view, ended=view.ended[::-1], running=view.running[::-1])) == text(view)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"embedded": True}, "draining … Ctrl-C again to stop at once"),
        ({}, "draining … no new jobs are accepted"),
        ({"paused": True}, "paused · up"),
        ({"silent_since": 1_790_000_000_000}, "not answering since"),
        ({"silent_since": 1_790_000_000_000, "trouble": "HTTP 500"}, ": HTTP 500"),
        ({"notice": "refresh of gpu0 requested"}, "refresh of gpu0 requested"),
        ({"embedded": True, "help": True}, "stop the supervisor after its running jobs; again: at once"),
        ({"help": True}, "quit this screen"),
    ],
)
def test_what_the_screen_itself_has_to_say(snapshot: Make, state: dict[str, Any], words: str) -> None:
    assert words in text(snapshot(2, draining=True), **state)


HOSTILE = {
    "terminal sequences": "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b(B\x9b1mend",
    "an unfinished sequence": "before\x1b]0;never closed",
    "control characters": "nul\x00 bell\x07 back\x08\x08 tab\tdel\x7f",
    "markup": "[bold red]not bold[/bold red] [/] :smile: [link=http://x]",
    "wide characters": "日本語のログ行です" * 30,
    "emoji of several parts": "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f 🏳\ufe0f\u200d🌈 " * 20,
    "other directions": "\u202eabc\u202c \u2066x\u2069 \u200f",
    "line ends": "one\ntwo\r\nthree\u2028four\x85five\x0bsix",
    "a progress bar": "10%|#   |\r50%|##  |\r90%|####|",
    "marks on marks": "Z\u0351\u036b\u0343\u036a\u0302" * 50,
    "half a character": "\udc80 and \ud800",
    "very long": "x" * 1_000_000,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_users_text_cannot_break_the_picture(snapshot: Make, hostile: str, size: tuple[int, int]) -> None:
    view = snapshot(2)
    words = msgspec.Raw(json.dumps(hostile).encode())
    values = (words, msgspec.Raw(json.dumps({"percent": 50, "message": hostile}).encode()))
    view = change(
        view,
        endpoint_id=hostile,
        handler=hostile,
        notice=hostile,
        gpus=tuple(change(gpu, name=hostile) for gpu in view.gpus),
        workers=(
            change(view.workers[0], running=(hostile,)),
            change(view.workers[1], state="held", running=(), reason=hostile),
        ),
        running=tuple(s.RunningJobView(hostile, "gpu0", view.at, 1, value) for value in values),
        ended=tuple(change(job, id=hostile, error=hostile) for job in view.ended),
        log=tuple(change(line, text=hostile, job=hostile) for line in view.log),
    )
    lines = frame(view, *size, selected="gpu1", notice=hostile)
    assert len(lines) == size[1]
    for line in lines:
        assert cell_len(line) == size[0]
        assert not [char for char in line if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_markup_is_text(snapshot: Make) -> None:
    view = snapshot(1)
    shown = text(change(view, log=(s.LogLine(view.at, "[bold]x[/bold] [/] :smile:", "gpu0"),)))
    assert "[bold]x[/bold] [/] :smile:" in shown


def test_colours_are_those_of_the_terminals_own_palette(snapshot: Make) -> None:
    """So that they are readable on dark and on light: no fixed white, black or RGB."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=120)
    console.print(picture(snapshot(4, draining=True), 120, 40, ViewState(selected="gpu1")), soft_wrap=True)
    written = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert "\x1b[36m" in written
    assert "38;" not in written
    assert "48;" not in written
    assert ";37m" not in written
    assert "\x1b[30m" not in written


def test_colour_stays_where_it_belongs(snapshot: Make) -> None:
    """What has no colour of its own has that of the terminal, not the frame's or its neighbour's."""
    console = Console(force_terminal=True, color_system="standard", width=80)
    lines = console.render_lines(picture(snapshot(2), 80, 24, ViewState()), pad=False)
    styles = {part.text.strip(): part.style for line in lines for part in line if part.text.strip()}
    for words in ("saved /tmp/out.png (2.1 MiB)", "handlers/my_handler.py", "00a77e10-1c2d-4e…", "1.8 s"):
        style = next((style for text, style in styles.items() if text.startswith(words)), "not found")
        assert not style, f"{words}: {style}"


WORDS = "it was held, lost, broken and killed; warning: error"


@pytest.mark.parametrize(
    ("level", "slot", "colour"),
    [
        (Level.INFO, None, None),
        (Level.WARNING, None, "yellow"),
        (Level.ERROR, None, "red"),
        (None, "gpu0", None),
    ],
)
def test_the_colour_of_a_line_is_its_levels_whatever_its_words(
    snapshot: Make, level: Level | None, slot: str | None, colour: str | None
) -> None:
    view = snapshot(1)
    line = s.LogLine(view.at, WORDS, slot, level=level)
    (drawn,) = work.log(change(view, log=(line,))).draw(1, 120).rows
    (span,) = [span for span in drawn.spans if drawn.plain[span.start : span.end] == WORDS] or [None]
    found = None if span is None else Style.parse(str(span.style)).color
    assert (None if found is None else found.name) == colour


@pytest.mark.parametrize(("state", "colour"), [(state, style) for state, (_, style) in machine.MARKS.items()])
def test_the_colour_of_a_slot_is_its_states_whatever_the_reason(snapshot: Make, state: str, colour: str) -> None:
    worker = change(snapshot(1).workers[0], state=state, reason=WORDS, running=())
    cell = machine._slot_state(worker)
    assert isinstance(cell, Text)
    assert cell.style == colour
