"""What the pool tells the engine: the workers' words about jobs, lost jobs, output, and what a person should know.

A job may run more than once, also in the same slot: ``start`` says by which of its starts something came, by the number that
``Pool.assign`` was given.
"""

from __future__ import annotations

from typing import Union

import msgspec

from supervisor.cause import WorkerEnd, WorkerLost
from supervisor.notice import Notice
from supervisor.wire import messages as wire


class OfJob(msgspec.Struct, frozen=True):
    """Something about a running job."""

    job: str
    start: int
    slot: str


class JobProgressed(OfJob, frozen=True):
    """It reported progress (JSON)."""

    value: bytes


class JobYielded(OfJob, frozen=True):
    """It produced stream chunk ``index`` (JSON)."""

    index: int
    value: bytes


class JobEnded(OfJob, frozen=True):
    """Its worker says that it has ended."""

    done: wire.Done


class JobLost(OfJob, frozen=True):
    """It lost its worker; ``cause`` says how, with the worker's last words.

    ``charged``: it may be the reason, so the start counts as one of its attempts. ``machinery``: the template died, which is
    nobody's fault that is known.
    """

    cause: WorkerLost
    charged: bool
    machinery: bool = False


class Printed(msgspec.Struct, frozen=True):
    """Lines that a worker wrote, with the job whose code printed them, or that ran alone at that time."""

    slot: str
    job: str | None
    lines: list[str]
    start: int = 0


class FirstLoad(msgspec.Struct, frozen=True):
    """How the first start of a slot ended: a worker is ready (no ``end``), or why there is none. ``failed`` is the worker's own
    word when the handler cannot be served."""

    slot: str
    end: WorkerEnd | None = None
    failed: wire.LoadFailed | None = None

    @property
    def ok(self) -> bool:
        """Whether a worker is ready."""
        return self.end is None


PoolEvent = Union[OfJob, Printed, FirstLoad, Notice]
