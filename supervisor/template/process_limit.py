"""The limit on how many processes a worker and all it started may be (``--max-processes``); runs in the template process.

A fork bomb cannot be outrun by killing: whoever lists its processes sees those of a moment ago. So all are stopped first, look by
look, until a look finds none that runs on; only then are they killed. The kernel's own limits do not serve: ``RLIMIT_NPROC``
counts all processes of a user, and a control group for each worker is there for those only to whom the system has handed one.
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
"""How often the kernel is asked how many processes were started at all: one short read."""

DEAD = 16
"""How many dead processes that nobody has waited for count as one. They come to a worker from all that it started, which is no
harm until the kernel has no numbers left: that is 32,768 on the smallest machines."""

FALLBACK_CHECK_S = 1.0
"""How often all processes are looked at where the kernel does not say that."""

FREEZE_S = 3.0
"""How long the template may be busy with stopping one tree. What then still runs is killed like any other, one by one."""


class ProcessLimiter:
    """Watches the trees of the workers, and what dead ones left, which counts as one more."""

    def __init__(self, most: int, reaper: Reaper) -> None:
        """Let none be more than ``most`` processes; 0 is no limit."""
        self._most = most
        self._reaper = reaper
        self._own_pid = os.getpid()
        self._loadavg = _open_loadavg() if most else None
        self._newest = 0
        self._largest = most  # so the first look counts
        self._due = time.monotonic()

    @property
    def next_check(self) -> float | None:
        """When ``turn`` must be called (monotonic seconds); None while there is nobody to watch."""
        return self._due if self._most and (self._reaper.workers or self._reaper.next_check is not None) else None

    def turn(self) -> None:
        """End the trees that are too large, if it is time to look."""
        if self.next_check is None or time.monotonic() < self._due:
            return
        newest = _newest(self._loadavg) if self._loadavg is not None else None
        self._due = time.monotonic() + (FALLBACK_CHECK_S if newest is None else CHECK_S)
        # Numbers are given in turn, so no tree can have grown by more than have been given since.
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
                self._reaper.condemn(pid, TooManyProcesses(self._most * DEAD if dead else self._most, dead))
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
    """What counts against the limit, and whether the dead are what counts."""
    found = tree(kin, roots)
    dead = sum(kin[pid].dead for pid in found)
    return max(len(found) - dead, dead // DEAD), dead // DEAD > len(found) - dead


def kill_tree(roots: Collection[int], patience: float = FREEZE_S) -> None:
    """Stop all that descends from ``roots``, then SIGKILL it; takes ``patience`` seconds at most."""
    for pid in roots:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGSTOP)  # most bombs are one group, and a group stops at once
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
    for pid in stopped - found:  # one ended, and its number may be another's by now
        kill(pid, signal.SIGCONT)


def _open_loadavg() -> int | None:
    """A descriptor of ``/proc/loadavg``; None where that says nothing or is not the kernel's own, as in some containers."""
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
    """The number that the kernel gave to the newest process or thread, its last field (proc(5)); None if it cannot be read."""
    try:
        return int(os.pread(loadavg, 256, 0).split()[-1])
    except (OSError, ValueError, IndexError):
        return None
