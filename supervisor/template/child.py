"""From the fork to the worker's first line: runs in the forked child, which is the template's copy and must stop being one."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Union

import msgspec

from supervisor.host.limits import pin, raise_oom_score
from supervisor.host.processes import set_death_signal, set_subreaper
from supervisor.template import mounts
from supervisor.template.preload.thread_pools import ThreadPool, reseed, widen
from supervisor.wire import messages as wire
from supervisor.worker.main import EXIT_BROKEN, WorkerStart

Entry = Callable[[], Callable[[WorkerStart], NoReturn]]
"""Does what needs no assignment, and returns how the worker goes on when it has one."""

Disposition = Union[Callable[[int, Union[FrameType, None]], Any], signal.Handlers]


class Assignment(msgspec.Struct, frozen=True):
    """Which worker to be. ``env`` is set before any user code; None removes a variable. ``folder`` is its ``TMPDIR``; ``since``
    when it was asked for (``time.monotonic``, seconds).
    """

    slot: str
    generation: int
    env: dict[str, str | None]
    folder: str
    since: float


GetAssignment = Callable[[], tuple[Assignment, int, int]]
"""Gives the assignment, and two descriptors: the worker's pipe, and its log's."""


class Inherited(msgspec.Struct, frozen=True):
    """What a child has of the template that a worker must not have. Found out once: doing it in each child costs page faults.

    ``descriptors`` are those to close, ``dispositions`` those to set; ``sock`` is the object on one of the descriptors. ``pools``
    have one thread.
    """

    template: int
    sock: socket.socket
    descriptors: tuple[int, ...]
    dispositions: Mapping[int, Disposition]
    pools: tuple[ThreadPool, ...] = ()


def fork(held_back: Collection[int] = ()) -> int:
    """``os.fork``, with the signals ``held_back`` in the child: one that is sent at once waits until ``become_worker`` has let go
    of the template's ways, and is not lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    pid = -1
    try:
        with warnings.catch_warnings():
            # Python warns when a preloaded library has a native thread; that it is harmless was judged before.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def die_with(template: int) -> None:
    """Let the template's end be this process's end from here on: the kernel promises it."""
    set_death_signal(signal.SIGKILL)
    if os.getppid() != template:
        os._exit(EXIT_BROKEN)


def become_worker(entry: Entry, setup: wire.Setup, get_assignment: GetAssignment, inherited: Inherited) -> NoReturn:
    """Cut all ties to the template, learn from ``orders`` which worker to be, and enter it, whose output goes to its log and
    whose temporary files go to its folder; ends the process, whatever happens.
    """
    try:
        _leave_template(inherited)
        enter = entry()
        assignment, connection, log = get_assignment()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        set_variables({**assignment.env, **_take_share(assignment, setup.limits, inherited.template)})
        tempfile.tempdir = None  # it remembers the template's folder if an import asked for one
        widen(inherited.pools)
        enter(WorkerStart(assignment.slot, assignment.generation, connection, setup, assignment.since))
    except BaseException:  # noqa: BLE001 - nothing may return into the template's loop
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(EXIT_BROKEN)


def _leave_template(inherited: Inherited) -> None:
    """What is the same for every worker."""
    die_with(inherited.template)
    os.setsid()
    set_subreaper()
    # The object must not close its number later: by then that may be a file of the handler.
    inherited.sock.detach()
    for descriptor in inherited.descriptors:
        os.close(descriptor)
    _restore_signals(inherited.dispositions)
    raise_oom_score(inherited.template)
    reseed()


def _take_share(assignment: Assignment, limits: wire.Limits, template: int) -> dict[str, str]:
    """Take what the worker may have of the machine; returns what its environment says of that."""
    folder = assignment.folder
    if cpus := limits.cpus.get(assignment.slot):
        pin(cpus)
    if limits.private_tmp:
        folder = mounts.enter(folder, limits.kept, f"{assignment.slot}-{assignment.generation}")
        die_with(template)  # a change of the user namespace may have taken it back
    return {"TMPDIR": folder}


def signals_to_restore() -> dict[int, Disposition]:
    """What this process changed of the dispositions of a Python process that was just started, and what they were.

    ``SIGPIPE`` and ``SIGXFSZ`` are ignored, and ``SIGINT`` raises: so it is for ``python handler.py``. A handler that Python did
    not set (None), such as that of PYTHONFAULTHANDLER, is there for a reason.
    """
    python: dict[int, Disposition] = {
        signal.SIGPIPE: signal.SIG_IGN,
        signal.SIGXFSZ: signal.SIG_IGN,
        signal.SIGINT: signal.default_int_handler,
    }
    wanted = {signum: python.get(signum, signal.SIG_DFL) for signum in signal.valid_signals()}
    return {
        int(signum): disposition
        for signum, disposition in wanted.items()
        if signal.getsignal(signum) not in (None, disposition)
    }


def _restore_signals(dispositions: Mapping[int, Disposition]) -> None:
    signal.set_wakeup_fd(-1)
    for signum, disposition in dispositions.items():
        signal.signal(signum, disposition)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def open_descriptors() -> list[int]:
    """The descriptors of this process; not that of the listing, which is closed by now."""
    return [int(link.name) for link in list(Path("/proc/self/fd").iterdir()) if link.exists()]


def set_variables(env: Mapping[str, str | None]) -> None:
    """Set what ``env`` has in this process's environment; None removes a variable."""
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
