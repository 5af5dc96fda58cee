"""Watches the memory of the GPUs for the pool: readings, and for each worker generation whether what it held is free again.

In the supervisor. It asks the reader process and judges what comes; a reader that hangs or dies delays nothing but the proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, Union

import msgspec

from supervisor.cause import MemoryStaysInUse
from supervisor.gpu.records import GpuSample, Listing, Reading, Unwatched, WorkerRef, Xid
from supervisor.notice import GpuRemark, RefreshAboveBlind, XidsUnwatched
from supervisor.pool.interfaces import Place
from supervisor.pool.release.faults import Faults
from supervisor.pool.release.verdict import Judgement, Release, Verdict, attributes_memory
from supervisor.pool.slots import steps

IDLE_S = 1.0
"""How often the GPUs are read for the screens, and to know what was in use before a worker comes."""

RELEASE_S = 0.005
"""How often while a dead worker's memory goes: it takes 0.4 to 0.8 s on an H100 (sglang#32829), microseconds elsewhere."""

HELD_S = 0.5
"""How often while memory is held, or has not gone for a second."""


class ReaderEvent(Protocol):
    """The reader hung or died (``gpu.client.ReaderGone``)."""

    @property
    def reason(self) -> str:
        """What happened."""


Heard = Union[Listing, Reading, Xid, Unwatched, ReaderEvent]


class GpuReader(Protocol):
    """``gpu.client.Reader``, or a fake."""

    def fileno(self) -> int:
        """Readable when ``receive`` has something."""

    def ask(self, workers: Mapping[str, WorkerRef], now: float) -> int:
        """Ask for a reading; returns the number that it will carry."""

    def receive(self, now: float) -> Sequence[Heard]:
        """What has come."""

    def tick(self, now: float) -> Sequence[Heard]:
        """What time alone brings."""

    def deadline(self) -> float | None:
        """When ``tick`` must be called."""


class _Watch:
    """One slot: the generation that is or was there last."""

    def __init__(self, place: Place, release: Release, number: int) -> None:
        self.place = place
        self.number = number  # in the order in which workers came
        self.release = release
        self.ref: WorkerRef | None = None
        self.measuring: int | None = None
        self.died_at: float | None = None
        self.verdict: Verdict | None = None

    def deadline(self) -> float | None:
        """When time alone brings a verdict."""
        return self.release.deadline() if self.died_at is not None and self.verdict is None else None


