"""A ``TMPDIR`` for each worker generation, removed when all its processes have exited; runs in the template process."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from supervisor.host import files
from supervisor.template import child
from supervisor.template.reap import Reaper

_AFTER = 0.05
"""Seconds before a cleaner is forked: the fork that a refresh requests right away comes first."""


class Folders:
    """Creates and removes ``{root}/{slot}-{generation}``. A forked cleaner empties folders, so that no worker's fork waits."""

    def __init__(self, root: str, reaper: Reaper) -> None:
        """Keep folders under ``root``, which is created if missing; ``reaper`` is to spare the cleaners."""
        self._root = Path(root)
        self._reaper = reaper
        self._discarded: list[Path] = []
        self._due: float | None = None
        self._cleaner = 0

    @property
    def next_check(self) -> float | None:
        """Time by which ``clean`` must be called (monotonic seconds); None while a cleaner runs, whose exit wakes the loop."""
        return None if self._cleaner in self._reaper.spared else self._due

    def make(self, slot: str, generation: int) -> str:
        """Create a folder that only its owner may enter, and return its path.

        Raises:
            OSError: it cannot be created, or exists; or the root is a link or another user's.
        """
        path = self._path(slot, generation)
        try:
            files.own_folder(self._root)  # after a clean-up of /tmp, another user may have taken the name
        except FileNotFoundError:
            files.make_folders(self._root)
        path.mkdir(0o700)
        return str(path)

    def discard(self, slot: str, generation: int) -> None:
        """Remove that folder: at once if it is empty, else by a cleaner."""
        path = self._path(slot, generation)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            self._discarded.append(path)
            self._due = self._due or time.monotonic() + _AFTER

    def clean(self) -> None:
        """Fork a cleaner if one is due and none runs."""
        if self.next_check is None or time.monotonic() < self.next_check:
            return
        own_pid = os.getpid()
        try:
            pid = child.fork()
        except OSError:
            self._due = time.monotonic() + 1  # too many processes: try again later
            return
        if pid == 0:
            _run_cleaner(self._discarded, own_pid)
        self._reaper.spared.add(pid)
        self._cleaner, self._due = pid, None
        self._discarded.clear()

    def _path(self, slot: str, generation: int) -> Path:
        return self._root / f"{slot}-{generation}"


def _run_cleaner(paths: list[Path], template: int) -> None:
    try:
        child.die_with(template)
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os._exit(0)
