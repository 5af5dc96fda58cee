"""What Linux knows about processes and the standard library does not; imported by the supervisor, the template and the reader.

Sources: prctl(2), proc(5). A process that is a subreaper becomes the parent of every descendant whose own parent ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def set_death_signal(signum: int) -> None:
    """Let the kernel send ``signum`` to this process when the thread that forked it ends; 0 takes that back.

    It is silent when that thread has ended already: compare ``os.getppid()`` afterwards. An ``execve`` keeps it, a fork does not.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)


def set_subreaper() -> None:
    """Become the parent of every descendant that loses its own, also of those in sessions of their own. Not kept by a fork.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, zombies included; empty when there is no such process.

    Exact for the calling process as long as it reaps nothing meanwhile; for another one a moment's picture.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
    found: list[int] = []
    unreadable = 0
    for thread in threads:
        children = _read(thread / "children")
        if children is None:
            unreadable += 1
        else:
            found += map(int, children.split())
    # A kernel built without CONFIG_PROC_CHILDREN has the folder and not the file.
    return _scan_for_parent(pid) if unreadable == len(threads) else found


def kill(pid: int, signum: int = signal.SIGKILL) -> bool:
    """Send ``signum`` to the process ``pid``; False when it is gone or may not be touched (it changed its user)."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_with_group(pid: int) -> None:
    """SIGKILL ``pid``, a child not reaped yet; with its process group, unless it is of the caller's own session.

    A group dies at once: its members cannot outrun this by forking, which killing them one by one allows.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # another user's: the process itself is next
        if os.getsid(pid) != os.getsid(0):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
    kill(pid)


def reap_any() -> tuple[int, int] | None:
    """One child that ended, as its pid and status (``-N`` for signal N, else its exit code); None while none has.

    Raises:
        ChildProcessError: there are no children at all.
    """
    pid, status = os.waitpid(-1, os.WNOHANG)
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def processes_with(variable: bytes) -> list[int]:
    """This user's processes that were started with ``variable`` (``NAME=value``) in their environment; zombies have none left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(PermissionError):
            if variable in (_read(folder / "environ") or b"").split(b"\0"):
                found.append(int(folder.name))
    return found


@functools.cache
def _library() -> Callable[..., int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return prctl


def _prctl(option: int, argument: int) -> None:
    if _library()(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def _scan_for_parent(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        stat = _read(folder / "stat")
        # The command's name, in parentheses, may hold spaces and parentheses; the parent is the second field behind it.
        if stat is not None and int(stat[stat.rindex(b")") + 2 :].split()[1]) == parent:
            found.append(int(folder.name))
    return found


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
