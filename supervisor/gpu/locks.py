"""Locks on GPUs and stores against other supervisors; used by the supervisor, and held by the template with it.

A lock is ``flock`` on a file. It belongs to the open file, not to a process: every process with the descriptor (the template gets
it by ``pass_fds``) holds the lock, until the last of them exits, also by ``kill -9``. The files are kept: removing a lock file
that another process has open would make two locks of one.

A GPU's file is named by its UUID, in a folder that all users of the machine share. A whole GPU is locked exclusively; a MIG
instance is locked exclusively and its GPU shared, so instances do not exclude each other, but a lock on the whole GPU does.
Nothing in that folder is trusted: links are not followed, and file contents are used in messages only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from supervisor.errors import LockedError, UsageError
from supervisor.gpu.proc import started_at
from supervisor.gpu.records import Gpu
from supervisor.host import files

DEFAULT_DIR = Path("/tmp/supervise-locks")
REMAINS_S = 10.0
"""Seconds that a start waits for the remaining processes of a dead supervisor; its workers exit within 5 s."""

_POLL_S = 0.05
_MAX_CONTENT = 4096
_BEGINNING = b'{"pid":'
"""The first bytes of a ``Holder`` in a file."""

_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Holder(msgspec.Struct, frozen=True, rename="camel"):
    """The supervisor that holds a lock, from its file. ``started``: clock ticks since boot; ``since``: seconds since 1970."""

    pid: int
    started: int | None
    since: float
    run_id: str
    serves: str

    @property
    def alive(self) -> bool:
        """True if that process is running, as far as this one can see: not from inside a container."""
        return self.started is not None and started_at(self.pid) == self.started

    def __str__(self) -> str:
        """Return the text for a message, without control characters: any user can write the file."""
        serves = "".join(letter if letter.isprintable() else "?" for letter in self.serves[:200])
        return f"supervise {serves} (pid {self.pid})"


class Lock:
    """A held lock. Pass ``fds``, the descriptors of its files, only to processes that are to share it."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def close(self) -> None:
        """Close the files: the last process that shares the lock releases it. (An explicit unlock would release it for all.)"""
        while self.fds:
            os.close(self.fds.pop())


def this_process(run_id: str, serves: str) -> Holder:
    """Return the calling process as a holder; ``serves`` is the handler as named on the command line."""
    return Holder(os.getpid(), started_at(os.getpid()), time.time(), run_id, serves)


def lock_gpus(
    gpus: Sequence[Gpu], holder: Holder, folder: Path = DEFAULT_DIR, *, skip_held: bool = False, wait: float = REMAINS_S
) -> tuple[list[Gpu], list[Lock]]:
    """Lock the GPUs; return the locked ones, in the order given, and their locks.

    With ``skip_held``, GPUs that another supervisor holds are left out, if at least one remains. The remaining processes of a
    dead supervisor are waited for, ``wait`` seconds in total at most.

    Raises:
        LockedError: another supervisor holds one (with ``skip_held``: all); nothing is locked then.
        UsageError: the folder cannot be used.
    """
    locks: dict[str, Lock] = {}
    errors: list[str] = []
    with contextlib.ExitStack() as undo, _opened(folder) as folder_fd:
        locker = _Locker(folder, folder_fd, holder, time.monotonic() + wait, mode=0o666)
        # All supervisors lock in the same order, so that two concurrent starts do not get half each.
        for gpu in sorted(gpus, key=lambda gpu: gpu.uuid):
            wanted = {_file_name(gpu.uuid): fcntl.LOCK_EX}
            if gpu.parent:
                wanted[_file_name(gpu.parent)] = fcntl.LOCK_SH
            try:
                locks[gpu.uuid] = locker.lock(f"GPU {gpu.number} ({gpu.uuid})", wanted)
                undo.callback(locks[gpu.uuid].close)
            except LockedError as error:
                errors.append(str(error))
                if not skip_held:
                    break
        if errors and not (skip_held and locks):
            what_then = "choose other GPUs with --gpus, or share them with --share-gpus"
            raise LockedError("; ".join([*errors, what_then]))
        undo.pop_all()
    ours = [gpu for gpu in gpus if gpu.uuid in locks]
    return ours, [locks[gpu.uuid] for gpu in ours]


def lock_store(store: Path, holder: Holder, wait: float = REMAINS_S) -> Lock:
    """Lock the job store at ``store`` by a file beside it that only its owner can read.

    Raises:
        LockedError: another supervisor uses it.
        UsageError: the file cannot be created.
    """
    with _opened(store.parent, make=False) as folder_fd:
        locker = _Locker(store.parent, folder_fd, holder, time.monotonic() + wait, mode=0o600)
        try:
            return locker.lock(f"the store {store}", {f"{store.name}.lock": fcntl.LOCK_EX})
        except LockedError as error:
            raise LockedError(f"{error}; name another one with --store") from None


