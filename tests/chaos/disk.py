"""A small disk for the stores that can be filled up: a file system in memory, where this process may mount one; in the killer."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

SIZE_MIB = 256
_PIECE = 2**20


class Disk:
    """The disk at ``path``, which is made; where none may be mounted it is an ordinary folder, never full."""

    def __init__(self, path: Path, *, small: bool) -> None:
        """Make it; an ordinary folder if it need not be ``small``."""
        path.mkdir()
        self.path = path
        self._filler = path / "filler"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "chaos", str(path)]
        self.why_not = "not wanted" if not small else "not root" if os.geteuid() else _failure(mount)

    @property
    def fills(self) -> bool:
        """Whether it can be filled."""
        return self.why_not == ""

    def fill(self) -> None:
        """Leave no room for another byte."""
        with open(self._filler, "wb", buffering=0) as filler:
            size = _PIECE
            while size:
                try:
                    while filler.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                size //= 2

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, with all that is on it."""
        if self.fills:
            self.free()
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True)


def _failure(command: list[str]) -> str:
    """What the command complains of; empty: nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
