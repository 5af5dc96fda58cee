"""Whether a process that has imported something can still be forked into workers; in the template and its trial processes."""

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
"""``CUDA_ERROR_NOT_INITIALIZED``: the only answer of the driver in a process that may be forked (CUDA Driver API, CUresult)."""

_ENDING_S = 0.1
"""How long a thread that is joined may still be listed by the kernel."""


class Before(msgspec.Struct, frozen=True):
    """What an import must leave as it was."""

    folder: str
    path: tuple[str, ...]
    modules: frozenset[str]
    children: frozenset[int]


def snapshot() -> Before:
    """How it is now."""
    return Before(str(Path.cwd()), tuple(sys.path), _top_level(), frozenset(children_of(os.getpid())))


def fault(before: Before, handlers_folder: Path) -> str | None:
    """Why workers must not be forked from this process, in words that follow a module's name; None if they may be.

    It may fork, and waits for that child.
    """
    return (
        _changed(before)
        or _hidden(before, handlers_folder)
        or _cuda()
        or _python_threads()
        or _native_threads()
        or _processes(before)
    )


def _changed(before: Before) -> str | None:
    if str(Path.cwd()) != before.folder:
        return "it changes the current folder"
    return "it changes sys.path" if tuple(sys.path) != before.path else None


def _hidden(before: Before, folder: Path) -> str | None:
    """A module that was imported along the way would be taken for the handler's own of the same name."""
    for name in sorted(_top_level() - before.modules):
        if shadowed(name, folder):
            return f"it imports {name}, and the handler's folder has a module of that name"
    return None


def _cuda() -> str | None:
    """The driver refuses to work in a child of a process that initialised it, also without any context."""
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
    """Threads that a library stops by itself before a fork and starts again later, as OpenBLAS does, are gone after one.

    Those of other pools would be missing in every worker. (OpenMP of GNU neither stops its threads nor notices that they are
    missing, https://gcc.gnu.org/bugzilla/show_bug.cgi?id=60035; but as long as it has one thread it has none of its own.)
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


def _processes(before: Before) -> str | None:
    started = [pid for pid in children_of(os.getpid()) if pid not in before.children]
    return "it leaves a process running" if started else None


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _top_level() -> frozenset[str]:
    return frozenset(name for name in list(sys.modules) if "." not in name)
