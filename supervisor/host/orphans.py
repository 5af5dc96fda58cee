"""Ends and reaps what has lost its parent: what a dead template left, and all that comes to process 1; in the supervisor.

For the command line's own process, which is a subreaper (``processes.set_subreaper``). In a user's program that would take over
processes that are not ours: there ``sweep_marked`` finds them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from supervisor.host.processes import children_of, kill, kill_with_group, processes_with

_POLL_S = 0.001

_QUIET_SCANS = 2
_QUIET_S = 0.005
_EXEC_S = 0.2
"""An environment that stays empty for so long is one: a process without any, not one in the middle of an exec."""


def sweep_orphans(known: Collection[int], patience: float = 1.0) -> int:
    """End and reap every child of this process but the ``known``, until none is left or ``patience`` seconds are over.

    Called when the template died, by a process that became a subreaper. Returns how many it reaped.
    """
    deadline = time.monotonic() + patience
    swept = 0
    while orphans := orphans_of_this_process(known):
        for pid in orphans:
            kill_with_group(pid)
        swept += sum(_reap(pid) for pid in orphans)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return swept


def reap_orphans(known: Collection[int]) -> None:
    """Reap the dead children of this process that are not ``known``; leave the living alone.

    For process 1 of a container, to which come the orphans of all that run there, also of those that we have not started.
    """
    for pid in orphans_of_this_process(known):
        _reap(pid)


def sweep_marked(run_id: str, patience: float = 1.0) -> int:
    """SIGKILL every process that was started below this run's template, until none is left or ``patience`` seconds are over.

    For a program that embeds a supervisor, whose other children are none of ours and which inherits no orphans: what a dead
    template left is known by its environment (proc(5)). Returns how many it killed.
    """
    mark = f"SUPERVISE_RUN_ID={run_id}".encode()
    begun = time.monotonic()
    killed: set[int] = set()
    unclear_since: dict[int, float] = {}
    quiet = 0
    while True:
        marked = processes_with(mark)
        found = [pid for pid in marked.found if kill(pid)]
        killed.update(found)
        now = time.monotonic()
        unclear = [pid for pid in marked.unclear if now - unclear_since.setdefault(pid, now) < _EXEC_S]
        quiet = 0 if found or unclear else quiet + 1
        # One look may miss who was forked while it went on; a second that finds nobody had nobody left to fork.
        if quiet == _QUIET_SCANS or now - begun > patience:
            return len(killed)
        time.sleep(_QUIET_S if quiet else _POLL_S)


def orphans_of_this_process(known: Collection[int]) -> list[int]:
    """The children of this process that are not ``known``."""
    return [pid for pid in children_of(os.getpid()) if pid not in known]


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False  # someone else in this process waited for it
