"""Decides which slots have lost a GPU, by NVML or a hardware Xid, and when it is back. Pure; used by the supervisor.

After a hardware Xid a GPU is back in service

- not before NVML can read it, and reports neither that it is lost nor that it needs a reset or a reboot (newer drivers do:
  ``nvmlDeviceGpuRecoveryAction_t``);
- when that has been so for ``BACK_S``, doubled each time that another Xid comes soon after it was back: older drivers do not
  report it, and a GPU that still needs its reset fails every job.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from supervisor.cause import GpusLost, LostGpu
from supervisor.gpu.records import GpuSample, Reading, Xid
from supervisor.notice import ProgramXid
from supervisor.pool.interfaces import Place
from supervisor.pool.slots import steps

BACK_S = 2.0
LONGEST_BACK_S = 300.0


class _Fault(msgspec.Struct):
    """A GPU with a hardware Xid at ``at``; it can be read since ``good_since`` and is back in service since ``back_at``."""

    at: float
    patience: float = BACK_S
    good_since: float | None = None
    back_at: float | None = None

    def next(self, at: float) -> _Fault:
        """Return the fault after another Xid at ``at``."""
        if self.back_at is None:
            return _Fault(at, self.patience)
        soon = at - self.back_at < 10 * self.patience
        return _Fault(at, min(2 * self.patience, LONGEST_BACK_S) if soon else BACK_S)

    def seen(self, at: float, good: bool) -> bool:
        """Return whether the GPU is still out of service, after a reading started at ``at`` that was ``good`` or not."""
        if self.back_at is None and at >= self.at:
            if not good:
                self.good_since = None
            elif self.good_since is None:
                self.good_since = at
            if self.good_since is not None and at - self.good_since >= self.patience:
                self.back_at = at
        return self.back_at is None


class Faults:
    """The state of all slots' GPUs. Reports each loss and each return once."""

    def __init__(self, places: Sequence[Place]) -> None:
        """Watch the GPUs of ``places``."""
        self._places = places
        self._faults: dict[str, _Fault] = {}
        self._out: dict[str, Xid | GpuSample] = {}  # the evidence, by UUID of the lost GPU
        self._lost: set[str] = set()

    def xid(self, xid: Xid) -> list[tuple[str, steps.Event]]:
        """Return the slot events of an Xid."""
        if xid.by_application:
            users = [(place.name, gpu) for place in self._places for gpu in place.gpus if gpu.uuid == xid.uuid]
            return [(name, steps.Remarked(ProgramXid(name, gpu.index, xid.code))) for name, gpu in users[:1]]
        before = self._faults.get(xid.uuid)
        self._faults[xid.uuid] = _Fault(xid.at) if before is None else before.next(xid.at)
        self._out[xid.uuid] = xid
        return self._changes()

    def read(self, reading: Reading) -> list[tuple[str, steps.Event]]:
        """Return the slot events of a reading. A GPU that cannot be read for an unknown reason does not change."""
        for sample in reading.gpus:
            fault = self._faults.get(sample.uuid)
            faulty = fault is not None and fault.seen(reading.at, sample.error is None)
            if sample.lost:
                self._out.setdefault(sample.uuid, sample)
            elif sample.error is None and not faulty:
                self._out.pop(sample.uuid, None)
        return self._changes()

    def of(self, place: Place) -> list[tuple[str, steps.Event]]:
        """Return the known loss of a slot that starts a worker: a parked slot ignored it."""
        return [(place.name, steps.GpuLost(self._cause(place)))] if place.name in self._lost else []

    def _changes(self) -> list[tuple[str, steps.Event]]:
        events: list[tuple[str, steps.Event]] = []
        for place in self._places:
            out = any(gpu.uuid in self._out for gpu in place.gpus)
            if out and place.name not in self._lost:
                self._lost.add(place.name)
                events += self.of(place)
            elif not out and place.name in self._lost:
                self._lost.discard(place.name)
                events.append((place.name, steps.GpuBack()))
        return events

    def _cause(self, place: Place) -> GpusLost:
        shown = [(gpu.index, self._out[gpu.uuid]) for gpu in place.gpus if gpu.uuid in self._out]
        return GpusLost(tuple(_lost(index, by) for index, by in shown))


def _lost(index: int, by: Xid | GpuSample) -> LostGpu:
    return LostGpu(index, xid=by.code) if isinstance(by, Xid) else LostGpu(index, error=by.error)
