"""What Linux knows about processes and the standard library does not; imported by the supervisor, the template and the reader.

Sources: prctl(2), proc(5). A process that is a subreaper becomes the parent of every descendant whose own parent ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

STACK_SIGNAL = signal.SIGRTMIN + 5
"""A worker that gets it writes the stacks of all its threads to its log pipe, whatever it is stuck in, and goes on. It is a
real-time signal since handlers and libraries use SIGUSR1 and SIGUSR2, and not one of the first, which thread libraries take."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_KTHREAD = 0x0020_0000  # linux/sched.h; proc(5) shows the flags of a process


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
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - asked at every death, and a Path costs as much as reading it
    except (FileNotFoundError, ProcessLookupError):
        return []
    lists = [_read(f"/proc/{pid}/task/{thread}/children") for thread in threads]
    if all(
        children is None for children in lists
    ):  # a kernel built without CONFIG_PROC_CHILDREN has the folder and not the file
        return [child for child, one in picture().items() if one.parent == pid]
    return [int(child) for children in lists if children for child in children.split()]


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


class Marked(NamedTuple):
    """Processes that were ``found`` to have a variable, and those of which it is ``unclear``: their environment is empty, as it
    is for a moment in the middle of an ``execve``."""

    found: list[int]
    unclear: list[int]


def processes_with(variable: bytes) -> Marked:
    """This user's processes that were started with ``variable`` (``NAME=value``) in their environment; zombies have none left."""
    marked = Marked([], [])
    for pid, environ in _environments():
        if variable in environ:
            marked.found.append(pid)
        elif environ == [b""] and _runs_a_program(pid):
            marked.unclear.append(pid)
    return marked


def any_started_with(beginning: bytes) -> bool:
    """Whether a process of this user was started with a variable whose ``NAME=value`` has that ``beginning``."""
    return any(variable.startswith(beginning) for _, environ in _environments() for variable in environ)


class Kin(NamedTuple):
    """A process's parent and session; ``dead``: it has ended, and its parent has not waited for it."""

    parent: int
    session: int
    dead: bool


def picture() -> dict[int, Kin]:
    """All processes that can be seen, zombies included. Some 50 µs for each: it is no picture of a single moment."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each costs as much as reading it
        if name.isdecimal() and (fields := _stat(name)):
            found[int(name)] = Kin(int(fields[1]), int(fields[3]), fields[0] in b"ZX")
    return found


def tree(kin: Mapping[int, Kin], roots: Collection[int]) -> set[int]:
    """The processes of ``kin`` that descend from ``roots``, these included, or are of the session that one of them leads."""
    children: dict[int, list[int]] = {}
    for pid, one in kin.items():
        children.setdefault(one.parent, []).append(pid)
        if one.session in roots and one.parent not in roots:
            children.setdefault(one.session, []).append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in kin]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def _runs_a_program(pid: int) -> bool:
    """Whether ``pid`` is a living process, and not one of the kernel's own threads, which have no environment either."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in b"ZX" and not int(fields[6]) & _PF_KTHREAD


def _stat(pid: int | str) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the state on; none if the process is gone."""
    # The command's name, in parentheses, may hold spaces and parentheses.
    return (_read(f"/proc/{pid}/stat") or b")").rpartition(b")")[2].split(maxsplit=7)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """The pid of each process of this user, and the environment that it was started with."""
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - as above
        with contextlib.suppress(PermissionError):
            yield int(name), (_read(f"/proc/{name}/environ") or b"").split(b"\0")


@functools.cache
def _library() -> Callable[..., int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return prctl


def _prctl(option: int, argument: int) -> None:
    if _library()(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def _read(path: str) -> bytes | None:
    """A file of ``/proc``; None if its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        return b"".join(iter(lambda: os.read(descriptor, 65536), b""))
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
