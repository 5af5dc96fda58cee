"""Where a store's files lie, and whose they are: found and judged before it is locked or opened; in the supervisor process.

Nothing that is there is changed: what is no plain file of this user's is refused, and a mode that lets others read is said.
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
"""What SQLite puts behind the store's name for files of its own. It gives them the store's mode, and refuses links itself."""

_MOST_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""


def settle(path: Path) -> Path:
    """The file that ``path`` means, in a folder that is there, made if need be; nothing else is made.

    A link is followed, as SQLite does: its other files then lie beside the file that the link leads to, and so do ours.

    Raises:
        StoreError: it cannot be there, or something is there that is no file of this user's.
    """
    try:
        file = _follow(path)
        look(file)
        with contextlib.suppress(FileNotFoundError):
            os.close(files.open_folder(Path(f"{file}.secrets")))
        files.make_folders(file.parent)
    except OSError as error:
        raise cannot_be_opened(path, error) from error
    return file


def make(path: Path) -> int:
    """Make the store's file and the folders above it, as far as they are not there; a descriptor by which it is known again.

    That is one by which nothing can be read (O_PATH in open(2)): closing it leaves the locks alone that this process has on the
    file, which closing any other would drop (fcntl(2)). And the file's number goes to no other while it is held.

    Raises:
        StoreError: it cannot be made, or something is there that is no file of this user's.
    """
    try:
        files.make_folders(path.parent)
        look(path)
        with contextlib.suppress(FileExistsError):
            os.close(files.make_file(path))
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _judge(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise cannot_be_opened(path, error) from error
    return fd


def look(path: Path) -> None:
    """Refuse what is no file of this user's, in the place of the store or of one of SQLite's files.

    Raises:
        StoreError: there is such a thing.
        OSError: it cannot be looked at.
    """
    for file in (path, *_sqlites(path)):
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        _judge(file, status)


def is_still(path: Path, made: int) -> bool:
    """Whether ``path`` is the file that ``make`` gave the descriptor ``made`` of."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(made))
    except OSError:
        return False


def open_to_others(path: Path) -> str | None:
    """What to tell the user of those of the store's files that others may use, if there are any."""
    found = []
    for file in (path, *_sqlites(path), Path(f"{path}.lock"), Path(f"{path}.secrets")):
        with contextlib.suppress(OSError):  # most are not there
            status = file.lstat()
            if status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode):
                found.append(str(file))
    if not found:
        return None
    return f"{path}: other users may read this job store; to keep it to yourself: chmod -R go= {shlex.join(found)}"


def cannot_be_opened(path: Path, error: OSError) -> StoreError:
    """The ``StoreError`` for what the operating system refused."""
    return StoreError(f"{path}: this job store cannot be made or opened ({files.refusal(error, path)})")


def _judge(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(
            f"{file}: this is {files.kind(status)} and no file of yours; move it away, or name another file"
        )
    if not files.is_ours(status, file.parent):
        raise StoreError(f"{file}: this file belongs to user {status.st_uid}; run as that user, or name another file")


def _sqlites(path: Path) -> tuple[Path, ...]:
    return tuple(Path(f"{path}{ending}") for ending in SQLITES)


def _follow(path: Path) -> Path:
    """The file behind the links at the end of ``path``; only the user's own and the administrator's are followed."""
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
