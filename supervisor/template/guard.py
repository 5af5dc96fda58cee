"""The end of everything: notices that the supervisor is gone and leaves nothing alive; runs in the template process."""

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
"""What is left after some looks may be forking faster than it is killed; or the kernel cannot end it yet, and time is spent."""

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)
"""Signals a terminal or a person may send: only the supervisor's word or its end ends the template."""


def ignore_signals() -> None:
    """Let nothing but SIGKILL stop this process. Said again after imports, which may set handlers of their own."""
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    # Python's own: a write to a closed socket is an error, not the end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def open_supervisor() -> int | None:
    """A descriptor that gets readable when the supervisor ends; None where the kernel has none.

    The socket alone does not tell if a process that the supervisor's program forked holds a copy of its end.
    """
    try:
        return os.pidfd_open(os.getppid())
    except OSError:
        return None


def kill_all(wakeup: int) -> None:
    """SIGKILL all that lives below this process and reap it, until nothing is left.

    It waits as long as that takes: a process that the kernel cannot end yet still holds its GPU, and the locks say so. Readable
    ``wakeup`` (set by SIGCHLD) is when it looks again.
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
    """Whether the other end of ``sock`` is closed, also if messages wait to be read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))
