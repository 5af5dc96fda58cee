"""Turns a forked copy of the template into a worker; runs in the forked child."""

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
"""Does the set-up that needs no assignment, and returns the function that runs the worker."""

Disposition = Union[Callable[[int, Union[FrameType, None]], Any], signal.Handlers]


class Assignment(msgspec.Struct, frozen=True):
    """The identity and environment of one worker. ``env`` is set before any user code; None removes a variable. ``folder`` is its
    ``TMPDIR``; ``since`` is when it was requested (``time.monotonic``, seconds).
    """

    slot: str
    generation: int
    env: dict[str, str | None]
    folder: str
    since: float


GetAssignment = Callable[[], tuple[Assignment, int, int]]
"""Returns the assignment and the descriptors of the worker's pipe and log."""


class Inherited(msgspec.Struct, frozen=True):
    """State inherited from the template that a worker must not keep. Collected once: in each child it would cost page faults.

    ``descriptors`` are to be closed, ``dispositions`` to be set; ``sock`` is the object that owns one of the descriptors.
    ``pools`` have one thread.
    """

    template: int
    sock: socket.socket
    descriptors: tuple[int, ...]
    dispositions: Mapping[int, Disposition]
    pools: tuple[ThreadPool, ...] = ()


def fork(held_back: Collection[int] = ()) -> int:
    """Fork, with the signals ``held_back`` blocked in the child: one that arrives before ``become_worker`` has restored the
    dispositions stays pending and is not lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    pid = -1
    try:
        with warnings.catch_warnings():
            # Python warns if a preloaded library has a native thread; its trial has shown that it is harmless.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def die_with(template: int) -> None:
    """Have the kernel kill this process when the template dies; exit now if it has died already."""
    set_death_signal(signal.SIGKILL)
    if os.getppid() != template:
        os._exit(EXIT_BROKEN)


def become_worker(entry: Entry, setup: wire.Setup, get_assignment: GetAssignment, inherited: Inherited) -> NoReturn:
    """Drop what the template left, wait for the assignment, redirect output to the worker's log and temporary files to its
    folder, and run the worker. Ends the process in every case.
    """
    try:
        _leave_template(inherited)
        enter = entry()
        assignment, connection, log = get_assignment()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        set_variables({**assignment.env, **_apply_limits(assignment, setup.limits, inherited.template)})
        tempfile.tempdir = None  # an import may have cached the template's folder
        widen(inherited.pools)
        enter(WorkerStart(assignment.slot, assignment.generation, connection, setup, assignment.since))
    except BaseException:  # noqa: BLE001 - the child must not return into the template's loop
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(EXIT_BROKEN)


def _leave_template(inherited: Inherited) -> None:
    """Do what is the same for every worker."""
    die_with(inherited.template)
    os.setsid()
    set_subreaper()
    # The object must not close its descriptor later: by then a file of the handler may have that number.
    inherited.sock.detach()
    for descriptor in inherited.descriptors:
        os.close(descriptor)
    _restore_signals(inherited.dispositions)
    raise_oom_score(inherited.template)
    reseed()


def _apply_limits(assignment: Assignment, limits: wire.Limits, template: int) -> dict[str, str]:
    """Apply the worker's CPU affinity and private ``/tmp``; return the environment variables for them."""
    folder = assignment.folder
    if cpus := limits.cpus.get(assignment.slot):
        pin(cpus)
    if limits.private_tmp:
        folder = mounts.enter(folder, limits.kept, f"{assignment.slot}-{assignment.generation}")
        die_with(template)  # entering a user namespace may have cleared the death signal
    return {"TMPDIR": folder}


def signals_to_restore() -> dict[int, Disposition]:
    """Return the signals whose dispositions differ from those of a freshly started Python process, with the original ones.

    As for ``python handler.py``, ``SIGPIPE`` and ``SIGXFSZ`` are ignored and ``SIGINT`` raises. A handler that Python did not
    set (None), such as that of PYTHONFAULTHANDLER, is left alone.
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
    """Return the open descriptors of this process, without that of the listing, which is closed by now."""
    return [int(link.name) for link in list(Path("/proc/self/fd").iterdir()) if link.exists()]


def set_variables(env: Mapping[str, str | None]) -> None:
    """Update this process's environment from ``env``; None removes a variable."""
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
