"""Deaths and trees: reaps workers, and ends what a dead worker left behind; runs in the template process.

The template is the subreaper of every worker, and each worker that of what it starts. So what a worker started stays below it
while it lives, and comes to the template, child by child, when it dies: a child that the template did not fork is an orphan.
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
    """Knows the template's children: workers, what it spares, and orphans, each with the dead workers it may come from.

    ``workers`` has the pids of the living ones, with slot and generation; ``spared`` those of the template's own helpers, until
    they have ended: who forks one adds it. By ``next_check`` (monotonic seconds) ``turn`` must be called.
    """

    def __init__(self) -> None:
        """Spare the children that exist already: a trial that the kernel could not end yet."""
        self._own_pid = os.getpid()
        self.workers: dict[int, tuple[str, int]] = {}
        self.spared = set(children_of(self._own_pid))
        self.next_check: float | None = None
        self._trees: dict[int, tuple[str, int]] = {}  # what dead workers left, while it is being ended
        self._killed: Counter[int] = Counter()
        self._orphans: dict[int, frozenset[int]] = {}
        self._causes: dict[int, TooManyProcesses] = {}
        self._delay = _SOONEST

    def add_worker(self, slot: str, generation: int, pid: int) -> None:
        """``pid``, which may have been spared until now, is that worker."""
        self.spared.discard(pid)
        self.workers[pid] = (slot, generation)

    def condemn(self, pid: int, cause: TooManyProcesses) -> None:
        """The worker ``pid`` is about to be killed; ``cause`` goes into its ``Died``."""
        self._causes.setdefault(pid, cause)

    def signal_worker(self, slot: str, generation: int, signum: int) -> None:
        """Send ``signum`` to that worker alone, if it lives. Its pid cannot be another's: only this process reaps it."""
        for pid, worker in self.workers.items():
            if worker == (slot, generation):
                kill(pid, signum)

    def turn(self) -> list[Event]:
        """Reap what ended and end the orphans; never waits. Call it after every SIGCHLD, and at ``next_check``."""
        events: list[Event] = []
        self._reap(events)
        if not self._trees:
            return events
        for _ in range(_PASSES):
            orphans = self._find_orphans()
            # A worker that died meanwhile may have left some of these, and others that are not in the list yet.
            settled = not self._reap(events)
            self._kill(orphans)
            if settled:
                events += self._remove_swept(orphans)
                break
        self._schedule_check(any(isinstance(event, Died) for event in events))
        return events

    def _reap(self, events: list[Event]) -> bool:
        """Reap all that ended, note the deaths of workers in ``events``; True if anything was reaped."""
        reaped = False
        try:
            while (ended := reap_any()) is not None:
                reaped = True
                self._record_exit(*ended, events)
        except ChildProcessError:
            pass  # there are no children at all: nothing more to reap
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
        """The children that are orphans. One in the session of a living worker is still its own (it resigned as a subreaper)."""
        children = [pid for pid in children_of(self._own_pid) if pid not in self.workers and pid not in self.spared]
        return [pid for pid in children if _session_of(pid) not in self.workers]

    def _kill(self, orphans: list[int]) -> None:
        for pid in orphans:
            session = _session_of(pid)
            if session is None:
                continue  # reaped since it was listed
            if pid not in self._orphans:
                self._orphans[pid] = frozenset({session} if session in self._trees else self._trees)
            kill_with_group(pid)

    def _remove_swept(self, orphans: list[int]) -> list[Event]:
        """Take out the trees that none of ``orphans`` may come from: one that cannot die yet holds up its own slot only."""
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