class GpuMemory:
    """The GPUs of all slots. ``samples`` is the newest reading of each, by UUID; ``trouble`` why there is none."""

    def __init__(self, reader: GpuReader, timeout: float, places: Sequence[Place] = (), refresh_above: int = 0) -> None:
        """Ask ``reader``; ``timeout`` is ``--release-timeout`` in seconds. The loss of a GPU of ``places`` is said, and so are
        living workers that hold more than ``refresh_above`` MiB, if that is not 0."""
        self.samples: dict[str, GpuSample] = {}
        self.trouble: str | None = None
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
        self._asked: int | None = None

    def fileno(self) -> int:
        """Readable when ``collect`` has something to learn from."""
        return self._reader.fileno()

    def before_fork(self, place: Place) -> None:
        """Remember what is in use before a worker comes."""
        release = Release(place.name, place.gpus, self._newest, attributes=self._attributes, timeout=self._timeout)
        self._workers += 1
        watch = self._watches[place.name] = _Watch(place, release, self._workers)
        for other in self._watches.values():
            if other.died_at is not None and other.verdict is not Verdict.FREE:
                self._may_hide(other, watch)
        self._learned += self._faults.of(place)

    def forked(self, slot: str, pid: int) -> None:
        """That worker is this process."""
        watch = self._watches.get(slot)
        if watch is not None:
            watch.ref = WorkerRef(pid, tuple(gpu.uuid for gpu in watch.place.gpus))

    def measure(self, place: Place, now: float) -> None:
        """Read what the worker holds now; ``Measured`` follows, and ``Overgrown`` if it is too much."""
        watch = self._watches.get(place.name)
        if watch is not None:
            watch.release.measure()
            watch.measuring = self._ask(now)

    def release(self, place: Place, now: float) -> None:
        """The worker and all it started are gone: watch until the memory is free; ``Released`` or ``MemoryHeld`` follows."""
        watch = self._watches.get(place.name)
        if watch is None:  # a worker that never was forked
            self.before_fork(place)
            watch = self._watches[place.name]
        watch.measuring = None
        watch.died_at = now
        watch.release.died(now)
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
        """What has been learned for which slot."""
        learned, self._learned = self._learned, []
        for event in (*self._reader.receive(now), *self._reader.tick(now)):
            if isinstance(event, Reading):
                self._read(event, learned, now)
            elif isinstance(event, Xid):
                learned += self._faults.xid(event)
            elif isinstance(event, Unwatched):
                self._remark(XidsUnwatched(self._somewhere, event.reason), learned)
            elif not isinstance(event, Listing):
                self._gone(event.reason, learned)
        for name, watch in self._watches.items():
            deadline = watch.deadline()
            if deadline is not None and now >= deadline:
                self._judge(name, watch, watch.release.observe(None, now), learned)
        if now >= self._ask_at:
            self._ask(now)
        return learned

    def deadline(self) -> float:
        """When ``collect`` must be called again at the latest."""
        times = [0.0 if self._learned else self._ask_at]
        if (reader := self._reader.deadline()) is not None:
            times.append(reader)
        times += [deadline for watch in self._watches.values() if (deadline := watch.deadline()) is not None]
        return min(times)

    def _may_hide(self, ended: _Watch, other: _Watch) -> None:
        """Tell ``other`` of the end of a worker that was there before its own, and of whose memory NVML did not tell."""
        if ended.number < other.number and not self._attributes:
            other.release.neighbour_ended({gpu.uuid for gpu in ended.place.gpus})

    def _ask(self, now: float) -> int:
        refs = {name: watch.ref for name, watch in self._watches.items() if watch.ref is not None}
        self._ask_at = now + IDLE_S
        self._asked = self._reader.ask(refs, now)
        return self._asked

    def _read(self, reading: Reading, learned: list[tuple[str, steps.Event]], now: float) -> None:
        self.trouble = reading.error
        if reading.error is None:
            self._newest = reading
            self._attributes = self._attributes or attributes_memory(reading)
            self.samples = {sample.uuid: sample for sample in reading.gpus}
            learned += self._faults.read(reading)
        for name, watch in self._watches.items():
            if watch.died_at is None:
                measured = watch.measuring is not None and reading.number >= watch.measuring
                watch.release.living(reading, measured=measured)
                if measured:
                    watch.measuring = None
                    learned.append((name, steps.Measured()))
                if self._refresh_above and watch.ref is not None:
                    self._weigh(name, watch.release, reading, learned)
            elif watch.verdict in (None, Verdict.HELD):
                self._judge(name, watch, watch.release.observe(reading, now), learned)
        self._ask_at = min(self._ask_at, now + self._pause(now))

    def _weigh(self, name: str, release: Release, reading: Reading, learned: list[tuple[str, steps.Event]]) -> None:
        """Say that the living worker holds too much; or, once for all of them, that NVML does not show it."""
        held = release.holds(reading, alone=name in self._alone, attributes=self._attributes)
        if held is not None and held > self._refresh_above:
            learned.append((name, steps.Overgrown(held, reading.at)))
        elif held is None and not self._attributes and all(sample.error is None for sample in reading.gpus):
            self._remark(RefreshAboveBlind(name, self._refresh_above), learned)

    def _remark(self, notice: GpuRemark, learned: list[tuple[str, steps.Event]]) -> None:
        """Tell a person, once, of whichever slot."""
        same = msgspec.structs.replace(notice, slot="")
        if same not in self._remarked:
            self._remarked.add(same)
            learned.append((notice.slot, steps.Remarked(notice)))

    def _gone(self, reason: str, learned: list[tuple[str, steps.Event]]) -> None:
        self.trouble = reason
        for name, watch in self._watches.items():
            if watch.measuring is not None:
                watch.measuring = None
                learned.append((name, steps.Measured()))

    def _judge(self, name: str, watch: _Watch, judged: Judgement, learned: list[tuple[str, steps.Event]]) -> None:
        before, watch.verdict = watch.verdict, None if judged.verdict is Verdict.WAIT else judged.verdict
        if judged.verdict is Verdict.FREE:
            learned.append((name, steps.Released(judged.freed_mib, verified=True)))
        elif judged.verdict is Verdict.UNVERIFIED:
            learned.append((name, steps.Released(judged.freed_mib, verified=False, unknown=judged.unknown)))
        elif judged.verdict is Verdict.HELD and before is not Verdict.HELD:
            learned.append((name, steps.MemoryHeld(MemoryStaysInUse(judged.held))))

    def _pause(self, now: float) -> float:
        """How long until the next reading is needed."""
        waiting = [
            watch
            for watch in self._watches.values()
            if watch.died_at is not None and watch.verdict in (None, Verdict.HELD)
        ]
        if any(watch.verdict is None and now - (watch.died_at or now) < 1.0 for watch in waiting):
            return RELEASE_S
        return HELD_S if waiting else IDLE_S
