"""Decides from readings whether the GPU memory of a dead worker's tree is free. Pure; used by the supervisor.

The criterion is the memory in use, not the list of processes: memory has been held for 30 s with no process listed
(sglang#31871), and containers hide the list. On each GPU of the slot it is compared with the memory in use before the worker
started, without the known growth of other processes (``release.surplus``).

The memory is *free* with at most 64 MiB of surplus and no process of ours listed. Otherwise the timeout runs from the last time
that the surplus fell: 243 GB of pinned memory took 26 s to be released (sglang#32829). After it, the memory is *held* if NVML has
shown that the surplus is our worker's. It is *unverified* if NVML cannot show that: it lists no processes, or processes that are
not visible here, or never listed ours while memory grew, or does not answer. It is unverified at once where waiting cannot help:
the GPU has no memory counter, or the memory released may be that of another worker on the GPU, which NVML did not list, while
ours is still in use.
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
    """The states of the memory."""

    WAIT = "wait"
    FREE = "free"
    HELD = "held"
    UNVERIFIED = "unverified"


class Judgement(msgspec.Struct, frozen=True):
    """A verdict and its evidence.

    ``freed_mib`` is the memory released (``None`` if never measured). ``held`` is the memory still in use and its holders, for
    HELD; ``unknown`` the reasons, for UNVERIFIED.
    """

    verdict: Verdict
    freed_mib: int | None = None
    held: tuple[HeldGpu, ...] = ()
    unknown: tuple[UnknownGpu, ...] = ()


class Release:
    """Judges the GPUs of one worker generation, from before its start until their memory is free.

    Create it with the newest reading before the handler loads. Pass each reading to ``living`` while the worker lives, after
    ``measure`` for the one before its termination; call ``died`` when its tree has exited, then ``observe`` until the verdict is
    not WAIT, and as long as it is HELD.
    """

    def __init__(
        self, slot: str, gpus: Sequence[Gpu], baseline: Reading | None, *, attributes: bool, timeout: float
    ) -> None:
        """Judge for ``slot``; ``timeout`` is ``--release-timeout`` in seconds.

        ``attributes``: NVML has listed a worker of this program with its memory before (``attributes_memory``), so a surplus
        without a listed process is evidence too.
        """
        several = len(gpus) > 1
        self._watches = [_GpuWatch(gpu, slot, baseline, attributes, gpu.label if several else None) for gpu in gpus]
        self._timeout = timeout
        self.died_at: float | None = None
        self.verdict = Verdict.WAIT

    def measure(self) -> None:
        """Announce a ``measured`` reading: until it comes, the worker's memory is unknown."""
        for watch in self._watches:
            watch.measured = False

    def living(self, reading: Reading, *, measured: bool = False) -> None:
        """Record a reading while the worker lives."""
        for watch in self._watches:
            watch.living(reading.of(watch.gpu.uuid), measured)

    def holds(self, reading: Reading, *, alone: bool, attributes: bool) -> int | None:
        """Return the MiB that the living worker's tree has in use; ``None`` if the readings do not show it.

        That is what NVML lists for the tree. If it lists no memory of it: 0 where NVML ``attributes`` memory; elsewhere the
        growth since before the worker's start, if its slot is ``alone`` on the GPU.
        """
        return _sum([watch.holds(reading.of(watch.gpu.uuid), alone, attributes) for watch in self._watches])

    def died(self, now: float) -> None:
        """Record that the worker's tree had exited at ``now`` (monotonic seconds)."""
        self.died_at = now
        for watch in self._watches:
            watch.fell_at = now

    def neighbour_ended(self, uuids: Collection[str]) -> None:
        """Record the exit of an earlier worker on these GPUs whose memory NVML did not list."""
        for watch in self._watches:
            watch.neighbour_ended = watch.neighbour_ended or watch.gpu.uuid in uuids

    def observe(self, reading: Reading | None, now: float) -> Judgement:
        """Return the judgement after a new reading, or after time only. Readings started before the exit are ignored."""
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
        over = [watch for watch in left if watch.undecidable or now - watch.fell_at >= self._timeout]
        held = [watch for watch in over if watch.is_evidence()]
        if held or (self.verdict is Verdict.HELD and any(watch.may_be_held() for watch in left)):
            return Judgement(Verdict.HELD, freed, held=tuple(watch.held() for watch in held or left))
        if len(over) < len(left):
            return Judgement(Verdict.WAIT)
        return Judgement(Verdict.UNVERIFIED, freed, unknown=tuple(watch.unknown() for watch in left))

    def deadline(self) -> float | None:
        """Return when ``observe`` changes the verdict by time alone; ``None`` if it does not."""
        if self.died_at is None or self.verdict is not Verdict.WAIT:
            return None
        return max((watch.fell_at + self._timeout for watch in self._left() if not watch.undecidable), default=None)

    def _left(self) -> list[_GpuWatch]:
        return [watch for watch in self._watches if not watch.free]


