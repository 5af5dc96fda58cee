"""Watches the source files of a handler for ``--reload``; in a thread of the supervisor's process.

It polls them by ``os.stat``, which works on every file system, also on those without change notification.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

from supervisor.notice import FilesWatched
from supervisor.wire.messages import HandlerSpec

POLL_S = 0.5
"""Seconds between polls; more if a poll would otherwise take over a tenth of the time."""

SETTLE_S = 0.1
"""Seconds between polls after a change."""

QUIET_S = 0.2
"""How long files must be unchanged before a report: editors write a file in several steps, and several files at once."""

MAX_FILES = 20_000
"""Maximum number of watched files and folders, the nearest first."""

SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
"""Folders without the user's sources, besides hidden ones and virtual environments."""

ENVIRONMENTS = frozenset({"pyvenv.cfg", "conda-meta"})
"""Entries that mark a folder as a virtual environment."""

Mark = tuple[int, int, int, int]
"""A file's version: device and inode (a replacement has others), size, and time of modification (ns)."""


class SourceFiles:
    """The source files of a handler, and their changes. Time is passed in, in monotonic seconds."""

    def __init__(self, handler: HandlerSpec) -> None:
        self._file, self._roots = source_locations(handler)
        self._marks: dict[str, Mark] = {}
        self._changed: set[str] = set()
        self._changed_at = 0.0

    def begin(self) -> FilesWatched:
        """Scan for the first time; return a summary of the watched files."""
        self._marks, complete = self._scan()
        return FilesWatched(len(self._marks), _readable(self._roots[0]), None if complete else MAX_FILES)

    @property
    def pause(self) -> float:
        """Seconds to the next poll."""
        return SETTLE_S if self._changed else POLL_S

    def poll(self, now: float) -> tuple[str, ...]:
        """Scan again; return the names of the changed files once changes have settled."""
        before, (self._marks, _) = self._marks, self._scan()
        if changed := {self._name(path) for path, _ in before.items() ^ self._marks.items()}:
            self._changed |= changed
            self._changed_at = now
        missing = self._file is not None and self._file not in self._marks  # it is about to be replaced
        if missing or now - self._changed_at < QUIET_S:
            return ()
        changed, self._changed = self._changed, set()
        return tuple(sorted(changed))

    def _scan(self) -> tuple[dict[str, Mark], bool]:
        """Return the files' versions by path, and whether these are all. Files that cannot be read keep their old version."""
        found: dict[str, Mark] = {}
        seen: set[tuple[int, int]] = set()
        waiting = deque([*filter(None, [self._file]), *self._roots])
        while waiting and len(seen) < MAX_FILES:
            path = waiting.popleft()
            try:
                status = os.stat(path)  # noqa: PTH116 - a Path for each of thousands would cost more than the poll itself
                identity = (status.st_dev, status.st_ino)
                if identity in seen:
                    continue  # another name of the same file
                seen.add(identity)
                if stat.S_ISDIR(status.st_mode):
                    waiting += _list(path)
                else:
                    found[path] = (*identity, status.st_size, status.st_mtime_ns)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError:
                below = path + os.sep
                found |= {one: mark for one, mark in self._marks.items() if f"{one}{os.sep}".startswith(below)}
        return found, not waiting

    def _name(self, path: str) -> str:
        """Return ``path`` for the user, relative to the first folder."""
        if path == self._file:
            return _readable(Path(path).name)
        return _readable(path.removeprefix(self._roots[0].rstrip(os.sep) + os.sep))


def source_locations(handler: HandlerSpec) -> tuple[str | None, list[str]]:
    """Return the handler's file, if any, and the folders with its sources; first the one that its imports search first."""
    if handler.kind == "file":
        return handler.target, [str(Path(handler.target).resolve().parent)]
    here, name = str(Path.cwd()), handler.target.partition(".")[0]
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        # Other finders know packages of editable installs.
        spec = PathFinder.find_spec(name, [here]) or importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is not None:
        return None, [here, *((spec and spec.submodule_search_locations) or ())]
    return spec.origin if spec.has_location else None, [here]


def _list(folder: str) -> list[str]:
    """List the Python files and the folders in ``folder``."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in ENVIRONMENTS:
                return []
            if not entry.name.startswith(".") and (entry.name.endswith(".py") or _is_folder(entry, folder)):
                found.append(entry.path)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str], within: str) -> bool:
    """Return whether a folder is watched. Containers may have handlers in ``/``, beside the whole system."""
    with contextlib.suppress(OSError):
        return entry.name not in SKIPPED and entry.is_dir() and (within != os.sep or any(Path(entry.path).glob("*.py")))
    return False


def watch(
    files: SourceFiles,
    loop: asyncio.AbstractEventLoop,
    begun: Callable[[FilesWatched], None],
    changed: Callable[[tuple[str, ...]], None],
) -> Callable[[], None]:
    """Start a thread that calls, in ``loop``, ``begun`` once with a summary and ``changed`` with the names of changed files.

    Return a function that stops it, without waiting for a poll that hangs in the file system.
    """
    closing = threading.Event()

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(begun, files.begin())
            took = 0.0
            while not closing.wait(max(files.pause, 9 * took)):
                begin = time.monotonic()
                if names := files.poll(begin):
                    loop.call_soon_threadsafe(changed, names)
                took = time.monotonic() - begin

    threading.Thread(target=run, name="supervise-watch", daemon=True).start()
    return closing.set


def _readable(path: str) -> str:
    """Return ``path`` as text; file names may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
