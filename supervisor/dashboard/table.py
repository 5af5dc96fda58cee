"""Tables that fit a width: columns are dropped by rank and truncated with an ellipsis; pure, used by screen and commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, Union

import msgspec
from rich.text import Text

from supervisor.dashboard.text import fit

GAP = 2

View = TypeVar("View")


class Span(msgspec.Struct, frozen=True):
    """A text that fills the rest of its row."""

    text: Text


Cell = Union[Text, Span, Callable[[int], Text]]
"""A text, one that fills the rest of the row, or a function that draws one for a width in cells."""


class Column(msgspec.Struct, Generic[View], frozen=True):
    """One column. It is ``least`` to ``most`` cells wide, or dropped: the highest ``rank`` first, 0 never. ``cell`` renders a
    view."""

    title: str
    cell: Callable[[View], Cell]
    least: int
    most: int
    rank: int = 0
    align: str = "left"


def widths(columns: Sequence[Column[View]], width: int) -> list[int]:
    """Return the width of each column in cells; 0 for those that are dropped. Spare cells are shared evenly."""
    shown = list(range(len(columns)))

    def spare() -> int:
        return width - sum(columns[n].least for n in shown) - GAP * (len(shown) - 1)

    while spare() < 0:
        droppable = [n for n in shown if columns[n].rank]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda n: (columns[n].rank, n)))
    got = [columns[n].least if n in shown else 0 for n in range(len(columns))]
    left = max(spare(), 0)
    modest = sorted(shown, key=lambda n: columns[n].most - columns[n].least)
    for served, n in enumerate(modest):
        extra = min(columns[n].most - columns[n].least, left // (len(modest) - served))
        got[n] += extra
        left -= extra
    return got


def table(columns: Sequence[Column[View]], views: Sequence[View], width: int) -> tuple[Text, list[Text]]:
    """Return the line of titles and a row for each of ``views``, each ``width`` cells wide."""
    chosen = [(column, size) for column, size in zip(columns, widths(columns, width), strict=True) if size]
    titles = [fit(Text(column.title, "dim"), size, column.align) for column, size in chosen]
    lines = []
    for view in views:
        cells = []
        for column, size in chosen:
            cell = column.cell(view)
            if isinstance(cell, Span):
                cells.append(cell.text)
                break
            cells.append(fit(cell if isinstance(cell, Text) else cell(size), size, column.align))
        lines.append(_joined(cells, width))
    return _joined(titles, width), lines


def _joined(cells: Sequence[Text], width: int) -> Text:
    return fit(Text(" " * GAP).join(cells), width)