def _sum(figures: list[int | None]) -> int | None:
    """Return the sum, or None if any figure is unknown."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def attributes_memory(reading: Reading) -> bool:
    """Return whether NVML lists a worker of ours with its memory, as it then can on this machine."""
    return any(process.slot and process.memory_mib for sample in reading.gpus for process in sample.processes or ())


class _GpuWatch:
    """The evidence about one GPU of the slot."""

    def __init__(self, gpu: Gpu, slot: str, baseline: Reading | None, attributes: bool, label: str | None) -> None:
        self.gpu = gpu
        self.free = False
        self.fell_at = float("inf")
        self.measured = False
        self.uncounted = False  # NVML answers, but has never reported the memory in use
        self.neighbour_ended = False
        self._hidden = False  # ours seems free, but a neighbour may have released the memory instead
        self._label = label
        self._slot = slot
        self._attributes = attributes
        self._before = baseline.of(gpu.uuid) if baseline is not None else None
        self._counted = self._before is not None and self._before.counted
        self._earlier = {process.pid for process in (self._before.processes or () if self._before else ())}
        self._ours: set[int] = set()
        self._last: GpuSample | None = None  # the newest of the living worker, preferably one that lists it
        self._last_lists_us = False
        self._now: GpuSample | None = None
        self._surplus: Surplus | None = None
        self._mark: int | None = None  # the surplus when it last fell
        self._peak: int | None = None

    def living(self, sample: GpuSample | None, measured: bool) -> None:
        """Record a sample while the worker lives; a ``measured`` one replaces the earlier peak."""
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
        """Return the MiB in use by the living worker's tree, as ``Release.holds``."""
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
        # A process that is not visible and came after the worker counts as unlisted.
        foreign = any(
            process.memory_mib is None and process not in ours and (process.visible or process.pid in self._earlier)
            for process in sample.processes or ()
        )
        return found.most if found is not None and alone and not foreign else None

    def observe(self, sample: GpuSample | None, now: float) -> None:
        """Record a sample after the exit; one that could not be read changes nothing."""
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
            # The first figure does not restart the timeout, which runs from the exit.
            self.fell_at = self.fell_at if self._mark is None else now
            self._mark = found.most

    @property
    def undecidable(self) -> bool:
        """True if waiting cannot change the verdict."""
        return self.uncounted or self._hidden

    def is_evidence(self) -> bool:
        """Return whether NVML has shown that the memory still in use is our worker's."""
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
        """Return whether our worker's memory may still be in use, by the newest reading."""
        if self._surplus is None or self._now is None:
            return False
        return self._now.processes is None or self._surplus.least > TOLERANCE_MIB or not self._few_listed()

    def still_listed(self) -> list[GpuProcess]:
        """Return the processes of the worker's tree that NVML still lists."""
        return [process for process in (self._now.processes or () if self._now else ()) if self._is_ours(process)]

    def freed(self) -> int | None:
        """Return the MiB released; ``None`` if the memory in use was never measured."""
        if self._peak is None or self._surplus is None or not (self.measured or self._peak > TOLERANCE_MIB):
            return None
        return max(0, self._peak - max(0, self._surplus.most))

    def held(self) -> HeldGpu:
        """Return what is held and its holders. Memory that may not be ours counts only if no other is known to be."""
        by = tuple(MemoryHolder(process.pid, process.name) for process in self.still_listed())
        mib = None
        if self._surplus is not None:
            mib = self._surplus.least if self._surplus.least > TOLERANCE_MIB else max(0, self._surplus.most)
        return HeldGpu(mib, by, self._label)

    def unknown(self) -> UnknownGpu:
        """Return why it is unknown whose the memory is."""
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
        """Return whether the worker started ``process``: not if it is older, such as the slot's last worker, still listed."""
        return process.pid in self._ours or (process.slot == self._slot and process.pid not in self._earlier)

    def _few_listed(self) -> bool:
        """Return whether NVML lists at most the tolerance for our worker's tree."""
        listed = [process.memory_mib for process in self.still_listed()]
        return None not in listed and sum(mib or 0 for mib in listed) <= TOLERANCE_MIB

    def _raise_peak(self, found: Surplus | None) -> None:
        if found is not None:
            self._peak = found.most if self._peak is None else max(self._peak, found.most)
