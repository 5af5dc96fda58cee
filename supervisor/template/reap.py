"""Reaps workers, and kills the processes that dead workers left behind; runs in the template process.

The template is the subreaper of every worker, and each worker that of its descendants. So these stay below their worker while it
lives and become children of the template when it dies: a child that the template did not fork is an orphan.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Union

from supervisor.cause import TooManyProcesses
from supervisor.host.processes import children_of, kill, kill_with_group, reap_any
from supervisor.wire.messages import Died, Swept

Event = Union[Died, Swept]

_PASSES = 8
_SOONEST = 0.002
_LATEST = 0.1


class Reaper:
    """Tracks the template's children: workers, helpers, and orphans, each with the dead workers that it may come from.

    ``workers`` maps the pids of living workers to slot and generation; ``spared`` has the pids of the template's own helpers,
    added by the code that forks them, removed when they exit. ``turn`` must be called by ``next_check`` (monotonic seconds).
    """

    def __init__(self) -> None:
        """Spare the children that exist already, such as a trial that the kernel could not end yet."""
        self._own_pid = os.getpid()
        self.workers: dict[int, tuple[str, int]] = {}
        self.spared = set(children_of(self._own_pid))
        self.next_check: float | None = None
        self._trees: dict[int, tuple[str, int]] = {}  # dead workers whose descendants are being killed
        self._killed: Counter[int] = Counter()
        self._orphans: dict[int, frozenset[int]] = {}
        self._causes: dict[int, TooManyProcesses] = {}
        self._delay = _SOONEST

    def add_worker(self, slot: str, generation: int, pid: int) -> None:
        """Register ``pid``, which may have been spared until now, as that worker."""
        self.spared.discard(pid)
        self.workers[pid] = (slot, generation)

    def set_cause(self, pid: int, cause: TooManyProcesses) -> None:
        """Record why the worker ``pid`` is about to be killed; ``cause`` goes into its ``Died``."""
        self._causes.setdefault(pid, cause)

    def signal_worker(self, slot: str, generation: int, signum: int) -> None:
        """Send ``signum`` to that worker alone, if it lives. Its pid cannot have been reused: only this process reaps it."""
        for pid, worker in self.workers.items():
            if worker == (slot, generation):
                kill(pid, signum)

    def turn(self) -> list[Event]:
        """Reap exited children and kill orphans, without waiting. Call it after every SIGCHLD, and at ``next_check``."""
        events: list[Event] = []
        self._reap(events)
        if not self._trees:
            return events
        for _ in range(_PASSES):
            orphans = self._find_orphans()
            # A worker that died meanwhile may have left some of these, and others that are not listed yet.
            settled = not self._reap(events)
            self._kill(orphans)
            if settled:
                events += self._remove_swept(orphans)
                break
        self._schedule_check(any(isinstance(event, Died) for event in events))
        return events

    def _reap(self, events: list[Event]) -> bool:
        """Reap exited children and append the deaths of workers to ``events``; return whether anything was reaped."""
        reaped = False
        try:
            while (ended := reap_any()) is not None:
                reaped = True
                self._record_exit(*ended, events)
        except ChildProcessError:
            pass  # there are no children at all
        return reaped

    def _record_exit(self, pid: int, status: int, events: list[Event]) -> None:
        if (worker := self.workers.pop(pid, None)) is not None:
            self._trees[pid] = worker
            events.append(Died(*worker, pid, status, self._causes.pop(pid, None)))
        elif pid in self.spared:
            self.spared.discard(pid)
        else:
            sources = self._orphans.pop(pid, frozenset())
            if status == -signal.SIGKILL:
                self._killed.update([tree for tree in self._trees if not sources or tree in sources][:1])

    def _find_orphans(self) -> list[int]:
        """Return the orphans. A child in a living worker's session belongs to that worker, which resigned as subreaper."""
        children = [pid for pid in children_of(self._own_pid) if pid not in self.workers and pid not in self.spared]
        return [pid for pid in children if _session_of(pid) not in self.workers]

    def _kill(self, orphans: list[int]) -> None:
        for pid in orphans:
            session = _session_of(pid)
            if session is None:
                continue  # reaped meanwhile
            if pid not in self._orphans:
                self._orphans[pid] = frozenset({session} if session in self._trees else self._trees)
            kill_with_group(pid)

    def _remove_swept(self, orphans: list[int]) -> list[Event]:
        """Remove the trees that none of ``orphans`` may come from: one that cannot die yet holds up its own slot only."""
        remaining = frozenset[int]().union(*(self._orphans.get(pid, frozenset()) for pid in orphans))
        swept = [pid for pid in self._trees if pid not in remaining]
        return [Swept(*self._trees.pop(pid), self._killed.pop(pid, 0)) for pid in swept]

    def _schedule_check(self, death: bool) -> None:
        if not self._trees:
            self.next_check = None
            return
        self._delay = _SOONEST if death else min(self._delay * 2, _LATEST)
        self.next_check = time.monotonic() + self._delay


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