def gpu_holder(gpu: Gpu, folder: Path = DEFAULT_DIR) -> Holder | None:
    """Return the current holder of the GPU, as its file shows; ``None`` if it is not locked."""
    try:
        fd = os.open(folder / _file_name(gpu.uuid), os.O_RDONLY | _OPEN)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or _flock(fd, fcntl.LOCK_SH):
            return None
        return _read(fd) or Holder(0, None, 0.0, "", "(unknown)")
    finally:
        os.close(fd)


# --- inside


class _Locker(msgspec.Struct, frozen=True):
    """Acquires locks in ``folder`` for ``holder``; new files get ``mode``. Waits for dead holders until ``until``
    (``time.monotonic()``)."""

    folder: Path
    folder_fd: int
    holder: Holder
    until: float
    mode: int

    def lock(self, subject: str, names: Mapping[str, int]) -> Lock:
        """Acquire the lock on ``subject`` (for messages): the files ``names``, each with its kind of lock.

        Raises:
            LockedError: another process holds one.
            UsageError: one cannot be used.
        """
        lock = Lock()
        with contextlib.ExitStack() as undo:
            undo.callback(lock.close)
            for name, kind in names.items():
                while (fd := self._try(name, kind, subject)) is None:
                    pass
                lock.fds.append(fd)
            undo.pop_all()
        return lock

    def _try(self, name: str, kind: int, subject: str) -> int | None:
        """Return the descriptor of the locked file; ``None`` to retry: its holder should exit soon."""
        with contextlib.ExitStack() as undo:
            try:
                fd = self._open(name)
                undo.callback(os.close, fd)
                status = os.fstat(fd)
                # With a second link, it may be another file of the user.
                if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                    raise self._unusable(name, "it is no plain file of its own")
                if not _flock(fd, kind):
                    self._wait_for_remains(_read(fd), subject)
                elif self._is_still(fd, name):
                    if not _may_be_ours(os.pread(fd, _MAX_CONTENT, 0)):
                        raise self._unusable(name, "another program wrote it; move it away")
                    _write(fd, self.holder)
                    undo.pop_all()
                    return fd
            except OSError as error:  # such as a disk that is full, or read-only
                why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
                raise self._unusable(name, why) from error
        return None

    def _open(self, name: str) -> int:
        """Open the file or create it; another user's without ``O_CREAT``, which ``fs.protected_regular`` forbids."""
        for _ in range(3):
            try:
                return os.open(name, os.O_RDWR | _OPEN, dir_fd=self.folder_fd)
            except FileNotFoundError:
                pass
            except PermissionError:
                # Read access is enough for a lock; the holder is then not written.
                return os.open(name, os.O_RDONLY | _OPEN, dir_fd=self.folder_fd)
            with contextlib.suppress(FileExistsError):
                return files.make_file(name, self.mode, flags=os.O_RDWR | _OPEN, dir_fd=self.folder_fd)
        raise FileNotFoundError(errno.ENOENT, "it is removed again and again")

    def _is_still(self, fd: int, name: str) -> bool:
        """Return whether the locked file still has its name: it may have been removed in between."""
        try:
            found = os.stat(name, dir_fd=self.folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(fd))

    def _wait_for_remains(self, other: Holder | None, subject: str) -> None:
        """Sleep a moment, if the holder of the lock should exit soon.

        Raises:
            LockedError: the holder is alive, or the time is over.
        """
        if other is not None and other.alive:
            raise LockedError(f"{subject} is held by {other}")
        if time.monotonic() >= self.until:
            who = f"processes left by {other}, which has exited" if other else "an unknown process"
            raise LockedError(f"{subject} is held by {who}")
        time.sleep(_POLL_S)

    def _unusable(self, name: str, why: str | None) -> UsageError:
        return UsageError(f"the lock file {self.folder / name} cannot be used: {why}")


@contextlib.contextmanager
def _opened(folder: Path, *, make: bool = True) -> Iterator[int]:
    """Open the folder; ``make``: create it for all users if it does not exist."""
    try:
        if make:
            folder.parent.mkdir(parents=True, exist_ok=True)
            files.make_folder(folder, 0o1777)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if make else 0))
    except OSError as error:
        raise UsageError(f"the folder of the locks, {folder}, cannot be used: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _may_be_ours(content: bytes) -> bool:
    """Return whether we wrote it: a ``Holder``, or what a full disk or a power cut (which leaves zeros) has left of one."""
    return content[: len(_BEGINNING)] == _BEGINNING[: len(content)] or not content.strip(b"\0")


def _read(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, _MAX_CONTENT, 0), type=Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(fd: int, holder: Holder) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        content = msgspec.json.encode(holder)
        os.ftruncate(fd, 0)
        os.pwrite(fd, content, 0)


def _file_name(uuid: str) -> str:
    """Return the name of the lock file. Legacy MIG UUIDs contain slashes."""
    return uuid.replace("/", "_") + ".lock"
