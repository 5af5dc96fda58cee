"""The turns of the engine: read, decide, commit, apply. In the supervisor.

Nothing is undone. Worker events and client commands are kept until the turn that decided about them is on disk. When a commit
fails, commands are answered 503 and dropped; events are decided again, since memory has not changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from supervisor.engine.commands import Commands
from supervisor.engine.lifecycle import Lifecycle
from supervisor.engine.reports import Reports
from supervisor.engine.retention import Retention
from supervisor.engine.scaling import Scaling
from supervisor.engine.shared import Shared
from supervisor.engine.slots import SlotCommands
from supervisor.engine.startup import FirstLoads
from supervisor.engine.turn import Turn
from supervisor.errors import RequestError, StoreError, TransitionError
from supervisor.notice import StoreWritable, Task, TaskFailed
from supervisor.pool import events
from supervisor.store.writes import Probe

RETRY_S = 0.5
"""Interval of retries while the store cannot be written."""


class TurnLoop:
    """Runs one turn after another. ``refusal`` is why the last commit failed; ``pending``: a commit is in progress.

    ``lifecycle`` and ``commands`` decide about jobs, ``slots`` has the manual slot commands. No job starts while ``draining``.
    """

    def __init__(self, shared: Shared) -> None:
        self.refusal: StoreError | None = None
        self.pending = False
        self.draining = False
        self.lifecycle = Lifecycle(shared)
        self.commands = Commands(shared, self.lifecycle)
        self.slots = SlotCommands(shared)
        self.first_loads = FirstLoads(shared.pool, shared.loop)
        self._reports = reports = Reports(shared, self.lifecycle)
        self._decisions: dict[type[events.PoolEvent], Callable[[Turn, Any], None]] = {
            events.JobEnded: reports.ended,
            events.JobLost: reports.lost,
            events.JobProgressed: reports.progressed,
            events.JobYielded: reports.yielded,
            events.Printed: self._printed,
            events.FirstLoad: lambda turn, event: turn.wakes.append(partial(self.first_loads.record, event)),
        }
        self._scaling = Scaling(shared.settings)
        self._retention = Retention(shared)
        self._shared = shared
        self._store = shared.store
        self._turns = shared.turns
        self._jobs = shared.jobs
        self._pool = shared.pool
        self._monotonic = shared.clock.monotonic
        self._events: list[events.PoolEvent] = []
        self._reading = True
        self._held = False
        self._starting = False
        self._retry: asyncio.TimerHandle | None = None

    def start(self, now: float) -> None:
        """Start the initial workers; ``now`` in monotonic seconds."""
        self._scaling.begin(self._pool, now)
        self._pool.start(now)
        self._turns.wake()

    @property
    def busy(self) -> bool:
        """True while a job runs or its start is being committed."""
        return self._starting or bool(self._jobs.active)

    def close(self) -> None:
        """Stop retrying a store that cannot be written."""
        if self._retry is not None:
            self._retry.cancel()

    def turn(self) -> None:
        """Read events, decide about them and about commands, and commit."""
        if self.pending or self._store.retention.deleting:
            # Level-triggered readers would fire on every loop iteration; the next turn comes when the commit completes.
            self._read(False)
            return
        trying = self.refusal is None or self._retry is None
        if self._held and not trying:
            self.slots.reject(self.unavailable())
            return
        now = self._monotonic()
        if not self._held:
            self.slots.run(now)
            self._events += self._pool.collect(now)
        turn = self._decide(now, trying)
        if self.refusal is not None and not trying and turn.rows:
            # Events cannot be rejected: wait until they are on disk.
            self._held = True
            self._read(False)
        else:
            if self.refusal is not None and trying and not turn.rows:
                turn.rows.append(Probe())
            self._commit(turn)

    # --- decide ---------------------------------------------------------------------------------------------------------

    def _decide(self, now: float, trying: bool) -> Turn:
        """Decide about events and commands and, when the store is worth ``trying``, about deadlines, purges and queued jobs."""
        turn = Turn(self._jobs, self._pool.free, now, len(self._events), len(self._turns.commands))
        for event in self._events:
            self._decisions.get(type(event), self._notify_later)(turn, event)
        for command in self._turns.commands:
            command.run(turn)
        if trying:
            self.commands.time_out(turn)
            if self.commands.purging:  # jobs to be purged must not start meanwhile
                self.commands.continue_purge(turn)
            elif not self.draining:
                self.lifecycle.assign(turn)
        return turn

    def _printed(self, turn: Turn, event: events.Printed) -> None:
        self._reports.printed(turn, event)
        self._notify_later(turn, event)

    def _notify_later(self, turn: Turn, event: events.PoolEvent) -> None:
        turn.wakes.append(partial(self._shared.notify, event))

    # --- commit ---------------------------------------------------------------------------------------------------------

    def _commit(self, turn: Turn) -> None:
        rows = turn.transaction()
        if not rows:
            self._apply(turn)
            return
        self.pending = True
        self._starting = any(turn.active.values())
        self._store.commit(rows, partial(self._committed, turn))

    def _committed(self, turn: Turn, error: StoreError | None) -> None:
        """Apply a turn after its commit, or handle the commit's ``error``.

        Raises:
            TransitionError: the rows are wrong, a bug of this program; no retry helps.
        """
        if isinstance(error, TransitionError):
            raise error
        self.pending = self._starting = False
        before, self.refusal = self.refusal, error
        if error is not None:
            if before is None:
                self._shared.notify(TaskFailed(Task.WRITE_STORE, str(error)))
            self._commit_failed(turn)
            return
        if before is not None:
            self._held = False
            self._shared.notify(StoreWritable())
        self._apply(turn)

    def _commit_failed(self, turn: Turn) -> None:
        """Reject the clients' commands. Events are decided again, without those, until they are on disk."""
        refusal = self.unavailable()
        for job_id in turn.secrets:
            self.lifecycle.drop_secret(job_id)
        self.commands.reject(refusal)
        self._turns.reject(turn.commands, refusal)
        self._turns.over.notify()
        self._retry = self._shared.loop.call_later(RETRY_S, self._try_again)
        self._turns.wake()

    def unavailable(self) -> RequestError:
        """Make the error that answers requests while the store cannot be written."""
        return RequestError(503, f"the job store cannot be written: {self.refusal}", retry_after=5)

    def _try_again(self) -> None:
        self._retry = None
        self._turns.wake()

    # --- apply ----------------------------------------------------------------------------------------------------------

    def _apply(self, turn: Turn) -> None:
        """Make the turn's changes in memory, act on the pool, and wake waiters."""
        now = self._monotonic()
        del self._events[: turn.events]
        self._turns.take(turn.commands)
        turn.apply()
        self._shared.logs.apply(turn.logs)
        for act in turn.acts:
            act()
        if self.draining:
            self._pool.stop(now, idle_only=True)
        elif not self.commands.purging:
            self._scaling.act(self._pool, bool(self._jobs.backlog), self.lifecycle.waits, now)
        self._events += self._pool.perform(now)
        for wake in turn.wakes:
            wake()
        self._read(True)
        purging = self.commands.purging and self.refusal is None
        # A closed slot may have had nothing to stop any more, and be free.
        if self._events or self._turns.commands or purging or turn.closed:
            self._turns.wake()
        self._retention.tidy(now)
        self._turns.end(now, self._next(now))

    def _next(self, now: float) -> float:
        """Return the deadline of the next turn."""
        own = self._jobs.deadline(now, self._shared.clock.wall_ms()) if self.refusal is None else None
        scaling = None if self.draining else self._scaling.deadline
        times = (self._pool.deadline(), own, scaling, self._retention.next)
        return min(at for at in times if at is not None)

    def _read(self, reading: bool) -> None:
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._pool.resume_reading()
                self._turns.wake()
            else:
                self._pool.pause_reading()
