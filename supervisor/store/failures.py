"""Translates SQLite's errors into messages for the user; in the supervisor process."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from supervisor.errors import LockedError, StoreError, SuperviseError, TransitionError

# Matched against SQLite's own texts (sqlite3_errstr): Python 3.10 does not give its error codes.
_MEANINGS = (
    ("is full", "the disk is full; free some space there"),
    ("disk I/O error", "its disk cannot be read or written; check the disk"),
    ("malformed", "the file is damaged; move it away and start again"),
    ("not a database", "this is no job store; name another file with --store"),
    ("readonly", "the file cannot be written; check its owner and permissions"),
    ("unable to open", "the file cannot be opened; check that it is a file of yours in a folder of yours"),
)


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """Make the ``StoreError`` that names ``path`` and the remedy; a constraint of the schema gives a ``TransitionError``."""
    text = str(error)
    if isinstance(error, sqlite3.IntegrityError):
        return TransitionError(f"the job store rejected a write: {text}")
    for words, meaning in _MEANINGS:
        if words in text:
            return StoreError(f"{path}: {meaning} ({text})")
    return StoreError(f"{path}: the job store failed ({text})")


def explain_opening(error: sqlite3.Error, path: Path) -> SuperviseError:
    """Make the error as ``explain`` does; another process's lock gives a ``LockedError``, with its PID if that is known."""
    if "locked" not in str(error):
        return explain(error, path)
    pid = _lock_holder(path)
    who = "another supervisor" if pid is None else f"another supervisor (process {pid})"
    return LockedError(f"{path}: {who} has this job store open; stop it, or name another file with --store")


def _lock_holder(path: Path) -> int | None:
    """Return the PID that has a lock on the file, from ``/proc/locks`` (proc(5)), or ``None``.

    The file itself is not opened: closing it again would drop the locks that this process has on it (fcntl(2)).
    """
    try:
        status = path.stat()
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in lines:
        words = line.split()  # 1: POSIX ADVISORY WRITE 4711 fe:00:131085 1073741826 1073742335
        if file in words:
            pid = words[words.index(file) - 1]
            return int(pid) if pid.isdecimal() and pid != "0" else None
    return None
