"""Interprets a job's progress: a handler may report any JSON value, and a bar is shown if it contains a share; pure.

Recognised: an object with ``percent``, ``progress`` or ``fraction``; an object with a count and a total (``step`` and ``of``,
``current`` and ``total``, …); a text with ``45%`` or ``3/10`` in it, as in RunPod's examples. Anything else is shown as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.text import Text

from supervisor.dashboard.table import Cell
from supervisor.dashboard.text import bar, crop, harmless

_LONGEST = 16_384
_PERCENT = ("percent", "percentage", "pct")
_SHARE = ("progress", "fraction")
_COUNT = ("step", "current", "done", "completed", "index", "iteration", "epoch", "frame", "n", "i")
_TOTAL = ("of", "total", "steps", "total_steps", "num_steps", "max", "count", "length")
_WORDS = ("message", "text", "stage", "status", "phase", "detail", "description")
_IN_TEXT = re.compile(r"(?P<percent>\d{1,3}(?:\.\d+)?) ?%|(?P<done>\d{1,9}) ?(?:/|of) ?(?P<total>\d{1,9})")


class JobProgress(msgspec.Struct, frozen=True):
    """Progress of a job: ``share`` from 0 to 1 if known, and ``text`` as one printable line, maybe empty."""

    share: float | None
    text: str


def read(value: bytes | msgspec.Raw) -> JobProgress:
    """Interpret the JSON text ``value``."""
    data = bytes(value)
    if len(data) > _LONGEST:
        return JobProgress(None, harmless(data[:_LONGEST].decode("utf-8", "replace")))
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return JobProgress(None, harmless(data.decode("utf-8", "replace")))
    if isinstance(found, str):
        return JobProgress(_share_of_text(found), harmless(found))
    if isinstance(found, dict):
        return _of_object(found)
    return JobProgress(None, _compact(found))


def shown(value: msgspec.Raw) -> Cell:
    """Return a cell for the JSON text ``value``: a bar if it has a share, and as much text as fits; empty for ``null``."""
    if bytes(value) == b"null":
        return Text()
    found = read(value)
    share = found.share
    if share is None:
        return Text(found.text)

    def draw(width: int) -> Text:
        percent = f"{100 * share:3.0f}%"
        words = crop(found.text, width // 2 - 1) if width >= 22 else ""
        room = width - len(percent) - 1 - (len(words) + 2 if words else 0)
        line = Text.assemble(bar(share, min(room, 24)), f" {percent}")
        return line.append(f"  {words}", "dim") if words else line

    return draw


def _of_object(found: Mapping[str, Any]) -> JobProgress:
    words = next((harmless(found[key]) for key in _WORDS if isinstance(found.get(key), str)), "")
    share, counted = _share_of_object(found)
    if share is None:
        share = _share_of_text(words)
    if share is None:
        return JobProgress(None, _compact(found))
    return JobProgress(share, " ".join(part for part in (counted, words) if part))


def _share_of_object(found: Mapping[str, Any]) -> tuple[float | None, str]:
    done, total = _number(found, _COUNT), _number(found, _TOTAL)
    counted = f"{done:g}/{total:g}" if done is not None and total else ""
    percent = _number(found, _PERCENT)
    if percent is not None:
        return _clamp(percent / 100), counted
    share = _number(found, _SHARE)
    if share is not None and not counted:
        return _clamp(share if share <= 1 else share / 100), ""
    if done is not None and total:
        return _clamp(done / total), counted
    return None, ""


def _number(found: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    for key in keys:
        value = found.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number) and number >= 0:
                return number
    return None


def _share_of_text(text: str) -> float | None:
    match = _IN_TEXT.search(text[:200])
    if match is None:
        return None
    if match["percent"] is not None:
        return _clamp(float(match["percent"]) / 100)
    total = int(match["total"])
    return _clamp(int(match["done"]) / total) if total else None


def _clamp(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _compact(found: Any) -> str:
    return harmless(json.dumps(found, ensure_ascii=False, separators=(", ", ": ")))
