"""Formats numbers, times and bars for the screen, and makes users' text safe to print; pure, in the screen's process.

Widths are terminal cells.
"""

from __future__ import annotations

import re
import time

from rich.cells import cell_len
from rich.text import Text

LONGEST = 2000
"""Maximum characters of a user's text; no screen is wider."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
_CONTROL = "·"


def harmless(text: str) -> str:
    """Return ``text`` as one line that moves no cursor, changes no colour and hides nothing.

    Drops escape sequences; keeps the newest part of a line that overwrites itself (``\\r``, as progress bars do); turns tabs and
    line ends into spaces, and other control characters into ``·``; drops invisible and direction-changing characters.
    """
    if text.isprintable() and "\ufe0f" not in text:
        return text[:LONGEST]
    newest = text.rstrip("\r\n ").rpartition("\r")[2]
    return "".join(map(_visible, _SEQUENCE.sub("", newest[:LONGEST])))


def _visible(char: str) -> str:
    if char.isspace() and char not in "\x1c\x1d\x1e\x1f\x85":
        return " "
    if char.isprintable():
        return "" if "\ufe00" <= char <= "\ufe0f" else char
    if char < "\xa0" or "\ud800" <= char <= "\udfff":
        return _CONTROL
    return ""


def crop(text: str, width: int) -> str:
    """Truncate ``text`` to at most ``width`` cells, with an ellipsis."""
    if cell_len(text) <= width:
        return text
    line = Text(text)
    line.truncate(max(width, 0), overflow="ellipsis" if width > 0 else "crop")
    return line.plain


def fit(text: Text, width: int, align: str = "left") -> Text:
    """Return a copy of ``text`` of exactly ``width`` cells: truncated with an ellipsis, or padded."""
    line = text.copy()
    width = max(width, 0)
    if line.cell_len > width:
        line.truncate(width, overflow="ellipsis" if width else "crop")
    space = width - line.cell_len
    if align == "right":
        line.pad_left(space)
    else:
        line.pad_right(space)
    return line


def bar(fraction: float | None, width: int, style: str = "cyan") -> Text:
    """Draw a bar of ``width`` cells, ``fraction`` (0 to 1) of it filled; None: empty."""
    if width <= 0:
        return Text()
    halves = round(2 * width * min(max(fraction or 0.0, 0.0), 1.0))
    full, half = divmod(halves, 2)
    filled = "━" * full + "╸" * half
    return Text.assemble((filled, style), ("┄" * (width - len(filled)), "dim"))


def level(percent: float) -> str:
    """Return the colour of a memory bar at ``percent``."""
    return "red" if percent >= 95 else "yellow" if percent >= 85 else "cyan"


def duration(milliseconds: float) -> str:
    """Format a short time: ``4.1 ms``, ``3 ms``, ``812 ms``, ``1.2 s``, ``48 s``, ``3m 12s``, ``2h 05m``, ``3d 04h``."""
    if milliseconds < 9.95:
        return f"{milliseconds:.{0 if isinstance(milliseconds, int) else 1}f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s" if milliseconds < 9950 else span(milliseconds / 1000)


def span(seconds: float) -> str:
    """Format a long time: ``7 s``, ``3m 12s``, ``2h 05m``, ``3d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def mib(size: float) -> str:
    """Format a size in MiB: ``812 MiB`` or ``12.3 GiB``."""
    return f"{size:.0f} MiB" if size < 10_000 else f"{size / 1024:.1f} GiB"


def clock(milliseconds: int) -> str:
    """Format a time in milliseconds since 1970 as local time of day, ``12:31:02``."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(milliseconds / 1000))
    except (OverflowError, ValueError, OSError):  # out of the calendar's range
        return "--:--:--"
