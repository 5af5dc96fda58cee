"""Linux's process functions that the standard library lacks; imported by the supervisor, the template and the reader.

Sources: prctl(2), proc(5). A subreaper becomes the parent of every descendant whose own parent has exited.
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
"""Makes a worker write the stacks of all its threads to its log pipe, even if it is stuck, and continue. A real-time signal,
since handlers and libraries use SIGUSR1 and SIGUSR2, and not one of the first, which thread libraries use."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_KTHREAD = 0x0020_0000  # linux/sched.h; proc(5) shows the flags of a process


def set_death_signal(signum: int) -> None:
    """Set the signal that this process gets when the thread that forked it exits; 0 clears it.

    None is sent if that thread has exited already: compare ``os.getppid()`` afterwards. An ``execve`` keeps it, a fork does not.

    Raises:
        OSError: the call failed.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)


def set_subreaper() -> None:
    """Make this process the new parent of all orphaned descendants, in any session. A fork does not keep it.

    Raises:
        OSError: the call failed.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """Return the children of ``pid``, zombies included; empty if there is no such process.

    Exact for the calling process as long as it reaps nothing meanwhile; for another process a snapshot.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - called at every exit, and a Path costs as much as reading it
    except (FileNotFoundError, ProcessLookupError):
        return []
    lists = [_read(f"/proc/{pid}/task/{thread}/children") for thread in threads]
    if all(children is None for children in lists):  # a kernel without CONFIG_PROC_CHILDREN has the folder but no file
        return [child for child, one in picture().items() if one.parent == pid]
    return [int(child) for children in lists if children for child in children.split()]


def kill(pid: int, signum: int = signal.SIGKILL) -> bool:
    """Send ``signum`` to the process ``pid``; return False if it has exited or changed its user."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_with_group(pid: int) -> None:
    """SIGKILL ``pid``, a child not reaped yet, and its process group unless it is in the caller's session.

    A group is killed atomically: its members cannot escape by forking, as they could one by one.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # another user's group: the process itself is next
        if os.getsid(pid) != os.getsid(0):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
    kill(pid)


def reap_any() -> tuple[int, int] | None:
    """Reap one child and return its pid and status (``-N`` for signal N, else its exit code); None if none has exited.

    Raises:
        ChildProcessError: there are no children.
    """
    pid, status = os.waitpid(-1, os.WNOHANG)
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


class Marked(NamedTuple):
    """Processes that ``found`` have a variable, and those for which that is ``unclear``: their environment is empty, as in the
    middle of an ``execve``."""

    found: list[int]
    unclear: list[int]


def processes_with(variable: bytes) -> Marked:
    """Find this user's processes that were started with ``variable`` (``NAME=value``) in their environment, without zombies."""
    marked = Marked([], [])
    for pid, environ in _environments():
        if variable in environ:
            marked.found.append(pid)
        elif environ == [b""] and _runs_a_program(pid):
            marked.unclear.append(pid)
    return marked


def any_started_with(beginning: bytes) -> bool:
    """Return whether a process of this user was started with a variable whose ``NAME=value`` has that ``beginning``."""
    return any(variable.startswith(beginning) for _, environ in _environments() for variable in environ)


class Kin(NamedTuple):
    """A process's parent and session; ``dead``: it is a zombie."""

    parent: int
    session: int
    dead: bool


def picture() -> dict[int, Kin]:
    """Return all visible processes, zombies included. Takes some 50 µs for each, so it is not an atomic snapshot."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each costs as much as reading it
        if name.isdecimal() and (fields := _stat(name)):
            found[int(name)] = Kin(int(fields[1]), int(fields[3]), fields[0] in b"ZX")
    return found


def tree(kin: Mapping[int, Kin], roots: Collection[int]) -> set[int]:
    """Return the processes of ``kin`` that are in ``roots``, descend from them, or are in a session that one of them leads."""
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
    """Return whether ``pid`` is a living process and no kernel thread, which has no environment either."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in b"ZX" and not int(fields[6]) & _PF_KTHREAD


def _stat(pid: int | str) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` from the state on; empty if the process has exited."""
    # The command's name, in parentheses, may hold spaces and parentheses.
    return (_read(f"/proc/{pid}/stat") or b")").rpartition(b")")[2].split(maxsplit=7)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the pid of each process of this user, and the environment that it was started with."""
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
    """Read a file of ``/proc``; return None if its process has exited."""
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
