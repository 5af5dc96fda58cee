"""Is the GPU memory of a dead worker's tree really free? Pure judgement from readings; used by the supervisor.

What counts is the memory in use, not the list of processes: memory has been seen held for 30 s with nobody listed (sglang#31871),
and containers hide the list. On each GPU of the slot it is compared with what was in use before the worker came, less what is
known to be others' (``pool.surplus``).

At most 64 MiB of surplus, and none of ours listed: the memory is free. Otherwise the time since it last fell is measured, since
243 GB of pinned memory took 26 s to go (sglang#32829). When that is over, it is *held* if NVML has shown that the surplus is our
worker's. It is *unverified* if NVML cannot tell: it lists no processes, or such as are not seen here, or never listed ours while
memory grew, or does not answer. It is unverified at once where waiting would show no more: nothing counts the GPU's memory, or
what came back may be that of another worker on the GPU, which NVML did not list, while ours is in use still.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

import msgspec

from supervisor.cause import HeldGpu, MemoryHolder, Unknown, UnknownGpu
from supervisor.gpu.records import Gpu, GpuProcess, GpuSample, Reading
from supervisor.pool.release.surplus import Surplus, newcomers, surplus

TOLERANCE_MIB = 64


class Verdict(enum.Enum):
    """What is known of the memory."""

    WAIT = "wait"
    FREE = "free"
    HELD = "held"
    UNVERIFIED = "unverified"


class Judgement(msgspec.Struct, frozen=True):
    """A verdict and what it rests on.

    ``freed_mib`` is how much came back (``None`` where that was never seen). For HELD, ``held`` has what did not and who has it;
    for UNVERIFIED, ``unknown`` has why that cannot be told.
    """

    verdict: Verdict
    freed_mib: int | None = None
    held: tuple[HeldGpu, ...] = ()
    unknown: tuple[UnknownGpu, ...] = ()


class Release:
    """Watches the GPUs of one worker generation, from before it touches them until their memory is free.

    Make it with the newest reading from before the handler loads; give ``living`` each reading while the worker lives, with
    ``measure`` before the one that shows what its end will free, call ``died`` when all it started is gone, then ``observe``
    until the verdict is not WAIT, and on while it is HELD.
    """

    def __init__(
        self, slot: str, gpus: Sequence[Gpu], baseline: Reading | None, *, attributes: bool, timeout: float
    ) -> None:
        """Watch for ``slot``; ``timeout`` in seconds is ``--release-timeout``.

        ``attributes``: NVML has listed a worker of this program with its memory before (``attributes_memory``), so a surplus that
        appears without one is evidence too.
        """
        several = len(gpus) > 1
        self._watches = [_Watch(gpu, slot, baseline, attributes, gpu.label if several else None) for gpu in gpus]
        self._timeout = timeout
        self.died_at: float | None = None
        self.verdict = Verdict.WAIT

    def measure(self) -> None:
        """A reading will be ``measured`` that shows what the worker holds now; until it comes, that is not known."""
        for watch in self._watches:
            watch.measured = False

    def living(self, reading: Reading, *, measured: bool = False) -> None:
        """Learn from a reading while the worker lives."""
        for watch in self._watches:
            watch.living(reading.of(watch.gpu.uuid), measured)

    def holds(self, reading: Reading, *, alone: bool, attributes: bool) -> int | None:
        """MiB that the living worker's tree has in use; ``None`` where the readings do not show it.

        What NVML lists of the tree counts. If it lists none of it with its memory, the tree holds none where NVML ``attributes``
        memory; elsewhere it holds what has come since before the worker, if its slot is ``alone`` on the GPU.
        """
        return _sum([watch.holds(reading.of(watch.gpu.uuid), alone, attributes) for watch in self._watches])

    def died(self, now: float) -> None:
        """The worker and all it started were gone at ``now`` (monotonic)."""
        self.died_at = now
        for watch in self._watches:
            watch.fell_at = now

    def neighbour_ended(self, uuids: Collection[str]) -> None:
        """A worker that was on these GPUs before this one has ended, and NVML did not list what it held."""
        for watch in self._watches:
            watch.neighbour_ended = watch.neighbour_ended or watch.gpu.uuid in uuids

    def observe(self, reading: Reading | None, now: float) -> Judgement:
        """Judge by a new reading, or by none when only time has passed. Readings begun before the death are ignored."""
        if reading is not None and self.died_at is not None and reading.at >= self.died_at:
            for watch in self._left():
                watch.observe(reading.of(watch.gpu.uuid), now)
        judged = self._judge(now)
        self.verdict = judged.verdict
        return judged

    def _judge(self, now: float) -> Judgement:
        left = self._left()
        freed = _sum([watch.freed() for watch in self._watches])
        if not left:
            return Judgement(Verdict.FREE, freed)
        over = [watch for watch in left if watch.hopeless or now - watch.fell_at >= self._timeout]
        held = [watch for watch in over if watch.is_evidence()]
        if held or (self.verdict is Verdict.HELD and any(watch.may_be_held() for watch in left)):
            return Judgement(Verdict.HELD, freed, held=tuple(watch.held() for watch in held or left))
        if len(over) < len(left):
            return Judgement(Verdict.WAIT)
        return Judgement(Verdict.UNVERIFIED, freed, unknown=tuple(watch.unknown() for watch in left))

    def deadline(self) -> float | None:
        """When ``observe`` gives a verdict by time alone; ``None`` when it does not."""
        if self.died_at is None or self.verdict is not Verdict.WAIT:
            return None
        return max((watch.fell_at + self._timeout for watch in self._left() if not watch.hopeless), default=None)

    def _left(self) -> list[_Watch]:
        return [watch for watch in self._watches if not watch.free]


def _sum(figures: list[int | None]) -> int | None:
    """The sum, if each of them is known."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def attributes_memory(reading: Reading) -> bool:
    """Whether NVML lists one of our workers with its memory: then it can, on this machine."""
    return any(process.slot and process.memory_mib for sample in reading.gpus for process in sample.processes or ())


