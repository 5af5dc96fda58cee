"""A ``TMPDIR`` for each worker generation, removed when all that could write to it is gone; runs in the template process."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from supervisor.host import files
from supervisor.template import child
from supervisor.template.reap import Reaper

_AFTER = 0.05
"""Seconds that removing waits: a refresh asks for a fork at once, and should not stand behind the fork of a cleaner."""


class Folders:
    """Makes and removes ``{root}/{slot}-{generation}``; a full one is left to a forked cleaner, so no worker's fork waits."""

    def __init__(self, root: str, reaper: Reaper) -> None:
        """Keep folders under ``root``, which is made when it is missing; ``reaper`` is told of cleaners."""
        self._root = Path(root)
        self._reaper = reaper
        self._discarded: list[Path] = []
        self._due: float | None = None
        self._cleaner = 0

    @property
    def next_check(self) -> float | None:
        """When ``clean`` must be called (monotonic seconds); None while a cleaner runs, whose end is a reason of its own."""
        return None if self._cleaner in self._reaper.spared else self._due

    def make(self, slot: str, generation: int) -> str:
        """The path of a new folder that its owner alone may enter.

        Raises:
            OSError: it cannot be made, or exists; or the root is a link or another user's.
        """
        path = self._path(slot, generation)
        try:
            files.own_folder(self._root)  # who cleans up /tmp may have made room there for a folder of another user
        except FileNotFoundError:
            files.make_folders(self._root)
        path.mkdir(0o700)
        return str(path)

    def discard(self, slot: str, generation: int) -> None:
        """Remove that folder: at once when it is empty, else soon."""
        path = self._path(slot, generation)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            self._discarded.append(path)
            self._due = self._due or time.monotonic() + _AFTER

    def clean(self) -> None:
        """Fork a cleaner if it is time and none runs."""
        if self.next_check is None or time.monotonic() < self.next_check:
            return
        own_pid = os.getpid()
        try:
            pid = child.fork()
        except OSError:
            self._due = time.monotonic() + 1  # no room for another process: the folders can wait
            return
        if pid == 0:
            _be_cleaner(self._discarded, own_pid)
        self._reaper.spared.add(pid)
        self._cleaner, self._due = pid, None
        self._discarded.clear()

    def _path(self, slot: str, generation: int) -> Path:
        return self._root / f"{slot}-{generation}"


def _be_cleaner(paths: list[Path], template: int) -> None:
    try:
        child.die_with(template)
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os._exit(0)
