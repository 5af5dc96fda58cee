"""Creates files and folders with their mode from the start, and changes no existing ones; used by every process.

The mode is independent of the umask, and links are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

OWNERS_FOLDER = 0o700
OWNERS_FILE = 0o600
"""The modes for access by the owner only."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_file(path: str | Path, mode: int = OWNERS_FILE, *, flags: int = os.O_WRONLY, dir_fd: int | None = None) -> int:
    """Create the file ``path`` (in the folder ``dir_fd``), and return its descriptor.

    Raises:
        OSError: the path exists, also as a link, or cannot be created.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        _set_mode(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_folder(path: Path, mode: int = OWNERS_FOLDER) -> bool:
    """Create the folder ``path``; return False if the path exists, as a folder or anything else.

    Raises:
        OSError: it cannot be created.
    """
    try:
        path.mkdir(mode)
    except FileExistsError:
        return False
    fd = os.open(path, _FOLDER)
    try:
        if os.fstat(fd).st_uid == os.geteuid():  # else another user has replaced it meanwhile
            _set_mode(fd, mode)
    finally:
        os.close(fd)
    return True


def make_folders(path: Path, mode: int = OWNERS_FOLDER) -> None:
    """Create the folder ``path`` and its missing parents. Links to folders count as folders.

    Raises:
        OSError: it cannot be created, or the path exists and is no folder.
    """
    for folder in reversed((path, *path.parents)):
        if not folder.is_dir() and not make_folder(folder, mode) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def open_folder(path: Path) -> int:
    """Open the folder ``path``, which must be no link and belong to this user.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it is a link, another user's, or cannot be opened.
    """
    try:
        fd = os.open(path, _FOLDER)
    except NotADirectoryError:
        if not path.is_symlink():
            raise
        raise NotADirectoryError(errno.ENOTDIR, "it is a link", str(path)) from None
    try:
        status = os.fstat(fd)
        if not is_ours(status, path.parent):
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def own_folder(path: Path) -> None:
    """Create the folder ``path`` for its owner only, or check that it is a folder of this user.

    Raises:
        OSError: it cannot be created, or is a link, no folder or another user's.
    """
    if not make_folder(path):
        os.close(open_folder(path))


def is_ours(status: os.stat_result, folder: Path) -> bool:
    """Return whether the file with ``status``, in ``folder``, belongs to this user.

    On some file systems (mounted from a server, from Windows) all files have the same owner: there any file has the owner that a
    new one gets.
    """
    if status.st_uid == os.geteuid():
        return True
    try:
        return status.st_uid == _owner_of_new(folder)
    except OSError:
        return False  # the folder is not writable either


def is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; False on errors (the name is too long, the folder not accessible)."""
    return os.path.isfile(path)  # noqa: PTH113 - a Path raises


def is_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder; False on errors."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


def at_home(path: Path) -> Path:
    """Expand ``~`` in ``path``.

    Raises:
        ValueError: the home folder is unknown; the message is for the user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: that user's home is not known here; write the whole path") from None


def kind(status: os.stat_result) -> str:
    """Return the file type, for a message."""
    mode = status.st_mode
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a file")


def refusal(error: OSError, known: Path | None = None) -> str:
    """Return the text of ``error``, with its path unless that is ``known``: ``/srv/x: No space left on device``."""
    text = error.strerror or str(error)
    if not isinstance(error.filename, (str, bytes)) or os.fsdecode(error.filename) == str(known):
        return text
    return f"{os.fsdecode(error.filename)}: {text}"


def _set_mode(fd: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def _owner_of_new(folder: Path) -> int:
    """Return the owner of a new file in ``folder``."""
    path = folder / f".supervise-{os.urandom(16).hex()}"
    fd = make_file(path)
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
