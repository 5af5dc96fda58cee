"""What the picture is made of: words and numbers, progress, columns, and the keys."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from supervisor.dashboard import progress
from supervisor.dashboard.live import KeyAction, pressed
from supervisor.dashboard.table import GAP, Column, Span, table, widths
from supervisor.dashboard.text import bar, clock, crop, duration, fit, harmless, mib
from supervisor.dashboard.view import ViewState

# --- words and numbers


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0 ms"),
        (3, "3 ms"),
        (4.12, "4.1 ms"),
        (9.96, "10 ms"),
        (812, "812 ms"),
        (999.6, "1.0 s"),
        (1240, "1.2 s"),
        (9_960, "10 s"),
        (59_400, "59 s"),
        (59_600, "1m 00s"),
        (192_000, "3m 12s"),
        (7_500_000, "2h 05m"),
        (273_600_000, "3d 04h"),
    ],
)
def test_durations(milliseconds: float, words: str) -> None:
    assert duration(milliseconds) == words


@pytest.mark.parametrize(("size", "words"), [(0, "0 MiB"), (812, "812 MiB"), (9999, "9999 MiB"), (12_595, "12.3 GiB")])
def test_sizes(size: int, words: str) -> None:
    assert mib(size) == words


def test_a_moment_that_no_calendar_has() -> None:
    assert clock(10**30) == "--:--:--"


@pytest.mark.parametrize(
    ("wild", "tame"),
    [
        ("plain ünïcode 日本", "plain ünïcode 日本"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1bM\x1b7\x1b(Bx", "x"),
        ("cut\x1b", "cut"),
        ("cut\x1b[12", "cut"),
        ("\x9b31mx", "·31mx"),
        ("a\x00b\x08c\x7f", "a·b·c·"),
        ("a\tb\nc", "a b c"),
        ("10%\r20%\r30%", "30%"),
        ("30%\r", "30%"),
        ("a\u202eb\u200bc\ufeff", "abc"),
        ("\udc80", "·"),
        ("❤\ufe0f", "❤"),
    ],
)
def test_harmless(wild: str, tame: str) -> None:
    assert harmless(wild) == tame


@settings(deadline=None)
@given(st.text(max_size=60))
def test_harmless_text_has_nothing_left_to_do(wild: str) -> None:
    tame = harmless(wild)
    assert tame.isprintable() or all(char.isprintable() or char.isspace() for char in tame)
    assert "\x1b" not in tame
    assert "\n" not in tame
    assert harmless(tame) == tame


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "So"])), st.integers(0, 40))
def test_crop_and_fit_keep_to_their_width(words: str, width: int) -> None:
    assert cell_len(crop(words, width)) <= width
    assert fit(Text(words), width).cell_len == width
    assert fit(Text(words), width, "right").cell_len == width


@settings(deadline=None)
@given(st.none() | st.floats(allow_nan=False), st.integers(-3, 50))
def test_a_bar_has_its_width(share: float | None, width: int) -> None:
    assert bar(share, width).cell_len == max(width, 0)


def test_bars_differ_without_colour() -> None:
    assert [bar(share, 4).plain for share in (0, 0.125, 0.5, 1)] == ["┄┄┄┄", "╸┄┄┄", "━━┄┄", "━━━━"]


# --- progress


@pytest.mark.parametrize(
    ("value", "share", "words"),
    [
        ({"percent": 62, "message": "denoising"}, 0.62, "denoising"),
        ({"percentage": 62.5}, 0.625, ""),
        ({"progress": 0.25, "status": "half way there"}, 0.25, "half way there"),
        ({"progress": 25}, 0.25, ""),
        ({"progress": 1}, 1.0, ""),
        ({"step": 3, "of": 8}, 0.375, "3/8"),
        ({"current": 5, "total": 10, "stage": "upscale"}, 0.5, "5/10 upscale"),
        ({"step": 3, "total_steps": 4, "percent": 70}, 0.7, "3/4"),
        ({"step": 3, "of": 0}, None, '{"step": 3, "of": 0}'),
        ({"percent": 300}, 1.0, ""),
        ({"percent": True}, None, '{"percent": true}'),
        ({"percent": "62"}, None, '{"percent": "62"}'),
        ({"message": "step 7/20"}, 0.35, "step 7/20"),
        ("Update 3/10", 0.3, "Update 3/10"),
        ("45% done", 0.45, "45% done"),
        ("7 of 14 images", 0.5, "7 of 14 images"),
        ("1/0", None, "1/0"),
        ("thinking", None, "thinking"),
        (42, None, "42"),
        ([1, 2], None, "[1, 2]"),
        ({"tokens": 12, "deep": {"a": "é"}}, None, '{"tokens": 12, "deep": {"a": "é"}}'),
        ({"percent": 10**400}, None, f'{{"percent": 1{"0" * 400}}}'),
    ],
)
def test_progress(value: Any, share: float | None, words: str) -> None:
    found = progress.read(json.dumps(value).encode())
    assert found.share == pytest.approx(share)
    assert found.text == words


@pytest.mark.parametrize("value", [b"not json", b"\xff\xfe", b"[" * 10_000, b'"' + b"x" * 100_000 + b'"', b""])
def test_progress_that_cannot_be_read_is_shown_as_it_is(value: bytes) -> None:
    assert progress.read(value).share is None


def test_progress_as_a_cell() -> None:
    def drawn(value: Any, width: int) -> str:
        cell = progress.shown(msgspec.Raw(json.dumps(value).encode()))
        assert not isinstance(cell, Span)
        return cell.plain if isinstance(cell, Text) else cell(width).plain

    assert drawn({"percent": 50, "message": "half"}, 12) == "━━━╸┄┄┄  50%"
    assert drawn({"percent": 50, "message": "half"}, 24) == "━━━━━━╸┄┄┄┄┄┄  50%  half"
    assert drawn("thinking", 12) == "thinking"
    assert drawn(None, 12) == ""


# --- columns


def column(title: str, least: int, most: int, rank: int = 0, cells: tuple[Any, ...] = ()) -> Column[int]:
    return Column(title, cells.__getitem__, least, most, rank)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (100, [10, 30, 5]),
        (49, [10, 30, 5]),
        (39, [10, 20, 5]),
        (29, [10, 10, 5]),
        (28, [10, 16, 0]),
        (22, [10, 10, 0]),
        (21, [10, 0, 0]),
        (3, [10, 0, 0]),
    ],
)
def test_columns_vanish_by_rank_and_share_the_rest(width: int, expected: list[int]) -> None:
    assert widths([column("a", 10, 10), column("b", 10, 30, 1), column("c", 5, 5, 2)], width) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 40), st.integers(0, 5)), min_size=1), st.integers(1, 200))
def test_columns_never_take_more_than_there_is(sizes: list[tuple[int, int, int]], width: int) -> None:
    columns = [column("x", least, least + more, rank) for least, more, rank in sizes]
    got = widths(columns, width)
    shown = [size for size in got if size]
    must = [column.least for column in columns if not column.rank]
    assert sum(shown) + GAP * (len(shown) - 1) <= max(width, sum(must) + GAP * (len(must) - 1))
    assert all(size <= column.most for size, column in zip(got, columns, strict=True))
    titles, _ = table(columns, [], width)
    assert titles.cell_len == width


def test_a_span_takes_the_rest_of_its_row() -> None:
    columns = [
        column("a", 2, 2, cells=(Text("1"), Text("2"))),
        column("b", 3, 3, cells=(Span(Text("all the rest")), Text("x"))),
        column("c", 3, 3, cells=(Text("no"), lambda width: Text("y" * width))),
    ]
    _, rows = table(columns, range(2), 20)
    assert [row.plain.rstrip() for row in rows] == ["1   all the rest", "2   x    yyy"]


# --- keys

SLOTS = ("gpu0", "gpu1", "gpu2")


@pytest.mark.parametrize(
    ("before", "key", "after", "action"),
    [
        ({}, "q", {}, KeyAction.QUIT),
        ({}, "down", {"selected": "gpu0"}, KeyAction.NOTHING),
        ({}, "up", {"selected": "gpu2"}, KeyAction.NOTHING),
        ({"selected": "gpu1"}, "j", {"selected": "gpu2"}, KeyAction.NOTHING),
        ({"selected": "gpu1"}, "k", {"selected": "gpu0"}, KeyAction.NOTHING),
        ({"selected": "gpu2"}, "down", {"selected": "gpu2"}, KeyAction.NOTHING),
        ({"selected": "gone"}, "down", {"selected": "gpu0"}, KeyAction.NOTHING),
        ({"selected": "gpu1"}, "escape", {"selected": None}, KeyAction.NOTHING),
        ({"selected": "gpu1"}, "r", {"selected": "gpu1"}, KeyAction.REFRESH),
        ({"selected": "gone"}, "r", {"selected": "gone", "notice": "select a slot"}, KeyAction.NOTHING),
        ({}, "r", {"notice": "select a slot"}, KeyAction.NOTHING),
        ({}, "l", {"big_log": True}, KeyAction.NOTHING),
        ({"big_log": True}, "l", {"big_log": False}, KeyAction.NOTHING),
        ({}, "p", {"paused": True}, KeyAction.NOTHING),
        ({"paused": True}, "p", {"paused": False}, KeyAction.NOTHING),
        ({}, "?", {"help": True}, KeyAction.NOTHING),
        ({"help": True}, "r", {"help": False}, KeyAction.NOTHING),
        ({"help": True}, "q", {"help": True}, KeyAction.QUIT),
        ({}, "suspend", {}, KeyAction.SUSPEND),
        ({"embedded": True}, "suspend", {"embedded": True}, KeyAction.NOTHING),
        ({}, "x", {}, KeyAction.NOTHING),
    ],
)
def test_keys(before: dict[str, Any], key: str, after: dict[str, Any], action: KeyAction) -> None:
    state, wished = pressed(ViewState(**before), key, SLOTS)
    notice = after.pop("notice", None)
    assert (state.notice or "").startswith(notice or "")
    assert (state.notice is None) == (notice is None)
    assert msgspec.structs.replace(state, notice=None) == ViewState(**after)
    assert wished is action


def test_r_needs_no_selection_where_there_is_one_slot() -> None:
    state, wished = pressed(ViewState(), "r", ("cpu0",))
    assert (state.selected, wished) == ("cpu0", KeyAction.REFRESH)


def test_arrows_without_slots() -> None:
    assert pressed(ViewState(), "down", ()) == (ViewState(), KeyAction.NOTHING)
