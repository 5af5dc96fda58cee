"""Makes files and folders with their mode from the first moment on, and changes nothing that was there; used by every process.

What is made has the mode asked for whatever the umask says, and nothing is made behind a link that somebody has put in its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

OWNERS_FOLDER = 0o700
OWNERS_FILE = 0o600
"""The modes of what its owner alone may use."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_file(path: str | Path, mode: int = OWNERS_FILE, *, flags: int = os.O_WRONLY, dir_fd: int | None = None) -> int:
    """Make the file ``path`` (in the folder ``dir_fd``), and open it.

    Raises:
        OSError: something is there already, a link too, or it cannot be made.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        _set_mode(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_folder(path: Path, mode: int = OWNERS_FOLDER) -> bool:
    """Make the folder ``path``; whether it was made, and not there already (or a link, or something else).

    Raises:
        OSError: it cannot be made.
    """
    try:
        path.mkdir(mode)
    except FileExistsError:
        return False
    fd = os.open(path, _FOLDER)
    try:
        if os.fstat(fd).st_uid == os.geteuid():  # else somebody was quick, and it is another by now
            _set_mode(fd, mode)
    finally:
        os.close(fd)
    return True


def make_folders(path: Path, mode: int = OWNERS_FOLDER) -> None:
    """Make the folder ``path`` and those above it, as far as they are not there. Links to folders count as folders.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    for folder in reversed((path, *path.parents)):
        if not folder.is_dir() and not make_folder(folder, mode) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def open_folder(path: Path) -> int:
    """A descriptor of the folder ``path``, which must be a folder itself, and this user's.

    Raises:
        FileNotFoundError: it is not there.
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
    """See that ``path`` is a folder of this user's: made now, for its owner alone, or there already.

    Raises:
        OSError: it cannot be made, or is a link, no folder or another user's.
    """
    if not make_folder(path):
        os.close(open_folder(path))


def is_ours(status: os.stat_result, folder: Path) -> bool:
    """Whether the file that ``status`` is of, in ``folder``, is this user's.

    On some file systems (mounted from a server, from Windows) all files have one owner, whoever makes them: there it is enough
    to be that one's, as a file is that we make.
    """
    if status.st_uid == os.geteuid():
        return True
    try:
        return status.st_uid == _owner_of_new(folder)
    except OSError:
        return False  # nor could we do anything there


def is_file(path: Path) -> bool:
    """Whether a file is there. One at which the system does not let us look (its name is too long, its folder closed) is not."""
    return os.path.isfile(path)  # noqa: PTH113 - a Path raises


def is_folder(path: Path) -> bool:
    """Whether a folder is there; as ``is_file``."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


def at_home(path: Path) -> Path:
    """``path`` with what ``~`` stands for.

    Raises:
        ValueError: the home is not known; the message is for the user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: that user's home is not known here; write the whole path") from None


def kind(status: os.stat_result) -> str:
    """What the thing that ``status`` is of is, for a message."""
    mode = status.st_mode
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a file")


def refusal(error: OSError, known: Path | None = None) -> str:
    """What the operating system refused, for a message that names ``known`` already: ``/srv/x: No space left on device``."""
    words = error.strerror or str(error)
    if not isinstance(error.filename, (str, bytes)) or os.fsdecode(error.filename) == str(known):
        return words
    return f"{os.fsdecode(error.filename)}: {words}"


def _set_mode(fd: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def _owner_of_new(folder: Path) -> int:
    """The user to whom a file belongs that we make in ``folder``."""
    path = folder / f".supervise-{os.urandom(16).hex()}"
    fd = make_file(path)
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
