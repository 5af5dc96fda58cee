"""Watches the memory of the GPUs for the pool: readings, and for each worker generation whether what it held is free again.

In the supervisor. It asks the reader process and judges what comes; a reader that hangs or dies delays nothing but the proof.
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
"""How often the GPUs are read for the screens, and to know what was in use before a worker comes."""

RELEASE_S = 0.005
"""How often while a dead worker's memory goes: it takes 0.4 to 0.8 s on an H100 (sglang#32829), microseconds elsewhere."""

HELD_S = 0.5
"""How often while memory is held, or has not gone for a second."""


class _Watch(Release):
    """One slot: the generation that is or was there last. ``number`` has them in the order in which workers came."""

    def __init__(self, place: Place, number: int, baseline: Reading | None, attributes: bool, timeout: float) -> None:
        super().__init__(place.name, place.gpus, baseline, attributes=attributes, timeout=timeout)
        self.place = place
        self.number = number
        self.ref: WorkerRef | None = None
        self.measuring: int | None = None


class GpuMemory:
    """The GPUs of all slots. ``samples`` is the newest reading of each, by UUID."""

    def __init__(self, reader: GpuReader, timeout: float, places: Sequence[Place] = (), refresh_above: int = 0) -> None:
        """Ask ``reader``; ``timeout`` is ``--release-timeout`` in seconds. The loss of a GPU of ``places`` is said, and so are
        living workers that hold more than ``refresh_above`` MiB, if that is not 0."""
        self.samples: dict[str, GpuSample] = {}
        self._reader = reader
        self._timeout = timeout
        self._watches: dict[str, _Watch] = {}
        self._faults = Faults(places)
        self._refresh_above = refresh_above
        used = Counter(gpu.uuid for place in places for gpu in place.gpus)
        self._alone = {place.name for place in places if all(used[gpu.uuid] == 1 for gpu in place.gpus)}
        self._somewhere = places[0].name if places else ""
        self._remarked: set[GpuRemark] = set()
        self._newest: Reading | None = None
        self._attributes = False
        self._workers = 0
        self._ask_at = 0.0
        self._learned: list[tuple[str, steps.Event]] = []

    def fileno(self) -> int:
        """Readable when ``collect`` has something to learn from."""
        return self._reader.fileno()

    def before_fork(self, place: Place) -> None:
        """Remember what is in use before a worker comes."""
        self._workers += 1
        watch = _Watch(place, self._workers, self._newest, self._attributes, self._timeout)
        self._watches[place.name] = watch
        for other in self._watches.values():
            if other.died_at is not None and other.verdict is not Verdict.FREE:
                self._may_hide(other, watch)
        self._learned += self._faults.of(place)

    def forked(self, slot: str, pid: int) -> None:
        """Note that the worker in ``slot`` is that process."""
        watch = self._watches.get(slot)
        if watch is not None:
            watch.ref = WorkerRef(pid, tuple(gpu.uuid for gpu in watch.place.gpus))

    def measure(self, place: Place, now: float) -> None:
        """Read what the worker holds now; ``Measured`` follows, and ``Overgrown`` if it is too much."""
        watch = self._watches.get(place.name)
        if watch is not None:
            watch.measure()
            watch.measuring = self._ask(now)

    def release(self, place: Place, now: float) -> None:
        """Watch the memory of a worker that is gone with all it started until it is free; ``Released`` or ``MemoryHeld``
        follows."""
        if place.name not in self._watches:  # a worker that never was forked
            self.before_fork(place)
        watch = self._watches[place.name]
        watch.measuring = None
        watch.died(now)
        for other in self._watches.values():
            self._may_hide(watch, other)
        self._ask(now)

    def forget(self, slot: str) -> None:
        """Stop watching for this slot."""
        self._watches.pop(slot, None)

    def prepare(self, now: float) -> None:
        """As ``collect``, which is told later what has been learned."""
        self._learned = self.collect(now)

    def collect(self, now: float) -> list[tuple[str, steps.Event]]:
        """Return what has been learned, and for which slot."""
        for event in (*self._reader.receive(now), *self._reader.tick(now)):
            if isinstance(event, Reading):
                self._read(event, now)
            elif isinstance(event, Xid):
                self._learned += self._faults.xid(event)
            elif isinstance(event, Unwatched):
                self._remark(XidsUnwatched(self._somewhere, event.reason))
            elif not isinstance(event, Listing):  # the reader is gone
                for watch in self._watches.values():
                    if watch.measuring is not None:
                        self._measured(watch)
        for watch in self._watches.values():
            if (deadline := watch.deadline()) is not None and now >= deadline:
                self._judge(watch, None, now)
        if now >= self._ask_at:
            self._ask(now)
        learned, self._learned = self._learned, []
        return learned

    def deadline(self) -> float:
        """When ``collect`` must be called again at the latest."""
        times = (self._reader.deadline(), *(watch.deadline() for watch in self._watches.values()))
        return min([0.0 if self._learned else self._ask_at, *(at for at in times if at is not None)])

    def _may_hide(self, ended: _Watch, other: _Watch) -> None:
        """Tell ``other`` of the end of a worker that was there before its own, and of whose memory NVML did not tell."""
        if ended.number < other.number and not self._attributes:
            other.neighbour_ended({gpu.uuid for gpu in ended.place.gpus})

    def _ask(self, now: float) -> int:
        refs = {name: watch.ref for name, watch in self._watches.items() if watch.ref is not None}
        self._ask_at = now + IDLE_S
        return self._reader.ask(refs, now)

    def _read(self, reading: Reading, now: float) -> None:
        if reading.error is None:
            self._newest = reading
            self._attributes = self._attributes or attributes_memory(reading)
            self.samples = {sample.uuid: sample for sample in reading.gpus}
            self._learned += self._faults.read(reading)
        for watch in self._watches.values():
            if watch.died_at is None:
                measured = watch.measuring is not None and reading.number >= watch.measuring
                watch.living(reading, measured=measured)
                if measured:
                    self._measured(watch)
                if self._refresh_above and watch.ref is not None:
                    self._weigh(watch, reading)
            elif watch.verdict in (Verdict.WAIT, Verdict.HELD):
                self._judge(watch, reading, now)
        self._ask_at = min(self._ask_at, now + self._pause(now))

    def _measured(self, watch: _Watch) -> None:
        watch.measuring = None
        self._learned.append((watch.place.name, steps.Measured()))

    def _weigh(self, watch: _Watch, reading: Reading) -> None:
        """Say that the living worker holds too much; or, once for all of them, that NVML does not show it."""
        name = watch.place.name
        held = watch.holds(reading, alone=name in self._alone, attributes=self._attributes)
        if held is not None and held > self._refresh_above:
            self._learned.append((name, steps.Overgrown(held, reading.at)))
        elif held is None and not self._attributes and all(sample.error is None for sample in reading.gpus):
            self._remark(RefreshAboveBlind(name, self._refresh_above))

    def _remark(self, notice: GpuRemark) -> None:
        """Tell a person, once, of whichever slot."""
        same = msgspec.structs.replace(notice, slot="")
        if same not in self._remarked:
            self._remarked.add(same)
            self._learned.append((notice.slot, steps.Remarked(notice)))

    def _judge(self, watch: _Watch, reading: Reading | None, now: float) -> None:
        before, judged = watch.verdict, watch.observe(reading, now)
        event: steps.Event
        if judged.verdict in (Verdict.FREE, Verdict.UNVERIFIED):
            event = steps.Released(judged.freed_mib, judged.verdict is Verdict.FREE, judged.unknown)
        elif judged.verdict is Verdict.HELD and before is not Verdict.HELD:
            event = steps.MemoryHeld(MemoryStaysInUse(judged.held))
        else:
            return
        self._learned.append((watch.place.name, event))

    def _pause(self, now: float) -> float:
        """How long until the next reading is needed."""
        died = [(watch.verdict, now - watch.died_at) for watch in self._watches.values() if watch.died_at is not None]
        if any(verdict is Verdict.WAIT and since < 1.0 for verdict, since in died):
            return RELEASE_S
        return HELD_S if any(verdict in (Verdict.WAIT, Verdict.HELD) for verdict, _ in died) else IDLE_S
