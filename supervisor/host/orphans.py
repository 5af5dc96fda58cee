"""Kills and reaps orphans: the processes of a dead template, and all orphans if this is process 1; in the supervisor.

For the command line's own process, which is a subreaper (``processes.set_subreaper``). In a user's program a subreaper would
adopt processes that are not ours: there ``sweep_marked`` finds them.
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
"""Seconds after which an empty environment is taken as such: it is not that of a process in the middle of an exec."""


def sweep_orphans(known: Collection[int], patience: float = 1.0) -> int:
    """Kill and reap every child of this process except ``known``, until none is left or ``patience`` seconds are over.

    For a subreaper whose template died. Returns the number of reaped processes.
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
    """Reap the dead children of this process that are not ``known``; ignore the living.

    For process 1 of a container, which becomes the parent of all its orphans, also of processes that we have not started.
    """
    for pid in orphans_of_this_process(known):
        _reap(pid)


def sweep_marked(run_id: str, patience: float = 1.0) -> int:
    """SIGKILL every descendant of this run's template, until none is left or ``patience`` seconds are over.

    For a program that embeds a supervisor, which has other children and inherits no orphans: the descendants are found by their
    environment (proc(5)). Returns the number of killed processes.
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
        # One scan may miss a process that was forked meanwhile; if a second finds none either, none was left to fork.
        if quiet == _QUIET_SCANS or now - begun > patience:
            return len(killed)
        time.sleep(_QUIET_S if quiet else _POLL_S)


def orphans_of_this_process(known: Collection[int]) -> list[int]:
    """Return the children of this process that are not ``known``."""
    return [pid for pid in children_of(os.getpid()) if pid not in known]


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False  # someone else in this process waited for it
