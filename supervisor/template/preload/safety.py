"""Checks that workers can still be forked from a process after an import; in the template and its trial processes."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from supervisor.host.processes import children_of
from supervisor.template import child
from supervisor.template.preload.locate import shadowed

_NOT_INITIALIZED = 3
"""``CUDA_ERROR_NOT_INITIALIZED``: the only result of the driver in a process that may be forked (CUDA Driver API, CUresult)."""

_ENDING_S = 0.1
"""Seconds that the kernel may still list a joined thread."""


class ProcessState(msgspec.Struct, frozen=True):
    """State that an import must not change."""

    folder: str
    path: tuple[str, ...]
    modules: frozenset[str]
    children: frozenset[int]


def snapshot() -> ProcessState:
    """Return the current state."""
    return ProcessState(str(Path.cwd()), tuple(sys.path), _top_level(), frozenset(children_of(os.getpid())))


def fault(before: ProcessState, handlers_folder: Path) -> str | None:
    """Return why workers must not be forked from this process, worded to follow a module's name; None if they may.

    May fork a child and wait for it.
    """
    return (
        _changed(before)
        or _hidden(before, handlers_folder)
        or _cuda()
        or _python_threads()
        or _native_threads()
        or _processes(before)
    )


def _changed(before: ProcessState) -> str | None:
    if str(Path.cwd()) != before.folder:
        return "it changes the current folder"
    return "it changes sys.path" if tuple(sys.path) != before.path else None


def _hidden(before: ProcessState, folder: Path) -> str | None:
    """Find a module imported along the way that has the name of the handler's own: the handler would get the wrong one."""
    for name in sorted(_top_level() - before.modules):
        if shadowed(name, folder):
            return f"it imports {name}, and the handler's folder has a module of that name"
    return None


def _cuda() -> str | None:
    """Check that CUDA is not initialised: afterwards the driver does not work in forked children, even without a context."""
    torch = sys.modules.get("torch.cuda")
    if torch is not None and getattr(torch, "is_initialized", bool)():
        return "it initialises CUDA (torch.cuda)"
    try:
        driver = ctypes.CDLL("libcuda.so.1", os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None  # not loaded, so not initialised
    answer = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return None if answer == _NOT_INITIALIZED else f"it initialises CUDA (cuDeviceGetCount answers {answer})"


def _python_threads() -> str | None:
    running = len(sys._current_frames())
    if running == 1:
        return None
    main = threading.main_thread()
    names = [thread.name for thread in threading.enumerate() if thread is not main]
    return f"it leaves a Python thread running ({', '.join(names) or 'without a name'})"


def _native_threads() -> str | None:
    """Check that no native thread runs, apart from those that a library itself stops for a fork and restarts, as OpenBLAS does.

    Others would be missing in every worker. (GNU OpenMP neither stops its threads nor notices that they are missing,
    https://gcc.gnu.org/bugzilla/show_bug.cgi?id=60035; but limited to one thread it creates none.)
    """
    if _threads() == 1:
        return None
    pid = child.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + _ENDING_S
    while (left := _threads()) > 1:
        if time.monotonic() > deadline:
            return f"it leaves {left - 1} native thread{'s' if left > 2 else ''} running that a fork does not stop"
        time.sleep(0.001)
    return None


def _processes(before: ProcessState) -> str | None:
    started = [pid for pid in children_of(os.getpid()) if pid not in before.children]
    return "it leaves a process running" if started else None


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _top_level() -> frozenset[str]:
    return frozenset(name for name in list(sys.modules) if "." not in name)
