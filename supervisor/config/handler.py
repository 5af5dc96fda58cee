"""Parses HANDLER of the command line: a file, a module or a function in one; in the supervisor's process."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from supervisor.config.kinds import dotted
from supervisor.errors import HandlerError
from supervisor.host import files
from supervisor.wire.messages import HandlerSpec


def parse_handler(text: str, argv: tuple[str, ...] = ()) -> HandlerSpec:
    """Parse HANDLER: a file if it ends in ``.py``, has a slash or exists, else a module or ``module:function``.

    Nothing is imported: a worker finds out if the module exists.

    Raises:
        HandlerError: the file does not exist, or this is no module's name.
    """
    head, colon, function = text.rpartition(":")
    if colon and head.endswith(".py") and not files.is_file(Path(text)):
        name = head.removesuffix(".py").strip("./").replace("/", ".")
        raise HandlerError(
            f"{text}: a file is served whole; write {head}, or {name}:{function} for that function alone"
        )
    try:
        path = files.at_home(Path(text))
    except ValueError as error:
        raise HandlerError(str(error)) from None
    if text.endswith(".py") or "/" in text or files.is_file(path):
        return HandlerSpec("file", str(_readable(path, text)), argv=argv)
    module, colon, function = text.partition(":")
    if not dotted(module) or (colon and not dotted(function)):
        raise HandlerError(f"{text}: no such file, and not a module's name{_near_files(path)}")
    return HandlerSpec("function" if colon else "module", module, function or None, argv)


def _readable(path: Path, text: str) -> Path:
    if files.is_folder(path):
        found = ", ".join(sorted(str(file) for file in path.glob("*.py"))[:5])
        raise HandlerError(f"{text}: a folder; name the file in it{': ' + found if found else ''}")
    if not files.is_file(path):
        if not files.is_folder(path.parent):
            raise HandlerError(f"{text}: no such file: there is no folder {path.parent}{_near_files(path.parent)}")
        raise HandlerError(f"{text}: no such file{_near_files(path)}")
    if not os.access(path, os.R_OK):
        raise HandlerError(f"{text}: not readable by this user; change its permissions")
    return path.absolute()


def _near_files(path: Path) -> str:
    """Suggest the nearest Python file or folder beside ``path``, for a message; empty if there is none."""
    try:
        names = {file.name: file for file in path.parent.iterdir() if file.suffix == ".py" or file.is_dir()}
    except OSError:
        return ""  # the folder does not exist or cannot be read
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""
