"""What a part of the picture is: how many rows it needs, and how it is drawn; pure."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec
from rich.text import Text


class Drawn(msgspec.Struct, frozen=True):
    """A section's rows, and a remark for its divider."""

    rows: list[Text]
    note: str = ""


class Rank(enum.IntEnum):
    """The parts in the order in which they get room."""

    SLOTS = 0
    JOBS = 1
    GPUS = 2
    LOG = 3
    ENDED = 4
    RUNNING = 5


class Section(msgspec.Struct, frozen=True):
    """One part of the picture. ``draw`` takes the rows (divider not counted) and the width it has."""

    rank: Rank
    title: str
    least: int
    usual: int
    most: int
    draw: Callable[[int, int], Drawn]


def window(total: int, room: int, focus: int = 0) -> tuple[slice, str]:
    """Which ``room`` of ``total`` rows are shown so that ``focus`` is among them, and that in words if these are not all."""
    room = max(room, 0)
    if total <= room:
        return slice(total), ""
    first = min(max(focus - room // 2, 0), total - room)
    which = f"{first + 1}" if room == 1 else f"{first + 1}-{first + room}"
    return slice(first, first + room), f"{which} of {total}"
