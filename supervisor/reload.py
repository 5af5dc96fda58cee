"""Watches the source files of a handler for ``--reload``; in a thread of the supervisor's process.

It looks at them (``os.stat``), a few at a time: that works on every file system, also where the system tells of no changes. One
that hangs keeps only this thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.notice import FilesWatched
from supervisor.wire.messages import HandlerSpec

LOOK_S = 0.5
"""Seconds from one look to the next."""

SETTLE_S = 0.1
"""The same while changes come in."""

QUIET_S = 0.2
"""How long nothing may have changed before it is told: editors write a file in several steps, and several files at once."""

STEP = 500
"""How many files, folders and entries of folders one look takes, besides the handler's file and those that changed before: of
more, each look takes the next."""

MOST = 20_000
"""How many files and folders are watched, the nearest first."""

HOT = 100
"""How many files that changed before are looked at each time."""

SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
"""Folders that hold nobody's sources, besides hidden ones and those with one of ``ENVIRONMENTS`` in them."""

ENVIRONMENTS = frozenset({"pyvenv.cfg", "conda-meta"})
"""What virtual environments have in them."""

T = TypeVar("T")

Mark = tuple[int, int, int, int]
"""By what a file or folder is known to be the same: the time of its change (ns), its size, its inode and device. What takes the
place of another file has another inode."""


class Folder(msgspec.Struct, frozen=True):
    """What was found in a folder that had ``mark``. ``sure``: it was listed when that mark was no news any more. What is made
    in the same tick of the kernel's clock as a listing leaves the mark as it is."""

    mark: Mark
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    sure: bool = False


class SourceFiles:
    """What the source files of a handler are, and which have changed. Time is handed in, in monotonic seconds."""

    def __init__(self, handler: HandlerSpec) -> None:
        """Remember the handler's own file as it is now; the others at the first ``look``."""
        files, self._roots = places_of(handler)
        self.folder = self._roots[0]
        self.complete = True
        self._handler = files[0] if handler.kind == "file" else None
        self._marks = {path: mark for path in files if (mark := _mark_of(path, None)) is not None}
        self._folders: dict[str, Folder] = {}
        self._hot = dict.fromkeys(files)
        self._known = False
        self._walk = self._round()
        self._found: list[str] = []
        self._changed: dict[str, None] = {}
        self._changed_at = 0.0

    @property
    def pause(self) -> float:
        """Seconds to the next look."""
        return SETTLE_S if self._changed else LOOK_S

    def __len__(self) -> int:
        """How many files are watched."""
        return len(self._marks)

    def look(self, now: float) -> tuple[str, ...]:
        """Look at the next files; the first look takes all. Returns those that have changed, once that is over."""
        for path in tuple(self._hot):
            self._check(path)
        most = STEP if self._known else sys.maxsize
        if sum(1 for _ in itertools.islice(self._walk, most)) < most:
            self._walk = self._round()
            self._known = True
        if self._found:
            self._note_changes(now)
        if not self._changed or now - self._changed_at < QUIET_S:
            return ()
        if self._handler is not None and self._handler not in self._marks:
            return ()  # it is about to be replaced
        changed, self._changed = self._changed, {}
        return tuple(path for path in changed if not self._is_handler_by_another_name(path))

    def name(self, path: str) -> str:
        """``path`` for people."""
        if path == self._handler:
            return readable(Path(path).name)
        shown = os.path.relpath(path, self.folder)
        return readable(path if shown.startswith(os.pardir) else shown)

    def _is_handler_by_another_name(self, path: str) -> bool:
        """Its folder may have been named by a link, and is walked as what that leads to."""
        return self._handler not in (None, path) and self._marks.get(path) == self._marks[self._handler]

    def _note_changes(self, now: float) -> None:
        self._changed |= dict.fromkeys(self._found)
        self._changed_at = now
        self._hot |= dict.fromkeys(self._found[:HOT])
        while len(self._hot) > HOT:
            del self._hot[next(path for path in self._hot if path != self._handler)]
        self._found.clear()

    def _check(self, path: str) -> None:
        before = self._marks.get(path)
        after = _mark_of(path, before)
        if after == before:
            return
        if after is None:
            del self._marks[path]
        else:
            self._marks[path] = after
        if self._known or before is not None:
            self._found.append(path)

    def _round(self) -> Iterator[None]:
        """Look at everything once, the nearest first; one step for each look at the disk."""
        met: set[str] = set()
        inodes: set[tuple[int, ...]] = set()
        waiting = deque(self._roots)
        while waiting and len(met) + len(inodes) < MOST:
            folder = yield from self._open(waiting.popleft(), inodes)
            for path in folder.files[: MOST - len(met) - len(inodes)]:
                self._check(path)
                met.add(path)
                yield
            waiting.extend(folder.folders)
        self.complete = not waiting and len(met) + len(inodes) < MOST
        for path in self._marks.keys() - met:
            self._check(path)
            yield

    def _open(self, path: str, inodes: set[tuple[int, ...]]) -> Generator[None, None, Folder]:
        """The folder ``path`` as it is now; empty if it was met before in this round, by another name."""
        yield
        before = self._folders.get(path)
        mark = _mark_of(path, None if before is None else before.mark)
        if mark is None:
            self._folders.pop(path, None)
            return Folder((0, 0, 0, 0))
        if mark[2:] in inodes:
            return Folder(mark)
        inodes.add(mark[2:])
        same = before is not None and before.mark == mark
        if before is not None and same and before.sure:
            return before
        try:
            files, folders = yield from _list(path)
        except OSError:  # it may not be read, or not now
            return before or Folder(mark)
        self._folders[path] = folder = Folder(mark, files, folders, sure=same)
        return folder


