"""Limits the number of processes of a worker and its descendants (``--max-processes``); runs in the template process.

A fork bomb cannot be outrun by killing: a list of its processes is already out of date. So all are stopped first, pass by pass,
until a pass finds none running; only then are they killed. The kernel's own limits do not serve: ``RLIMIT_NPROC`` counts all
processes of a user, and a control group per worker needs one delegated by the system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Mapping

from supervisor.cause import TooManyProcesses
from supervisor.host.processes import Kin, kill, picture, tree
from supervisor.template.reap import Reaper

CHECK_S = 0.1
"""Seconds between reads of the newest pid, which are cheap."""

DEAD = 16
"""Number of zombies that count as one process. A worker inherits them from its descendants, which is harmless until the kernel
runs out of pids: 32,768 on the smallest machines."""

FALLBACK_CHECK_S = 1.0
"""Seconds between counts where the newest pid cannot be read."""

FREEZE_S = 3.0
"""Maximum seconds that the template spends on stopping one tree. What still runs then is killed anyway, one by one."""


class ProcessLimiter:
    """Kills process trees that are too large: each worker's, and the orphans of dead workers, which count as one tree."""

    def __init__(self, most: int, reaper: Reaper) -> None:
        """Allow ``most`` processes per tree; 0: no limit."""
        self._most = most
        self._reaper = reaper
        self._own_pid = os.getpid()
        self._loadavg = _open_loadavg() if most else None
        self._newest = 0
        self._largest = most  # so that the first check counts
        self._due = time.monotonic()

    @property
    def next_check(self) -> float | None:
        """Time by which ``turn`` must be called (monotonic seconds); None while there is nothing to watch."""
        return self._due if self._most and (self._reaper.workers or self._reaper.next_check is not None) else None

    def turn(self) -> None:
        """Kill the trees that are too large, if a check is due."""
        if self.next_check is None or time.monotonic() < self._due:
            return
        newest = _newest(self._loadavg) if self._loadavg is not None else None
        self._due = time.monotonic() + (FALLBACK_CHECK_S if newest is None else CHECK_S)
        # Pids are assigned in order, so no tree can have grown by more than were assigned since.
        if newest is not None and 0 <= newest - self._newest <= self._most - self._largest:
            return
        self._newest = newest or 0
        self._largest = self._count()

    def _count(self) -> int:
        kin = picture()
        largest = 0
        for pid in list(self._reaper.workers):
            size, dead = _size(kin, {pid})
            if size > self._most:
                self._reaper.set_cause(pid, TooManyProcesses(self._most * DEAD if dead else self._most, dead))
                kill_tree({pid})
            else:
                largest = max(largest, size)
        left = self._leftovers(kin)
        size, _ = _size(kin, left)
        if size > self._most:
            kill_tree(left)
        return max(largest, min(size, self._most))

    def _leftovers(self, kin: Mapping[int, Kin]) -> set[int]:
        ours = {pid for pid, one in kin.items() if one.parent == self._own_pid}
        return ours - set(self._reaper.workers) - set(self._reaper.spared)


def _size(kin: Mapping[int, Kin], roots: Collection[int]) -> tuple[int, bool]:
    """Return the number that counts against the limit, and whether it comes from the dead."""
    found = tree(kin, roots)
    dead = sum(kin[pid].dead for pid in found)
    return max(len(found) - dead, dead // DEAD), dead // DEAD > len(found) - dead


def kill_tree(roots: Collection[int], patience: float = FREEZE_S) -> None:
    """Stop ``roots`` and their descendants, then SIGKILL them; takes at most ``patience`` seconds."""
    for pid in roots:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGSTOP)  # most fork bombs are one process group, which stops at once
    deadline = time.monotonic() + patience
    stopped: set[int] = set()
    while True:
        found = tree(picture(), roots)
        running = found - stopped
        if not running or time.monotonic() > deadline:
            break
        for pid in running:
            kill(pid, signal.SIGSTOP)
        stopped |= running
    for pid in found:
        kill(pid)
    for pid in stopped - found:  # exited; its pid may have been reused
        kill(pid, signal.SIGCONT)


def _open_loadavg() -> int | None:
    """Open ``/proc/loadavg``; return None if it is unusable or not the kernel's own, as in some containers."""
    try:
        descriptor = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    is_genuine = os.fstat(descriptor).st_dev == os.stat("/proc").st_dev  # noqa: PTH116 - beside fstat
    if is_genuine and (_newest(descriptor) or 0) >= os.getpid():
        return descriptor
    os.close(descriptor)
    return None


def _newest(loadavg: int) -> int | None:
    """Read the pid of the newest process or thread, the last field of loadavg (proc(5)); None if it cannot be read."""
    try:
        return int(os.pread(loadavg, 256, 0).split()[-1])
    except (OSError, ValueError, IndexError):
        return None
