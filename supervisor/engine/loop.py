"""The turns of the engine: read, decide, commit, apply. In the supervisor.

Nothing is undone. What workers said and what clients ask for is kept until the turn that decided about it is on disk. When the
disk refuses, requests are answered 503 and dropped; what has happened in the world is decided again, since memory has not moved.
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
"""How often a disk that refuses is tried again."""


class TurnLoop:
    """Has one turn after another. ``refusal`` is why the disk did not take the last one; ``pending``: one is on its way there.

    ``lifecycle`` and ``commands`` decide about jobs, ``slots`` about slots by hand. No job starts while ``draining``.
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
            events.FirstLoad: lambda turn, event: turn.wakes.append(partial(self.first_loads.loaded, event)),
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
        """Start the workers that are to run from the beginning; ``now`` in monotonic seconds."""
        self._scaling.begin(self._pool, now)
        self._pool.start(now)
        self._turns.wake()

    @property
    def busy(self) -> bool:
        """Whether a job runs, or its start is on its way to the disk."""
        return self._starting or bool(self._jobs.active)

    def close(self) -> None:
        """Try a disk that refuses no more."""
        if self._retry is not None:
            self._retry.cancel()

    def turn(self) -> None:
        """Read what came, decide about it, and put that on disk."""
        if self.pending or self._store.retention.forgetting:
            # Level-triggered readers would fire on every iteration of the loop; a turn comes when the commit is done.
            self._read(False)
            return
        trying = self.refusal is None or self._retry is None
        if self._held and not trying:
            self.slots.refuse(self.refused())
            return
        now = self._monotonic()
        if not self._held:
            self.slots.run(now)
            self._events += self._pool.collect(now)
        turn = self._decide(now, trying)
        if self.refusal is not None and not trying and turn.rows:
            # What has happened has happened: nothing goes on before it is on disk.
            self._held = True
            self._read(False)
        else:
            if self.refusal is not None and trying and not turn.rows:
                turn.rows.append(Probe())
            self._commit(turn)

    # --- decide ---------------------------------------------------------------------------------------------------------

    def _decide(self, now: float, trying: bool) -> Turn:
        """Decide about all that came; unless the disk is worth ``trying``, about nothing that comes of itself."""
        turn = Turn(self._jobs, self._pool.free, now, len(self._events), len(self._turns.commands))
        for event in self._events:
            self._decisions.get(type(event), self._tell_of)(turn, event)
        for command in self._turns.commands:
            command.run(turn)
        if trying:
            self.commands.time_out(turn)
            if self.commands.purging:  # what is to be purged must not start meanwhile
                self.commands.go_on_purging(turn)
            elif not self.draining:
                self.lifecycle.assign(turn)
        return turn

    def _printed(self, turn: Turn, event: events.Printed) -> None:
        self._reports.printed(turn, event)
        self._tell_of(turn, event)

    def _tell_of(self, turn: Turn, event: events.PoolEvent) -> None:
        turn.wakes.append(partial(self._shared.tell, event))

    # --- commit ---------------------------------------------------------------------------------------------------------

    def _commit(self, turn: Turn) -> None:
        rows = turn.transaction()
        if not rows:
            self._apply(turn)
            return
        self.pending = True
        self._starting = any(turn.active.values())
        self._store.commit(rows, partial(self._landed, turn))

    def _landed(self, turn: Turn, error: StoreError | None) -> None:
        """The store has written a turn, or says why not.

        Raises:
            TransitionError: the rows are wrong themselves; no retry mends a fault of this program.
        """
        if isinstance(error, TransitionError):
            raise error
        self.pending = self._starting = False
        before, self.refusal = self.refusal, error
        if error is not None:
            if before is None:
                self._shared.tell(TaskFailed(Task.WRITE_STORE, str(error)))
            self._refused(turn)
            return
        if before is not None:
            self._held = False
            self._shared.tell(StoreWritable())
        self._apply(turn)

    def _refused(self, turn: Turn) -> None:
        """Refuse what clients asked for. What has happened is decided again, without that, until it is on disk."""
        refusal = self.refused()
        for job_id in turn.secrets:
            self.lifecycle.drop_secret(job_id)
        self.commands.refuse(refusal)
        self._turns.refuse(turn.commands, refusal)
        self._turns.over()
        self._retry = self._shared.loop.call_later(RETRY_S, self._try_again)
        self._turns.wake()

    def refused(self) -> RequestError:
        """What is answered while the disk refuses."""
        return RequestError(503, f"the job store cannot be written: {self.refusal}", retry_after=5)

    def _try_again(self) -> None:
        self._retry = None
        self._turns.wake()

    # --- apply ----------------------------------------------------------------------------------------------------------

    def _apply(self, turn: Turn) -> None:
        """Bring memory to where the turn has it, act on the pool, and tell who waits."""
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
        # A slot that was closed may have had nothing to stop any more, and be free.
        if self._events or self._turns.commands or purging or turn.closed:
            self._turns.wake()
        self._retention.tidy(now)
        self._turns.end(now, self._next(now))

    def _next(self, now: float) -> float:
        """When there must be another turn at the latest."""
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
