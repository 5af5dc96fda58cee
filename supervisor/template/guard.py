"""Shutdown when the supervisor dies: detects it and kills all descendants; runs in the template process."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket

from supervisor.host.processes import children_of, kill_with_group, reap_any
from supervisor.template.process_limit import kill_tree

_CHECK_MS = 5
_STUBBORN_PASSES = 10
_STUBBORN_S = 0.5
"""Seconds to freeze and kill what survives several passes: it may fork faster than it is killed. (Or the kernel cannot end it
yet.)"""

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)
"""Signals that a terminal or a user may send: only the supervisor's message or death stops the template."""


def ignore_signals() -> None:
    """Ignore the signals that would stop this process. Called again after imports, which may set handlers of their own."""
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    # Python's default: a write to a closed socket raises.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def open_supervisor() -> int | None:
    """Return a descriptor that becomes readable when the supervisor exits; None if the kernel has no pidfds.

    The socket alone does not show it while a process forked by the supervisor holds a copy of its end.
    """
    try:
        return os.pidfd_open(os.getppid())
    except OSError:
        return None


def kill_all(wakeup: int) -> None:
    """SIGKILL and reap all descendants of this process until none is left.

    Waits as long as that takes: a process that the kernel cannot end yet still holds its GPU, so the locks must stay held.
    ``wakeup`` becomes readable at SIGCHLD.
    """
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    own_pid = os.getpid()
    for count in itertools.count(1):
        left = children_of(own_pid)
        if count % _STUBBORN_PASSES == 0:
            kill_tree(left, _STUBBORN_S)
        for pid in left:
            kill_with_group(pid)
        try:
            while reap_any() is not None:
                pass
        except ChildProcessError:
            return
        if poll.poll(_CHECK_MS):
            drain(wakeup)


def drain(wakeup: int) -> None:
    """Empty the pipe that signals write to."""
    with contextlib.suppress(BlockingIOError):
        while os.read(wakeup, 4096):
            pass


def has_hung_up(sock: socket.socket) -> bool:
    """Return whether the other end of ``sock`` is closed, even if messages are still to be read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))
