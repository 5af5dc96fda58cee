"""Reads options from their sources, with the name of the source for errors; used by ``resolve`` in the supervisor's process.

Each function returns the given values by field. Of two joined results the later wins.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from supervisor.config.kinds import Secret, can_be_key, nearest
from supervisor.config.settings import OPTIONS
from supervisor.errors import UsageError


class Given(msgspec.Struct, frozen=True):
    """A value as given, and its source ``where``: ``--port``, ``SUPERVISE_PORT``, ``port in supervise.toml``."""

    value: object
    where: str


def from_command_line(words: Mapping[str, object]) -> dict[str, Given]:
    """Return the options of the command line; ``None`` and empty lists mean not given."""
    return {name: Given(value, OPTIONS[name].dashed) for name, value in words.items() if value not in (None, (), [])}


def from_keywords(keywords: Mapping[str, object]) -> dict[str, Given]:
    """Return the options among a Python program's keywords."""
    return {name: Given(value, f"keyword {name}") for name, value in keywords.items() if value is not None}


def from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """Read the ``SUPERVISE_*`` variables; a list that two of them set is joined.

    An empty one means not given: compose files cannot leave a variable out.
    """
    given: dict[str, Given] = {}
    for name, option in OPTIONS.items():
        found = {variable: text for variable in option.variables if (text := environ.get(variable, "")).strip()}
        if found:
            given[name] = Given(",".join(found.values()), " and ".join(found))
    return given


def from_file(path: Path, where: str) -> dict[str, Given]:
    """Read the TOML file at ``path``, with keys in kebab-case or snake_case. ``where`` is the source of the path.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a key that is no option.
    """
    given: dict[str, Given] = {}
    for key, value in _load_toml(path, where).items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            raise UsageError(
                f"[{key}] in {path.name}: sections are not supported; write the options at the top of the file"
            )
        if name not in OPTIONS or name == "config":
            raise UsageError(f"{key} in {path.name}: no such option{nearest(name, OPTIONS)}")
        if name in given:
            raise UsageError(f"{key} in {path.name}: duplicate option; remove one")
        given[name] = Given(value, f"{key} in {path.name}")
    return given


def _load_toml(path: Path, where: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - needed only with a config file
    else:
        import tomli as tomllib  # noqa: PLC0415 - as above
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{where}: cannot read {path}: {error.strerror}; name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {path} is not TOML: {error}") from error
    return table


def read_keys(path: Path, where: str) -> tuple[str, ...]:
    """Read API keys from the file at ``path``, one a line; ``#`` starts a comment. ``where`` is the source of the path.

    Raises:
        UsageError: it cannot be read, or has no key, or one that a header cannot carry.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"{where}: cannot read {path}: {error.strerror}; name a file of keys, one a line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: {path} is not text; name a file of keys, one a line") from error
    keys = tuple(Secret(line) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{where}: {path} has no key in it; write one a line")
    for number, line in enumerate(lines, start=1):
        if not line.startswith("#") and not can_be_key(line):
            raise UsageError(
                f"{where}: line {number} of {path} is not a key; write visible ASCII characters without spaces"
            )
    return keys
