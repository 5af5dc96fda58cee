"""Is the GPU memory of a dead worker's tree really free? Pure judgement from readings; used by the supervisor.

What counts is the memory in use, not the list of processes: memory has been seen held for 30 s with nobody listed (sglang#31871),
and containers hide the list. On each GPU of the slot::

    surplus = in use now - in use before the worker came - growth of all other listed processes since then

At most 64 MiB of it, and the memory is free. Otherwise the time since it last fell is measured, since 243 GB of pinned memory
took 26 s to go (sglang#32829). When that is over, it is *held* if NVML has shown that the surplus is our worker's. It is
*unverified* if NVML cannot tell: it lists no processes, or never listed ours while memory grew, or does not answer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgspec

from supervisor.gpu.records import Gpu, GpuProcess, GpuSample, Reading

TOLERANCE_MIB = 64


class Verdict(enum.Enum):
    """What is known of the memory."""

    WAIT = "wait"
    FREE = "free"
    HELD = "held"
    UNVERIFIED = "unverified"


class Judgement(msgspec.Struct, frozen=True):
    """A verdict and what it rests on.

    ``freed_mib`` is how much came back (``None`` where that was never seen), ``held_mib`` how much did not, ``by`` the processes
    of the worker's tree that NVML lists still. ``reason`` says it in words, empty for FREE.
    """

    verdict: Verdict
    freed_mib: int | None = None
    held_mib: int = 0
    by: tuple[GpuProcess, ...] = ()
    reason: str = ""


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
        self._watches = [_Watch(gpu, slot, baseline, attributes, f"{gpu.label}: " if several else "") for gpu in gpus]
        self._timeout = timeout
        self._died_at = float("inf")
        self._held = False

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
        held = [watch.holds(reading.of(watch.gpu.uuid), alone, attributes) for watch in self._watches]
        known = [mib for mib in held if mib is not None]
        return sum(known) if len(known) == len(held) else None

    def died(self, now: float) -> None:
        """The worker and all it started were gone at ``now`` (monotonic)."""
        self._died_at = now
        for watch in self._watches:
            watch.fell_at = now

    def observe(self, reading: Reading | None, now: float) -> Judgement:
        """Judge by a new reading, or by none when only time has passed. Readings begun before the death are ignored."""
        for watch in self._watches:
            if not watch.free and reading is not None and reading.at >= self._died_at:
                watch.observe(reading.of(watch.gpu.uuid), now)
        left = [watch for watch in self._watches if not watch.free]
        if not left:
            return Judgement(Verdict.FREE, freed_mib=self._freed())
        over = [watch for watch in left if now - watch.fell_at >= self._timeout]
        held = [watch for watch in over if watch.is_evidence()]
        if held or self._held:
            self._held = True
            return self._judge(Verdict.HELD, held or left, _Watch.held_reason)
        if len(over) < len(left):
            return Judgement(Verdict.WAIT, reason="; ".join(watch.held_reason() for watch in left))
        return self._judge(Verdict.UNVERIFIED, left, _Watch.unknown_reason)

    def deadline(self) -> float | None:
        """When ``observe`` gives a new verdict by time alone; ``None`` when it does not."""
        left = [watch.fell_at + self._timeout for watch in self._watches if not watch.free]
        return max(left) if left and not self._held else None

    def _judge(self, verdict: Verdict, watches: Sequence[_Watch], say: Callable[[_Watch], str]) -> Judgement:
        return Judgement(
            verdict,
            freed_mib=self._freed(),
            held_mib=sum(max(0, watch.surplus or 0) for watch in watches),
            by=tuple(process for watch in watches for process in watch.still_listed()),
            reason="; ".join(map(say, watches)),
        )

    def _freed(self) -> int | None:
        freed = [watch.freed() for watch in self._watches]
        known = [mib for mib in freed if mib is not None]
        return sum(known) if known or not freed else None


def attributes_memory(reading: Reading) -> bool:
    """Whether NVML lists one of our workers with its memory: then it can, on this machine."""
    return any(process.slot and process.memory_mib for sample in reading.gpus for process in sample.processes or ())


class _Watch:
    """One GPU of the slot."""

    def __init__(self, gpu: Gpu, slot: str, baseline: Reading | None, attributes: bool, label: str) -> None:
        self.gpu = gpu
        self.free = False
        self.fell_at = float("inf")
        self.surplus: int | None = None
        self.measured = False
        self._label = label
        self._slot = slot
        self._attributes = attributes
        self._before = baseline.of(gpu.uuid) if baseline is not None else None
        self._strangers = {process.pid for process in (self._before.processes or () if self._before else ())}
        self._ours: set[int] = set()
        self._last: GpuSample | None = None  # the newest while the worker lived, preferably one that lists it
        self._last_lists_us = False
        self._now: GpuSample | None = None
        self._mark: int | None = None  # the surplus when it last fell
        self._peak: int | None = None

    def living(self, sample: GpuSample | None, measured: bool) -> None:
        """Learn from a sample while the worker lives; a ``measured`` one tells more of what it holds than those before."""
        if sample is None or sample.memory_used_mib is None:
            return
        ours = [process for process in sample.processes or () if self._is_ours(process)]
        self._ours |= {process.pid for process in ours}
        lists_us = any(process.memory_mib for process in ours)
        if lists_us or not self._last_lists_us:
            self._last, self._last_lists_us = sample, lists_us
        if measured:
            self.measured, self._peak = True, None
        self._raise_peak(self._surplus_over_before(sample))

    def holds(self, sample: GpuSample | None, alone: bool, attributes: bool) -> int | None:
        """MiB of the living worker's tree."""
        if sample is None:
            return None
        processes = sample.processes or ()
        listed = sum(process.memory_mib or 0 for process in processes if self._is_ours(process))
        if listed or attributes:
            return listed
        surplus = self._surplus_over_before(sample)
        if surplus is not None and surplus <= TOLERANCE_MIB:
            return 0
        strangers = any(process.memory_mib is None and not self._is_ours(process) for process in processes)
        return surplus if alone and not strangers else None

    def observe(self, sample: GpuSample | None, now: float) -> None:
        """Judge a sample after the death; one that could not be read changes nothing."""
        if sample is None or sample.memory_used_mib is None:
            return
        self._now = sample
        surplus = self._surplus_over_before(sample)
        if surplus is None:
            surplus = self._surplus_over_last(sample)
        if surplus is None:
            return
        self.surplus = surplus
        self._raise_peak(surplus)
        self.free = surplus <= TOLERANCE_MIB
        if self._mark is None or surplus < self._mark - TOLERANCE_MIB:
            # The first figure starts no new time: that runs from the death.
            self.fell_at = self.fell_at if self._mark is None else now
            self._mark = surplus

    def is_evidence(self) -> bool:
        """Whether NVML has shown that what is in use still is our worker's."""
        if self._now is None or self.surplus is None or self._now.processes is None:
            return False
        if any(process.memory_mib for process in self.still_listed()):
            return True
        if any(process.memory_mib is None and process.pid not in self._ours for process in self._now.processes):
            return False
        if self._last_lists_us:
            surplus = self._surplus_over_last(self._now)
            return surplus is not None and surplus > TOLERANCE_MIB
        unexplained = self._surplus_over_before(self._last) if self._last is not None else 0
        return self._attributes and (unexplained or 0) <= TOLERANCE_MIB

    def still_listed(self) -> list[GpuProcess]:
        """Processes of the worker's tree that NVML lists still."""
        return [process for process in (self._now.processes or () if self._now else ()) if self._is_ours(process)]

    def freed(self) -> int | None:
        """MiB that came back; ``None`` when it was not seen how much was in use."""
        if self._peak is None or self.surplus is None or not (self.measured or self._peak > TOLERANCE_MIB):
            return None
        return max(0, self._peak - max(0, self.surplus))

    def held_reason(self) -> str:
        """What is held and by whom."""
        if self.surplus is None:
            return f"{self._label}no reading"
        listed = ", ".join(f"pid {process.pid} ({process.name or 'unknown'})" for process in self.still_listed())
        return f"{self._label}{self.surplus} MiB still in use by {listed or 'no process that NVML lists'}"

    def unknown_reason(self) -> str:
        """Why it cannot be said whose the memory is."""
        if self._now is None:
            return f"{self._label}NVML gave no reading of its memory"
        if self.surplus is None:
            return f"{self._label}NVML gave no reading from before the worker came"
        why = "lists no processes" if self._now.processes is None else "does not show whose it is"
        return f"{self._label}{self.surplus} MiB more in use than before, and NVML {why}"

    # --- inside

    def _is_ours(self, process: GpuProcess) -> bool:
        """One that was there before the worker came is not, even if it is the slot's last worker, listed still."""
        return process.pid in self._ours or (process.slot == self._slot and process.pid not in self._strangers)

    def _surplus_over_before(self, sample: GpuSample) -> int | None:
        """MiB in use that neither was there before the worker came nor belongs to others."""
        return self._surplus(sample, self._before, 0)

    def _surplus_over_last(self, sample: GpuSample) -> int | None:
        """The same, measured from the last sample that listed the worker, less what it listed."""
        if self._last is None or not self._last_lists_us:
            return None
        ours = sum(process.memory_mib or 0 for process in self._last.processes or () if self._is_ours(process))
        return self._surplus(sample, self._last, ours)

    def _surplus(self, sample: GpuSample, base: GpuSample | None, ours: int) -> int | None:
        if base is None or base.memory_used_mib is None or sample.memory_used_mib is None:
            return None
        others = self._others(sample) - self._others(base)
        return sample.memory_used_mib - (base.memory_used_mib - ours) - others

    def _others(self, sample: GpuSample) -> int:
        return sum(process.memory_mib or 0 for process in sample.processes or () if not self._is_ours(process))

    def _raise_peak(self, surplus: int | None) -> None:
        if surplus is not None:
            self._peak = surplus if self._peak is None else max(self._peak, surplus)
