"""Finds and checks a store's files before it is locked or opened; in the supervisor process.

Existing files are not changed: anything but a regular file of this user is rejected, and a mode that lets others read is
reported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from pathlib import Path

from supervisor.errors import StoreError
from supervisor.host import files

SQLITES = ("-wal", "-shm", "-journal")
"""Suffixes of SQLite's own files. SQLite gives them the store's mode, and rejects links itself."""

_MOST_LINKS = 40
"""The kernel's own limit (path_resolution(7))."""


def resolve(path: Path) -> Path:
    """Resolve ``path`` to the store's file and create the folder above it; nothing else is created.

    A link is followed, as SQLite does: its other files, and ours, then lie beside the link's target.

    Raises:
        StoreError: the file cannot be there, or is no regular file of this user.
    """
    try:
        file = _follow(path)
        check_files(file)
        with contextlib.suppress(FileNotFoundError):
            os.close(files.open_folder(Path(f"{file}.secrets")))
        files.make_folders(file.parent)
    except OSError as error:
        raise opening_error(path, error) from error
    return file


def make(path: Path) -> int:
    """Create the store's file and the folders above it if missing; return a descriptor that identifies the file.

    The descriptor cannot read (O_PATH in open(2)): closing it keeps the locks that this process has on the file, which closing
    any other would drop (fcntl(2)). While it is open, no other file can get the same inode number.

    Raises:
        StoreError: it cannot be made, or is no regular file of this user.
    """
    try:
        files.make_folders(path.parent)
        check_files(path)
        with contextlib.suppress(FileExistsError):
            os.close(files.make_file(path))
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise opening_error(path, error) from error
    return fd


def check_files(path: Path) -> None:
    """Check that the store's file and SQLite's files beside it, if present, are regular files of this user.

    Raises:
        StoreError: one is not.
        OSError: one cannot be read.
    """
    for file in (path, *_sqlites(path)):
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        _check(file, status)


def is_same_file(path: Path, made: int) -> bool:
    """Return whether ``path`` is still the file of ``made``, the descriptor from ``make``."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(made))
    except OSError:
        return False


def permission_warning(path: Path) -> str | None:
    """Return a warning for the user if others may read files of the store, else ``None``."""
    found = []
    for file in (path, *_sqlites(path), Path(f"{path}.lock"), Path(f"{path}.secrets")):
        with contextlib.suppress(OSError):  # most do not exist
            status = file.lstat()
            if status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode):
                found.append(str(file))
    if not found:
        return None
    return f"{path}: other users may read this job store; to make it private: chmod -R go= {shlex.join(found)}"


def opening_error(path: Path, error: OSError) -> StoreError:
    """Make the ``StoreError`` for an error of the operating system."""
    return StoreError(f"{path}: this job store cannot be created or opened ({files.refusal(error, path)})")


def _check(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(
            f"{file}: this is {files.kind(status)}, not a regular file of yours; move it away, or name another file"
        )
    if not files.is_ours(status, file.parent):
        raise StoreError(f"{file}: this file belongs to user {status.st_uid}; run as that user, or name another file")


def _sqlites(path: Path) -> tuple[Path, ...]:
    return tuple(Path(f"{path}{ending}") for ending in SQLITES)


def _follow(path: Path) -> Path:
    """Follow the links at the end of ``path``; only the user's own and the administrator's are allowed."""
    for _ in range(_MOST_LINKS):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(status.st_mode):
            return path
        if status.st_uid not in (0, os.geteuid()):
            raise StoreError(f"{path}: this link belongs to user {status.st_uid}; name the file itself with --store")
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
