"""The events that the pool reports to the engine: job messages, lost jobs, output, and notices. In the supervisor.

A job may run more than once, also in the same slot: ``start`` is the number of the start, as passed to ``Pool.assign``.
"""

from __future__ import annotations

from typing import Union

import msgspec

from supervisor.cause import WorkerEnd, WorkerLost
from supervisor.notice import Notice
from supervisor.wire import messages as wire


class OfJob(msgspec.Struct, frozen=True):
    """An event of a running job."""

    job: str
    start: int
    slot: str


class JobProgressed(OfJob, frozen=True):
    """The job reported progress (JSON)."""

    value: bytes


class JobYielded(OfJob, frozen=True):
    """The job produced stream chunk ``index`` (JSON)."""

    index: int
    value: bytes


class JobEnded(OfJob, frozen=True):
    """The worker reported that the job ended."""

    done: wire.Done


class JobLost(OfJob, frozen=True):
    """The job lost its worker; ``cause`` says how, with the worker's output tail.

    ``charged``: the job may be the reason, so the start counts as an attempt. ``machinery``: the template died, for a reason
    that is not known to be the job.
    """

    cause: WorkerLost
    charged: bool
    machinery: bool = False


class Printed(msgspec.Struct, frozen=True):
    """Lines that a worker wrote, with the job that printed them or ran alone at that time."""

    slot: str
    job: str | None
    lines: list[str]
    start: int = 0


class FirstLoad(msgspec.Struct, frozen=True):
    """The result of a slot's first start: a worker is ready (no ``end``), or the reason why not. ``failed`` is the worker's
    message that the handler cannot be served."""

    slot: str
    end: WorkerEnd | None = None
    failed: wire.LoadFailed | None = None

    @property
    def ok(self) -> bool:
        """True if a worker is ready."""
        return self.end is None


PoolEvent = Union[OfJob, Printed, FirstLoad, Notice]