def places_of(handler: HandlerSpec) -> tuple[list[str], list[str]]:
    """The files that ``handler`` is known by, and the folders below which its sources are; first of all that which comes first
    when it imports something."""
    if handler.kind == "file":
        return [handler.target], [str(Path(handler.target).resolve().parent)]
    folder = str(Path.cwd())
    spec = _find(handler.target.partition(".")[0], folder)
    if spec is None:
        return [], [folder]
    if spec.submodule_search_locations is not None:
        return [], [folder, *spec.submodule_search_locations]
    return [spec.origin] if spec.has_location and spec.origin else [], [folder]


def _find(name: str, folder: str) -> ModuleSpec | None:
    try:
        # Finders of other kinds know packages that were installed for editing.
        return PathFinder.find_spec(name, [folder]) or importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _mark_of(path: str, before: Mark | None) -> Mark | None:
    """``None`` if nothing is there; ``before`` if that cannot be told now."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of thousands would cost more than the look itself
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return before
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _list(path: str) -> Generator[None, None, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The Python files and the folders in the folder ``path``; one step for each entry.

    Raises:
        OSError: it cannot be read.
    """
    files, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            yield
            if entry.name in ENVIRONMENTS:
                return (), ()
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".py"):
                files.append(entry.path)
            elif entry.name not in SKIPPED and _is_folder(entry):
                folders.append(entry.path)
    if path == os.sep:  # where containers have their handlers beside the whole system
        folders = [folder for folder in folders if _has_sources(folder)]
    return tuple(sorted(files)), tuple(sorted(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _has_sources(folder: str) -> bool:
    try:
        return any(Path(folder).glob("*.py"))
    except OSError:
        return False


class Watch:
    """The thread that looks."""

    def __init__(
        self,
        files: SourceFiles,
        loop: asyncio.AbstractEventLoop,
        begun: Callable[[FilesWatched], None],
        changed: Callable[[tuple[str, ...]], None],
    ) -> None:
        """Have ``loop`` call ``begun`` once with what is watched, and ``changed`` with the names of what changed."""
        self._files = files
        self._loop = loop
        self._begun = begun
        self._changed = changed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervise-watch", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more. It does not wait for a look that a file system does not answer."""
        self._closing.set()

    def _run(self) -> None:
        files = self._files
        files.look(time.monotonic())
        self._tell(self._begun, watched(files))
        while not self._closing.wait(files.pause):
            if changed := files.look(time.monotonic()):
                self._tell(self._changed, tuple(map(files.name, changed)))

    def _tell(self, call: Callable[[T], None], what: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, what)


def watched(files: SourceFiles) -> FilesWatched:
    """What is watched."""
    return FilesWatched(len(files), readable(files.folder), None if files.complete else MOST)


def readable(path: str) -> str:
    """``path`` as text: file names are any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
