"""Renders a snapshot, for a size and the user's choices, as lines of text; pure, in the screen's process.

Rows are allocated in three rounds: each section gets its minimum, by rank, as long as there is room; then its usual number; then
its maximum. ``table`` handles widths. No line is wider, and no picture higher, than requested.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.text import Text

from supervisor.dashboard import machine, work
from supervisor.dashboard.section import Drawn, Section
from supervisor.dashboard.text import clock, crop, fit, harmless, span
from supervisor.protocol.views import Snapshot

EDGE = "bright_black"
"""The colour of the frame: grey on dark and on light."""

_WIDE = 150  # minimum cells to show running and ended jobs side by side
_SMALLEST = (24, 5)  # below this size, a few words without a frame


class ViewState(msgspec.Struct, frozen=True):
    """The user's choices and the screen's own state.

    ``embedded``: this screen belongs to `supervise HANDLER`. ``silent_since``: time of the last response in ms since 1970, if the
    supervisor does not respond; ``trouble`` is the error. ``notice``: the effect of the last key.
    """

    selected: str | None = None
    big_log: bool = False
    help: bool = False
    paused: bool = False
    embedded: bool = False
    keys: bool = True
    silent_since: int | None = None
    trouble: str | None = None
    notice: str | None = None


def picture(snapshot: Snapshot, width: int, height: int | None, state: ViewState) -> Text:
    """Render the picture, ``width`` cells wide and ``height`` rows high; without ``height`` as high as it usually needs."""
    if width < _SMALLEST[0] or (height is not None and height < _SMALLEST[1]):
        return _tiny(snapshot, width, height or 1)
    inner = width - 4
    top = [_status(snapshot, inner)] if height is None or height >= 12 else []
    top += [Text(crop(text, inner), style) for text, style in _notices(snapshot, state)]
    parts = [] if state.help else _parts(snapshot, width, state)
    if height is None:
        height = 2 + len(top) + sum(max(section.usual for section in part) for part in parts)
    room = height - 2 - len(top)
    lines = [_top_edge(snapshot, width, state), *(_inside(line, width) for line in top)]
    lines += _help(width, room, state) if state.help else _body(parts, width, room)
    lines = lines[: height - 1]
    lines += [_inside(Text(), width)] * (height - 1 - len(lines))
    lines.append(_bottom_edge(width, state))
    return Text("\n", no_wrap=True, end="").join(lines)


def _parts(snapshot: Snapshot, width: int, state: ViewState) -> list[tuple[Section, ...]]:
    """Return the sections from top to bottom; two in one tuple lie side by side."""
    slots = machine.slots(snapshot, state.selected)
    if state.big_log:
        return [(slots,), (work.log(snapshot),)]
    gpus = machine.gpus(snapshot, state.selected)
    lists = (work.running(snapshot), work.ended(snapshot))
    middle = [lists] if width >= _WIDE else [(section,) for section in lists]
    return [*([(gpus,)] if gpus else []), (slots,), (work.jobs(snapshot, width - 4),), *middle, (work.log(snapshot),)]


def _share(parts: Sequence[tuple[Section, ...]], room: int) -> list[int]:
    """Allocate ``room`` rows to the parts, dividers included; 0 for those that are not shown."""
    order = sorted(range(len(parts)), key=lambda n: min(section.rank for section in parts[n]))
    got = [0] * len(parts)
    for n in order:
        least = max(section.least for section in parts[n])
        got[n] = least if least <= room - sum(got) else 0
    for wish in ("usual", "most"):
        for n in order:
            if got[n]:
                more = max(getattr(section, wish) for section in parts[n]) - got[n]
                got[n] += max(min(more, room - sum(got)), 0)
    return got


def _body(parts: Sequence[tuple[Section, ...]], width: int, room: int) -> list[Text]:
    rows = _share(parts, room)
    lines: list[Text] = []
    above: int | None = None  # the column of the seam in the part above
    for part, size in zip(parts, rows, strict=True):
        if not size:
            continue
        seam = 2 * width // 5 if len(part) == 2 else None
        spans = [width - 4] if seam is None else [seam - 3, width - seam - 4]
        drawn = [section.draw(size - 1, span) for section, span in zip(part, spans, strict=True)]
        lines.append(_divider(part, drawn, width, seam, above))
        lines += _rows(drawn, spans, size - 1, width)
        above = seam
    return lines


def _rows(drawn: Sequence[Drawn], spans: Sequence[int], size: int, width: int) -> list[Text]:
    lines = []
    for n in range(size):
        cells = [
            fit(part.rows[n] if n < len(part.rows) else Text(), span) for part, span in zip(drawn, spans, strict=True)
        ]
        lines.append(_inside(Text.assemble((" │ ", EDGE)).join(cells), width))
    return lines


def _inside(line: Text, width: int) -> Text:
    return Text.assemble(("│ ", EDGE), fit(line, width - 4), (" │", EDGE))


def _edge(width: int, ends: str, left: Text, right: Text) -> Text:
    """Draw a horizontal line with two texts; the right one is dropped if there is no room."""
    room = width - 6
    if left.cell_len + right.cell_len + 3 > room:
        right = Text()
    left = fit(left, min(left.cell_len, room))
    line = Text.assemble((f"{ends[0]}─ ", EDGE), left, " ")
    rest = width - line.cell_len - 1 - (right.cell_len + 3 if right else 0)
    line.append("─" * rest, EDGE)
    if right:
        line.append_text(Text.assemble(" ", right, (" ─", EDGE)))
    return line.append(ends[1], EDGE)


def _divider(part: Sequence[Section], drawn: Sequence[Drawn], width: int, seam: int | None, above: int | None) -> Text:
    titles = [Text(section.title, "bold") for section in part]
    notes = [Text(section.note, "dim") for section in drawn]
    if seam is None:
        line = _edge(width, "├┤", titles[0], notes[0])
    else:
        left = _edge(seam + 1, "├┬", titles[0], notes[0])
        line = left.append_text(_edge(width - seam, "┬┤", titles[1], notes[1])[1:])
    if above is not None and above != seam and line.plain[above] == "─":
        line = Text.assemble(line[:above], ("┴", EDGE), line[above + 1 :])
    return line


def _top_edge(snapshot: Snapshot, width: int, state: ViewState) -> Text:
    name = Text.assemble(("supervise", "bold cyan"), f" {snapshot.version} ", ("·", EDGE), " ")
    name.append(harmless(snapshot.endpoint_id), "bold")
    badge = Text()
    if state.silent_since is not None:
        badge = Text("not answering", "bold red")
    elif state.paused:
        badge = Text("paused", "bold yellow")
    elif snapshot.draining:
        badge = Text("draining", "bold yellow")
    up = Text(f"up {span(snapshot.stats.uptime_s)}", "dim")
    return _edge(width, "╭╮", name, Text.assemble(badge, " · ", up) if badge else up)


def _status(snapshot: Snapshot, width: int) -> Text:
    where = snapshot.url or "no HTTP"
    pid = f"pid {snapshot.pid}"
    handler = crop(harmless(snapshot.handler), max(width - len(where) - len(pid) - 6, 8))
    return Text.assemble(handler, "   ", (where, "cyan"), "   ", (pid, "dim"))


def _notices(snapshot: Snapshot, state: ViewState) -> list[tuple[str, str]]:
    lines = []
    if state.silent_since is not None:
        more = harmless(state.trouble) if state.trouble else "showing the last known state"
        lines.append((f"not answering since {clock(state.silent_since)}: {more}", "bold red"))
    if snapshot.draining and state.embedded:
        lines.append(("draining … Ctrl-C again to stop at once", "bold yellow"))
    elif snapshot.draining:
        lines.append(("draining … no new jobs are accepted; it stops when the running ones have ended", "bold yellow"))
    if snapshot.notice:
        lines.append((harmless(snapshot.notice), "yellow"))
    return lines


def _bottom_edge(width: int, state: ViewState) -> Text:
    if state.notice:
        return _edge(width, "╰╯", Text(crop(harmless(state.notice), width - 6), "bold cyan"), Text())
    if not state.keys:
        return Text(f"╰{'─' * (width - 2)}╯", EDGE)
    keys = [
        ("q", "stop" if state.embedded else "quit"),
        ("↑↓", "select"),
        ("r", "refresh"),
        ("l", "less log" if state.big_log else "log"),
        ("p", "resume" if state.paused else "pause"),
        ("?", "help"),
    ]
    hints = Text()
    for key, what in keys:
        hint = Text.assemble("  " if hints else "", (key, "bold"), (f" {what}", "dim"))
        if hints.cell_len + hint.cell_len <= width - 6:
            hints.append_text(hint)
    return _edge(width, "╰╯", hints, Text())


def _help(width: int, room: int, state: ViewState) -> list[Text]:
    stop = "stop the supervisor after its running jobs; again: at once" if state.embedded else "quit this screen"
    keys = [
        ("q", stop),
        ("↑ ↓", "select a slot (k and j as well); Esc selects none"),
        ("r", "refresh the selected slot: a fresh worker, GPU memory verified free"),
        ("l", "show more log"),
        ("p", "pause the screen, not the supervisor"),
        ("?", "this help; any key leaves it"),
    ]
    lines = [Text("keys", "bold"), *(Text.assemble((f"  {key:<5}", "bold cyan"), what) for key, what in keys)]
    for title, marks in (("slots", machine.MARKS), ("jobs", work.ENDINGS)):
        signs = [Text.assemble((f"{mark} {name}", style)) for name, (mark, style) in marks.items()]
        lines += [Text(), Text(title, "bold"), *_flow(signs, width - 8)]
    lines += [
        Text(),
        Text("refresh", "bold"),
        Text("  end      result received → the worker and its child processes have exited"),
    ]
    lines += [Text("  release  → its GPU memory is verified free"), Text("  start    → a fresh worker is ready")]
    return [_inside(line, width) for line in lines[:room]]


def _flow(words: Sequence[Text], width: int) -> list[Text]:
    """Wrap ``words`` into lines of at most ``width`` cells."""
    lines = [Text(" ")]
    for word in words:
        if lines[-1].cell_len + word.cell_len + 3 > width:
            lines.append(Text(" "))
        lines[-1].append(" ").append_text(word).append("  ")
    return lines


def _tiny(snapshot: Snapshot, width: int, height: int) -> Text:
    counts = snapshot.jobs
    words = [
        f"supervise {snapshot.endpoint_id}",
        f"{counts.in_queue} in queue",
        f"{counts.in_progress} running",
        f"{counts.failed} failed",
    ]
    return Text("\n", no_wrap=True, end="").join(Text(crop(harmless(word), width)) for word in words[:height])
