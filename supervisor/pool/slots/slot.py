"""The record of a slot: its state, its worker and the running jobs; ``machine.py`` has the steps. In the supervisor.

A slot is the place on the GPUs that one worker after another occupies. Times are seconds on the monotonic clock.
"""

from __future__ import annotations

import enum

import msgspec

from supervisor.cause import Obstacle, PauseCause, PausedByHand, RefreshCause, SlotReason, WorkerEnd


class SlotState(str, enum.Enum):
    """The states of a slot, with their names in the API."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"
    RELEASING = "releasing"
    BACKOFF = "backoff"
    BROKEN = "broken"
    HELD = "held"
    LOST = "lost"
    PARKED = "parked"


OUT_OF_SERVICE = frozenset({SlotState.BROKEN, SlotState.HELD, SlotState.LOST, SlotState.PARKED})
"""The states in which a slot has no worker and will not soon start one by itself."""


class EndStep(enum.IntEnum):
    """The steps of a worker's termination."""

    MEASURE = 0
    STACK = 1
    ASKED = 2
    TERM = 3
    KILL = 4
    DEAD = 5


class Next(str, enum.Enum):
    """The reason a worker is terminated, which decides what the slot does after its memory is released."""

    REFRESH = "refresh"
    RESTART = "restart"
    PARK = "park"
    PAUSE = "pause"
    LOST = "lost"


class Slot(msgspec.Struct, frozen=True):
    """One slot at one moment. ``running`` are the ids of its jobs, ``cancelling`` those being cancelled; ``kind`` is its
    handler's (``wire.Ready``).

    ``failures`` counts consecutive workers that died before their first job. ``cause`` is why the worker is terminated or the
    slot has none; ``obstacle`` is what prevents the next one; ``blame``: a job that still runs at the termination may be the
    reason; ``stack_shown``: its stacks were requested. ``refresh_cause``: replace the worker once it is idle; ``pause_cause``:
    keep the slot out of service until it is resumed; a refresh waits for that.
    ``since``, ``exited_at`` and ``released_at`` are the times of a refresh: requested, tree exited, memory free. ``idle_since``
    is when the worker's last job ended or it became ready; ``idle_slot_since`` is the same for the slot: a refresh or restart
    does not change it, and it is None until a worker was ready after a resume. ``refresh_above_warned``: the notice that a worker
    holds too much memory before its first job was sent.
    """

    name: str
    index: int
    has_gpu: bool = False
    state: SlotState = SlotState.PARKED
    generation: int = 0
    pid: int | None = None
    kind: str = "unknown"
    capacity: int = 1
    running: tuple[str, ...] = ()
    cancelling: tuple[str, ...] = ()
    deadline: float | None = None
    end_step: EndStep = EndStep.MEASURE
    next: Next = Next.RESTART
    cause: WorkerEnd | None = None
    obstacle: Obstacle | None = None
    refresh_cause: RefreshCause | None = None
    pause_cause: PauseCause | None = None
    blame: bool = False
    stack_shown: bool = False
    since: float = 0.0
    exited_at: float = 0.0
    released_at: float = 0.0
    idle_since: float = 0.0
    idle_slot_since: float | None = None
    refresh_above_warned: bool = False
    freed_mib: int | None = None
    verified: bool = True
    failures: int = 0
    jobs: int = 0
    jobs_in_worker: int = 0
    refreshes: int = 0
    restarts: int = 0

    @property
    def worker_id(self) -> str:
        """The id of the current or last worker."""
        return f"{self.name}-{self.generation}"

    @property
    def cancels_gently(self) -> bool:
        """True if a job can be cancelled without terminating its worker."""
        return self.kind in ("coroutine", "async_generator", "unknown")

    @property
    def serving(self) -> bool:
        """True if the worker can run jobs."""
        return self.state in (SlotState.IDLE, SlotState.BUSY)

    @property
    def pausing(self) -> bool:
        """True if the slot is paused or will be, until it is resumed."""
        return self.pause_cause is not None

    @property
    def spare(self) -> bool:
        """True if the slot is scaled down: it is resumed when jobs wait."""
        return self.pause_cause is not None and not isinstance(self.pause_cause, PausedByHand)

    @property
    def reason(self) -> SlotReason | None:
        """The reason why the slot is out of service."""
        return self.cause if self.obstacle is None else self.obstacle

    @property
    def room(self) -> int:
        """Free capacity: the number of jobs that the worker can start now."""
        if not self.serving or self.cancelling or self.refresh_cause is not None or self.pause_cause is not None:
            return 0
        return max(0, self.capacity - len(self.running))
