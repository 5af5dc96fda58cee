"""A section of the screen: the rows that it needs, and how it is drawn; pure, in the screen's process."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec
from rich.text import Text


class Drawn(msgspec.Struct, frozen=True):
    """A section's rows, and a note for its divider."""

    rows: list[Text]
    note: str = ""


class Rank(enum.IntEnum):
    """Sections by priority for rows."""

    SLOTS = 0
    JOBS = 1
    GPUS = 2
    LOG = 3
    ENDED = 4
    RUNNING = 5


class Section(msgspec.Struct, frozen=True):
    """One section of the screen. ``draw`` is called with its rows (without the divider) and its width."""

    rank: Rank
    title: str
    least: int
    usual: int
    most: int
    draw: Callable[[int, int], Drawn]


def window(total: int, room: int, focus: int = 0) -> tuple[slice, str]:
    """Choose ``room`` of ``total`` rows, including ``focus``; return them, and a text for the divider if not all are shown."""
    room = max(room, 0)
    if total <= room:
        return slice(total), ""
    first = min(max(focus - room // 2, 0), total - room)
    which = f"{first + 1}" if room == 1 else f"{first + 1}-{first + room}"
    return slice(first, first + room), f"{which} of {total}"
