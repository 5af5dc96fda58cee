"""The statements of the running store, read from ``queries.sql``; in the supervisor process."""

from __future__ import annotations

import re
from pathlib import Path

_HEADING = re.compile(r"^-- (name|fragment): (\w+)\n", re.MULTILINE)


def _read() -> dict[str, str]:
    # split() with two groups: what stands before the first heading, then kind, name, text, kind, name, text, …
    parts = _HEADING.split(Path(__file__).with_name("queries.sql").read_text(encoding="utf-8"))[1:]
    sections = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=True))
    fragments = {name: text.strip() for kind, name, text in sections if kind == "fragment"}
    return {name: text.strip().format_map(fragments) for kind, name, text in sections if kind == "name"}


QUERIES = _read()
"""Statements by name, with the fragments inserted."""