class _Watch:
    """One GPU of the slot."""

    def __init__(self, gpu: Gpu, slot: str, baseline: Reading | None, attributes: bool, label: str | None) -> None:
        self.gpu = gpu
        self.free = False
        self.fell_at = float("inf")
        self.measured = False
        self.uncounted = False  # NVML answers, and has never told how much memory is in use
        self.neighbour_ended = False
        self._hidden = False  # so little is in use that ours seems free, and may be what a neighbour gave back
        self._label = label
        self._slot = slot
        self._attributes = attributes
        self._before = baseline.of(gpu.uuid) if baseline is not None else None
        self._counted = self._before is not None and self._before.counted
        self._strangers = {process.pid for process in (self._before.processes or () if self._before else ())}
        self._ours: set[int] = set()
        self._last: GpuSample | None = None  # the newest while the worker lived, preferably one that lists it
        self._last_lists_us = False
        self._now: GpuSample | None = None
        self._surplus: Surplus | None = None
        self._mark: int | None = None  # the surplus when it last fell
        self._peak: int | None = None

    def living(self, sample: GpuSample | None, measured: bool) -> None:
        """Learn from a sample while the worker lives; a ``measured`` one tells more of what it holds than those before."""
        if sample is None or not sample.counted:
            return
        self._counted = True
        ours = [process for process in sample.processes or () if self._is_ours(process)]
        self._ours |= {process.pid for process in ours}
        lists_us = bool(ours) and all(process.memory_mib for process in ours)
        if lists_us or not self._last_lists_us:
            self._last, self._last_lists_us = sample, lists_us
        if measured:
            self.measured, self._peak = True, None
        self._raise_peak(surplus(sample, self._before, self._is_ours))

    def holds(self, sample: GpuSample | None, alone: bool, attributes: bool) -> int | None:
        """MiB of the living worker's tree."""
        if sample is None:
            return None
        ours = [process for process in sample.processes or () if self._is_ours(process)]
        if listed := sum(process.memory_mib or 0 for process in ours):
            return listed
        if attributes and not ours:
            unknown = sample.processes is None or newcomers(sample, self._before, self._is_ours)
            return None if unknown else 0
        found = surplus(sample, self._before, self._is_ours)
        if found is not None and found.most <= TOLERANCE_MIB:
            return 0
        # One that is not seen here and came with the worker counts like one that is not listed.
        strangers = any(
            process.memory_mib is None and process not in ours and (process.visible or process.pid in self._strangers)
            for process in sample.processes or ()
        )
        return found.most if found is not None and alone and not strangers else None

    def observe(self, sample: GpuSample | None, now: float) -> None:
        """Judge a sample after the death; one that could not be read changes nothing."""
        if sample is None:
            return
        if not sample.counted:
            self.uncounted = not self._counted and sample.error is None
            return
        self.uncounted, self._counted = False, True
        self._now = sample
        found = surplus(sample, self._before, self._is_ours)
        if found is None and self._last_lists_us:
            found = surplus(sample, self._last, self._is_ours)
        if found is None:
            return
        self._surplus = found
        self._raise_peak(found)
        seems_free = found.most <= TOLERANCE_MIB and self._few_listed()
        then = self._before.memory_used_mib if self._before is not None else None
        self._hidden = seems_free and self.neighbour_ended and (then or 0) > TOLERANCE_MIB
        self.free = seems_free and not self._hidden
        if self._mark is None or found.most < self._mark - TOLERANCE_MIB:
            # The first figure starts no new time: that runs from the death.
            self.fell_at = self.fell_at if self._mark is None else now
            self._mark = found.most

    @property
    def hopeless(self) -> bool:
        """Whether waiting would show no more."""
        return self.uncounted or self._hidden

    def is_evidence(self) -> bool:
        """Whether NVML has shown that what is in use still is our worker's."""
        if self._now is None or self._surplus is None or self._now.processes is None:
            return False
        if any(process.memory_mib for process in self.still_listed()):
            return True
        if any(process.memory_mib is None and process.pid not in self._ours for process in self._now.processes):
            return False
        if self._last_lists_us:
            since = surplus(self._now, self._last, self._is_ours)
            return since is not None and since.least > TOLERANCE_MIB
        unexplained = surplus(self._last, self._before, self._is_ours) if self._last is not None else None
        if unexplained is not None and unexplained.most > TOLERANCE_MIB:
            return False
        return self._attributes and self._surplus.least > TOLERANCE_MIB

    def may_be_held(self) -> bool:
        """Whether what was shown to be our worker's may be in use still, by the newest reading."""
        if self._surplus is None or self._now is None:
            return False
        return self._now.processes is None or self._surplus.least > TOLERANCE_MIB or not self._few_listed()

    def still_listed(self) -> list[GpuProcess]:
        """Processes of the worker's tree that NVML lists still."""
        return [process for process in (self._now.processes or () if self._now else ()) if self._is_ours(process)]

    def freed(self) -> int | None:
        """MiB that came back; ``None`` when it was not seen how much was in use."""
        if self._peak is None or self._surplus is None or not (self.measured or self._peak > TOLERANCE_MIB):
            return None
        return max(0, self._peak - max(0, self._surplus.most))

    def held(self) -> HeldGpu:
        """Say what is held and by whom. What may be another's does not count unless nothing else is known to be ours."""
        by = tuple(MemoryHolder(process.pid, process.name) for process in self.still_listed())
        mib = None
        if self._surplus is not None:
            mib = self._surplus.least if self._surplus.least > TOLERANCE_MIB else max(0, self._surplus.most)
        return HeldGpu(mib, by, self._label)

    def unknown(self) -> UnknownGpu:
        """Why it cannot be said whose the memory is."""
        if self.uncounted:
            return UnknownGpu(Unknown.NO_COUNTER, gpu=self._label)
        if self._now is None:
            return UnknownGpu(Unknown.NO_READING, gpu=self._label)
        if self._surplus is None:
            return UnknownGpu(Unknown.NO_BASELINE, gpu=self._label)
        if self._hidden:
            return UnknownGpu(Unknown.NEIGHBOUR_ENDED, gpu=self._label)
        most = self._surplus.most
        if self._now.processes is None:
            return UnknownGpu(Unknown.NO_PROCESSES, most, gpu=self._label)
        unseen = tuple(process.pid for process in newcomers(self._now, self._before, self._is_ours))
        return UnknownGpu(Unknown.UNSEEN if unseen else Unknown.NOT_SHOWN, most, unseen, self._label)

    # --- inside

    def _is_ours(self, process: GpuProcess) -> bool:
        """One that was there before the worker came is not, even if it is the slot's last worker, listed still."""
        return process.pid in self._ours or (process.slot == self._slot and process.pid not in self._strangers)

    def _few_listed(self) -> bool:
        """Whether NVML lists next to nothing of our worker's tree."""
        listed = [process.memory_mib for process in self.still_listed()]
        return None not in listed and sum(mib or 0 for mib in listed) <= TOLERANCE_MIB

    def _raise_peak(self, found: Surplus | None) -> None:
        if found is not None:
            self._peak = found.most if self._peak is None else max(self._peak, found.most)
