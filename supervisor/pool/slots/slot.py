"""What a slot is: its state, the worker in it, and the jobs that it runs. A record; ``machine.py`` has the steps.

A slot is the place on the GPUs that one worker after another occupies. Times are seconds on the monotonic clock.
"""

from __future__ import annotations

import enum

import msgspec

from supervisor.cause import Obstacle, PauseCause, PausedByHand, RefreshCause, SlotReason, WorkerEnd


class SlotState(str, enum.Enum):
    """The states of a slot, as the API says them."""

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
"""The states in which a slot has no worker, nor soon will have one by itself."""


class EndStep(enum.IntEnum):
    """How far the end of a worker has come."""

    MEASURE = 0
    STACK = 1
    ASKED = 2
    TERM = 3
    KILL = 4
    DEAD = 5


class Next(str, enum.Enum):
    """What becomes of the slot once its worker is gone and the memory is free."""

    REFRESH = "refresh"
    RESTART = "restart"
    PARK = "park"
    PAUSE = "pause"
    LOST = "lost"


class Slot(msgspec.Struct, frozen=True):
    """One slot at one moment. ``running`` are the ids of the jobs in the worker, ``cancelling`` those told to stop, ``kind`` says
    what its handler is.

    ``failures`` counts workers in a row that died before they were given a job. ``cause`` says why the worker ends, or the slot
    has none; ``obstacle`` what keeps it from the next one; ``blame`` that a job which still runs when the worker is ended may be
    the reason; ``stack_shown`` that its stacks were asked for. ``refresh_cause``: the worker is to be replaced once it is idle;
    ``pause_cause``: the slot is to be out of service until it is resumed, and a refresh waits for that.
    ``since``, ``gone_at`` and ``released_at`` are the moments of a refresh: asked for, tree gone, memory free. ``idle_since`` is
    when the worker's last job ended, or it became ready; ``idle_slot_since`` is the same of the slot: a refresh or a restart does
    not change it, and it is None until a worker was ready after a resume. ``refresh_above_warned``: a worker without any job was
    said to hold too much.
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
    gone_at: float = 0.0
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
        """The name of the worker that is or was there last."""
        return f"{self.name}-{self.generation}"

    @property
    def cancels_gently(self) -> bool:
        """Whether a job can be stopped without its worker."""
        return self.kind in ("coroutine", "async_generator", "unknown")

    @property
    def serving(self) -> bool:
        """Whether its worker is there for jobs."""
        return self.state in (SlotState.IDLE, SlotState.BUSY)

    @property
    def pausing(self) -> bool:
        """Whether the slot is to be out of service until it is resumed, or is so."""
        return self.pause_cause is not None

    @property
    def spare(self) -> bool:
        """Whether it is paused by scaling, which resumes it when jobs wait."""
        return self.pause_cause is not None and not isinstance(self.pause_cause, PausedByHand)

    @property
    def reason(self) -> SlotReason | None:
        """Why the slot is not in service."""
        return self.cause if self.obstacle is None else self.obstacle

    @property
    def room(self) -> int:
        """How many more jobs the worker can take now."""
        if not self.serving or self.cancelling or self.refresh_cause is not None or self.pause_cause is not None:
            return 0
        return max(0, self.capacity - len(self.running))
