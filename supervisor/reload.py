"""Watches the source files of a handler for ``--reload``; in a thread of the supervisor's process.

It looks at them (``os.stat``): that works on every file system, also where the system tells of no changes.
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

LOOK_S = 0.5
"""Seconds from one look to the next; more where a look takes so long that it would be over a tenth of the time."""

SETTLE_S = 0.1
"""The same while changes come in."""

QUIET_S = 0.2
"""How long nothing may have changed before it is told: editors write a file in several steps, and several files at once."""

MOST = 20_000
"""How many files and folders are watched, the nearest first."""

SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
"""Folders that hold nobody's sources, besides hidden ones and virtual environments, which have one of the following in them."""

ENVIRONMENTS = frozenset({"pyvenv.cfg", "conda-meta"})

Mark = tuple[int, int, int, int]
"""By what a file is known to be the same: its device and inode (another file that takes its place has others), its size, and the
time of its change (ns)."""


class SourceFiles:
    """The source files of a handler, and which have changed. Time is handed in, in monotonic seconds."""

    def __init__(self, handler: HandlerSpec) -> None:
        self._file, self._roots = places_of(handler)
        self._marks: dict[str, Mark] = {}
        self._changed: set[str] = set()
        self._changed_at = 0.0

    def begin(self) -> FilesWatched:
        """Look for the first time; returns what is watched."""
        self._marks, complete = self._scan()
        return FilesWatched(len(self._marks), _readable(self._roots[0]), None if complete else MOST)

    @property
    def pause(self) -> float:
        """Seconds to the next look."""
        return SETTLE_S if self._changed else LOOK_S

    def look(self, now: float) -> tuple[str, ...]:
        """Look again; returns the names of the files that have changed, once that is over."""
        before, (self._marks, _) = self._marks, self._scan()
        if changed := {self._name(path) for path, _ in before.items() ^ self._marks.items()}:
            self._changed |= changed
            self._changed_at = now
        is_gone = self._file is not None and self._file not in self._marks  # it is about to be replaced
        if is_gone or now - self._changed_at < QUIET_S:
            return ()
        told, self._changed = tuple(sorted(self._changed)), set()
        return told

    def _scan(self) -> tuple[dict[str, Mark], bool]:
        """The files as they are now, by path, and whether these are all. What may not be looked at now is as it was."""
        found: dict[str, Mark] = {}
        met: set[tuple[int, int]] = set()
        waiting = deque([*filter(None, [self._file]), *self._roots])
        while waiting and len(met) < MOST:
            path = waiting.popleft()
            try:
                status = os.stat(path)  # noqa: PTH116 - a Path for each of thousands would cost more than the look itself
                identity = (status.st_dev, status.st_ino)
                if identity in met:
                    continue  # by another name
                met.add(identity)
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
        """``path`` for people."""
        if path == self._file:
            return _readable(Path(path).name)
        return _readable(path.removeprefix(self._roots[0].rstrip(os.sep) + os.sep))


def places_of(handler: HandlerSpec) -> tuple[str | None, list[str]]:
    """The file that ``handler`` is known by, if any, and the folders below which its sources are; first of all that which comes
    first when it imports something."""
    if handler.kind == "file":
        return handler.target, [str(Path(handler.target).resolve().parent)]
    here, name = str(Path.cwd()), handler.target.partition(".")[0]
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        # Finders of other kinds know packages that were installed for editing.
        spec = PathFinder.find_spec(name, [here]) or importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is not None:
        return None, [here, *((spec and spec.submodule_search_locations) or ())]
    return spec.origin if spec.has_location else None, [here]


def _list(folder: str) -> list[str]:
    """The Python files and the folders in ``folder``."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in ENVIRONMENTS:
                return []
            if not entry.name.startswith(".") and (entry.name.endswith(".py") or _is_folder(entry, folder)):
                found.append(entry.path)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str], within: str) -> bool:
    """Whether it is one that is watched. In ``/`` containers have their handlers beside the whole system."""
    with contextlib.suppress(OSError):
        return entry.name not in SKIPPED and entry.is_dir() and (within != os.sep or any(Path(entry.path).glob("*.py")))
    return False


def watch(
    files: SourceFiles,
    loop: asyncio.AbstractEventLoop,
    begun: Callable[[FilesWatched], None],
    changed: Callable[[tuple[str, ...]], None],
) -> Callable[[], None]:
    """Start a thread that has ``loop`` call ``begun`` once with what is watched, and ``changed`` with the names of what changed.

    Returns what ends it; that does not wait for a look that a file system does not answer.
    """
    closing = threading.Event()

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(begun, files.begin())
            took = 0.0
            while not closing.wait(max(files.pause, 9 * took)):
                begin = time.monotonic()
                if names := files.look(begin):
                    loop.call_soon_threadsafe(changed, names)
                took = time.monotonic() - begin

    threading.Thread(target=run, name="supervise-watch", daemon=True).start()
    return closing.set


def _readable(path: str) -> str:
    """``path`` as text: file names are any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
