"""Slots without processes, in the hands of the test: what the engine sees in place of this machine's pool."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor.cause import EndedBecause, SpareCause, WorkerEnd, WorkerLost
from supervisor.gpu.records import Gpu, GpuProcess, GpuSample
from supervisor.pool import events
from supervisor.pool.interfaces import Place
from supervisor.pool.slots.free import FreeSlots
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.wire import messages as wire

PID = 40_000


class PretendPool:
    """An ``interfaces.Pool`` whose workers are ready at once and end a job when the test says so; slots come and go.

    ``given`` is what was assigned and has not ended: by slot and job the number of the start.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.slots: dict[str, Slot] = {}
        self.places: dict[str, Place] = {}
        self.samples: dict[str, GpuSample] = {}
        self.free = FreeSlots()
        self.changes = 0
        self.given: dict[tuple[str, str], int] = {}
        self.cancelled: list[tuple[str, str, int]] = []
        self._wake = wake
        self._index = 0
        self._events: list[events.PoolEvent] = []

    # --- what the test does with it

    def come(self, name: str, capacity: int = 1) -> None:
        """A slot with a GPU of its own, and a ready worker in it."""
        index, self._index = self._index, self._index + 1
        gpu = Gpu(index, f"GPU-{index}", "pretended")
        self.places[name] = Place(name, index, (gpu,), {})
        process = GpuProcess(PID + index, 100, "python", name)
        self.samples[gpu.uuid] = GpuSample(gpu.uuid, 100, 1000, processes=(process,))
        slot = Slot(
            name, index, state=SlotState.IDLE, generation=1, pid=PID + index, capacity=capacity, idle_slot_since=0.0
        )
        self._put(slot, changed=True)
        self._emit(events.FirstLoad(name))

    def go(self, name: str, end: WorkerEnd) -> None:
        """A slot is no more, and its jobs have lost their worker, which is nobody's fault."""
        slot = self.slots.pop(name)
        place = self.places.pop(name)
        del self.samples[place.gpus[0].uuid]
        self.free.update(slot, 0)
        self.changes += 1
        for job in slot.running:
            start = self.given.pop((name, job))
            self._emit(events.JobLost(job, start, name, WorkerLost(name, slot.pid, end, ()), charged=False))
        self._wake()

    def ends(self, name: str, job: str, output: bytes = b"1", start: int | None = None) -> None:
        """The worker in slot ``name`` has ended a job, or says so of an earlier ``start``."""
        current = self.given.get((name, job), -1)
        self._emit(events.JobEnded(job, current if start is None else start, name, wire.Done(job, "COMPLETED", output)))
        if start is None or start == current:
            del self.given[name, job]
            slot = self.slots[name]
            running = tuple(each for each in slot.running if each != job)
            state = SlotState.BUSY if running else SlotState.IDLE
            self._put(msgspec.structs.replace(slot, running=running, state=state, jobs=slot.jobs + 1))

    def _put(self, slot: Slot, *, changed: bool = False) -> None:
        self.slots[slot.name] = slot
        self.free.update(slot, slot.room)
        self.changes += changed

    def _emit(self, event: events.PoolEvent) -> None:
        self._events.append(event)
        self._wake()

    # --- what the engine does with it

    @property
    def parked(self) -> bool:
        return not self.given

    def start(self, now: float) -> None:
        pass

    def assign(self, name: str, run: wire.Run, start: int, now: float) -> None:
        slot = self.slots.get(name)
        if slot is None:  # it went while the start was on its way to the disk
            lost = WorkerLost(name, None, EndedBecause.TEMPLATE_DIED, ())
            self._emit(events.JobLost(run.job, start, name, lost, charged=False))
            return
        assert slot.room, f"{name} has no room"
        self.given[name, run.job] = start
        self._put(msgspec.structs.replace(slot, running=(*slot.running, run.job), state=SlotState.BUSY))

    def cancel(self, name: str, job: str, start: int, now: float, *, out_of_time: bool = False) -> None:
        self.cancelled.append((name, job, start))

    def distrust(self, name: str, what: str, now: float) -> None:
        raise AssertionError(what)

    def refresh(self, name: str, now: float) -> None:
        self._put(msgspec.structs.replace(self.slots[name], refreshes=self.slots[name].refreshes + 1), changed=True)

    def pause(self, name: str, now: float) -> None:
        raise AssertionError("not played")

    def resume(self, name: str, now: float) -> None:
        self._put(msgspec.structs.replace(self.slots[name], pause_cause=None, state=SlotState.IDLE), changed=True)

    def spare(self, name: str, cause: SpareCause, now: float) -> None:
        self._put(msgspec.structs.replace(self.slots[name], pause_cause=cause, state=SlotState.PARKED), changed=True)

    def reload(self, now: float) -> None:
        pass

    def stop(self, now: float, *, at_once: bool = False, idle_only: bool = False) -> None:
        pass

    def collect(self, now: float) -> list[events.PoolEvent]:
        collected, self._events = self._events, []
        return collected

    def perform(self, now: float) -> list[events.PoolEvent]:
        return []

    def deadline(self) -> float | None:
        return None

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        pass
