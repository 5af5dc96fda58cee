"""Watches the memory of the GPUs for the pool: readings, and the release of each worker generation's memory.

In the supervisor. It requests readings from the reader process and judges them; a reader that hangs or dies delays only that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from supervisor.cause import MemoryStaysInUse
from supervisor.gpu.records import GpuSample, Listing, Reading, Unwatched, WorkerRef, Xid
from supervisor.notice import GpuRemark, RefreshAboveBlind, XidsUnwatched
from supervisor.pool.interfaces import GpuReader, Place
from supervisor.pool.release.faults import Faults
from supervisor.pool.release.verdict import Release, Verdict, attributes_memory
from supervisor.pool.slots import steps

IDLE_S = 1.0
"""Seconds between readings for the screens, and for the memory in use before a worker starts."""

RELEASE_S = 0.005
"""Seconds between readings during a release: it takes 0.4 to 0.8 s on an H100 (sglang#32829), microseconds elsewhere."""

HELD_S = 0.5
"""Seconds between readings while memory is held, or a release takes longer than a second."""


class _Watch(Release):
    """The release of a slot's current or last generation. ``number`` orders all generations by their start."""

    def __init__(self, place: Place, number: int, baseline: Reading | None, attributes: bool, timeout: float) -> None:
        super().__init__(place.name, place.gpus, baseline, attributes=attributes, timeout=timeout)
        self.place = place
        self.number = number
        self.ref: WorkerRef | None = None
        self.measuring: int | None = None


class GpuMemory:
    """The memory of all slots' GPUs. ``samples`` is the newest reading of each, by UUID."""

    def __init__(self, reader: GpuReader, timeout: float, places: Sequence[Place] = (), refresh_above: int = 0) -> None:
        """Request readings from ``reader``; ``timeout`` is ``--release-timeout`` in seconds. Lost GPUs of ``places`` are
        reported, and living workers that hold more than ``refresh_above`` MiB (0: none)."""
        self.samples: dict[str, GpuSample] = {}
        self._reader = reader
        self._timeout = timeout
        self._watches: dict[str, _Watch] = {}
        self._faults = Faults(places)
        self._refresh_above = refresh_above
        used = Counter(gpu.uuid for place in places for gpu in place.gpus)
        self._alone = {place.name for place in places if all(used[gpu.uuid] == 1 for gpu in place.gpus)}
        self._any_slot = places[0].name if places else ""
        self._remarked: set[GpuRemark] = set()
        self._newest: Reading | None = None
        self._attributes = False
        self._workers = 0
        self._request_at = 0.0
        self._events: list[tuple[str, steps.Event]] = []

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``collect`` has something to read."""
        return self._reader.fileno()

    def before_fork(self, place: Place) -> None:
        """Record the memory in use before a worker starts."""
        self._workers += 1
        watch = _Watch(place, self._workers, self._newest, self._attributes, self._timeout)
        self._watches[place.name] = watch
        for other in self._watches.values():
            if other.died_at is not None and other.verdict is not Verdict.FREE:
                self._may_hide(other, watch)
        self._events += self._faults.of(place)

    def forked(self, slot: str, pid: int) -> None:
        """Record the process of the worker in ``slot``."""
        watch = self._watches.get(slot)
        if watch is not None:
            watch.ref = WorkerRef(pid, tuple(gpu.uuid for gpu in watch.place.gpus))

    def measure(self, place: Place, now: float) -> None:
        """Measure the worker's memory; ``Measured`` follows, and ``MemoryExceeded`` if it is too much."""
        watch = self._watches.get(place.name)
        if watch is not None:
            watch.measure()
            watch.measuring = self._request(now)

    def release(self, place: Place, now: float) -> None:
        """Watch the memory of a worker whose tree has exited until it is free; ``Released`` or ``MemoryHeld`` follows."""
        if place.name not in self._watches:  # the worker was never forked
            self.before_fork(place)
        watch = self._watches[place.name]
        watch.measuring = None
        watch.died(now)
        for other in self._watches.values():
            self._may_hide(watch, other)
        self._request(now)

    def unwatch(self, slot: str) -> None:
        """Stop watching for this slot."""
        self._watches.pop(slot, None)

    def prepare(self, now: float) -> None:
        """Collect events now, and return them from the next ``collect``."""
        self._events = self.collect(now)

    def collect(self, now: float) -> list[tuple[str, steps.Event]]:
        """Return new events, each with its slot."""
        for event in (*self._reader.receive(now), *self._reader.tick(now)):
            if isinstance(event, Reading):
                self._read(event, now)
            elif isinstance(event, Xid):
                self._events += self._faults.xid(event)
            elif isinstance(event, Unwatched):
                self._remark(XidsUnwatched(self._any_slot, event.reason))
            elif not isinstance(event, Listing):  # ReaderFailed
                for watch in self._watches.values():
                    if watch.measuring is not None:
                        self._measured(watch)
        for watch in self._watches.values():
            if (deadline := watch.deadline()) is not None and now >= deadline:
                self._judge(watch, None, now)
        if now >= self._request_at:
            self._request(now)
        events, self._events = self._events, []
        return events

    def deadline(self) -> float:
        """Return the latest time at which ``collect`` must be called again."""
        times = (self._reader.deadline(), *(watch.deadline() for watch in self._watches.values()))
        return min([0.0 if self._events else self._request_at, *(at for at in times if at is not None)])

    def _may_hide(self, ended: _Watch, other: _Watch) -> None:
        """Report the exit of an earlier worker to ``other``, if NVML did not list its memory."""
        if ended.number < other.number and not self._attributes:
            other.neighbour_ended({gpu.uuid for gpu in ended.place.gpus})

    def _request(self, now: float) -> int:
        refs = {name: watch.ref for name, watch in self._watches.items() if watch.ref is not None}
        self._request_at = now + IDLE_S
        return self._reader.request(refs, now)

    def _read(self, reading: Reading, now: float) -> None:
        if reading.error is None:
            self._newest = reading
            self._attributes = self._attributes or attributes_memory(reading)
            self.samples = {sample.uuid: sample for sample in reading.gpus}
            self._events += self._faults.read(reading)
        for watch in self._watches.values():
            if watch.died_at is None:
                measured = watch.measuring is not None and reading.number >= watch.measuring
                watch.living(reading, measured=measured)
                if measured:
                    self._measured(watch)
                if self._refresh_above and watch.ref is not None:
                    self._check_refresh_above(watch, reading)
            elif watch.verdict in (Verdict.WAIT, Verdict.HELD):
                self._judge(watch, reading, now)
        self._request_at = min(self._request_at, now + self._pause(now))

    def _measured(self, watch: _Watch) -> None:
        watch.measuring = None
        self._events.append((watch.place.name, steps.Measured()))

    def _check_refresh_above(self, watch: _Watch, reading: Reading) -> None:
        """Report a living worker that holds too much, or, once for all workers, that NVML does not show it."""
        name = watch.place.name
        held = watch.holds(reading, alone=name in self._alone, attributes=self._attributes)
        if held is not None and held > self._refresh_above:
            self._events.append((name, steps.MemoryExceeded(held, reading.at)))
        elif held is None and not self._attributes and all(sample.error is None for sample in reading.gpus):
            self._remark(RefreshAboveBlind(name, self._refresh_above))

    def _remark(self, notice: GpuRemark) -> None:
        """Emit a notice, once for all slots."""
        same = msgspec.structs.replace(notice, slot="")
        if same not in self._remarked:
            self._remarked.add(same)
            self._events.append((notice.slot, steps.Remarked(notice)))

    def _judge(self, watch: _Watch, reading: Reading | None, now: float) -> None:
        before, judged = watch.verdict, watch.observe(reading, now)
        event: steps.Event
        if judged.verdict in (Verdict.FREE, Verdict.UNVERIFIED):
            event = steps.Released(judged.freed_mib, judged.verdict is Verdict.FREE, judged.unknown)
        elif judged.verdict is Verdict.HELD and before is not Verdict.HELD:
            event = steps.MemoryHeld(MemoryStaysInUse(judged.held))
        else:
            return
        self._events.append((watch.place.name, event))

    def _pause(self, now: float) -> float:
        """Return the seconds until the next reading is needed."""
        died = [(watch.verdict, now - watch.died_at) for watch in self._watches.values() if watch.died_at is not None]
        if any(verdict is Verdict.WAIT and since < 1.0 for verdict, since in died):
            return RELEASE_S
        return HELD_S if any(verdict in (Verdict.WAIT, Verdict.HELD) for verdict, _ in died) else IDLE_S
