"""What a slot is: its state, the worker in it, and the jobs that it runs. A record; ``machine.py`` has the steps.

A slot is the place on the GPUs that one worker after another occupies. Times are seconds on the monotonic clock.
"""

from __future__ import annotations

import enum

import msgspec


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
    """One slot at one moment. ``running`` maps nothing but names: job ids in the worker, ``cancelling`` those told to stop.

    ``failures`` counts workers in a row that died before they were given a job. ``cause`` says why the worker ends or the slot
    is out of service; ``blame`` that a job which still runs when the worker is ended may be the reason; ``stack_shown``
    that its stacks were asked for; ``pausing`` that the slot is to be out of service until it is resumed, ``spare`` that scaling
    does that when jobs wait; ``put_off`` is why this worker is to be refreshed should it be resumed before it has ended.
    ``since``, ``gone_at`` and ``released_at`` are the moments of a refresh: asked for, tree gone, memory free. ``idle_since`` is
    when the worker's last job ended, or it became ready; ``free_since`` is the same of the slot: a refresh or a restart does not
    change it, and it is None until a worker was ready after a resume. ``told_above``: a worker without any job was said to hold
    too much.
    """

    name: str
    index: int
    has_gpu: bool = False
    state: SlotState = SlotState.PARKED
    generation: int = 0
    pid: int | None = None
    capacity: int = 1
    running: tuple[str, ...] = ()
    cancelling: tuple[str, ...] = ()
    deadline: float | None = None
    end_step: EndStep = EndStep.MEASURE
    next: Next = Next.RESTART
    cause: str | None = None
    refresh_cause: str | None = None
    blame: bool = False
    stack_shown: bool = False
    pausing: bool = False
    spare: bool = False
    put_off: str | None = None
    since: float = 0.0
    gone_at: float = 0.0
    released_at: float = 0.0
    idle_since: float = 0.0
    free_since: float | None = None
    told_above: bool = False
    freed_mib: int | None = None
    verified: bool = True
    failures: int = 0
    jobs: int = 0
    jobs_in_worker: int = 0
    refreshes: int = 0
    restarts: int = 0

    @property
    def room(self) -> int:
        """How many more jobs the worker can take now."""
        if self.state not in (SlotState.IDLE, SlotState.BUSY) or self.refresh_cause is not None or self.cancelling:
            return 0
        return max(0, self.capacity - len(self.running))
