"""Watches the supervisors' memory and descriptors, and whether they are flat over one life; a thread of the chaos program."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.house import House
from tests.chaos.remains import tidy

EVERY_S = 1.0
LONG_ENOUGH = 100
"""How many samples a life must have for its fifths to be compared: before, caches fill."""

TOLERANCE = 0.05
FEW_DESCRIPTORS = 3
"""How many more descriptors are none too many: 5 % of few is less than one connection."""

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Sample(NamedTuple):
    """A supervisor at one moment: resident memory, and open descriptors without those of clients' connections."""

    house: str
    life: int
    memory_kib: int
    descriptors: int


class Steady:
    """Takes samples from ``start`` to ``close``; cleans up after the fake driver, too."""

    def __init__(self, houses: Sequence[House], nvml: Path) -> None:
        self.samples: list[Sample] = []
        self._houses = houses
        self._nvml = nvml
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            tidy(self._nvml)
            for house in self._houses:
                life = house.life
                with contextlib.suppress(OSError):
                    self.samples.append(take(house.name, life.number, life.process.pid))


def take(house: str, life: int, pid: int) -> Sample:
    """A sample of the process ``pid``.

    Raises:
        OSError: it is gone.
    """
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KIB
    descriptors = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            descriptors += "socket:" not in str(link.readlink())
    return Sample(house, life, memory, descriptors)


class Trend(NamedTuple):
    """The medians of the second and of the last fifth of one supervisor's life."""

    house: str
    life: int
    seconds: int
    memory_kib: tuple[float, float]
    descriptors: tuple[float, float]

    @property
    def flat(self) -> bool:
        (memory, memory_end), (descriptors, descriptors_end) = self.memory_kib, self.descriptors
        few = max(FEW_DESCRIPTORS, TOLERANCE * descriptors)
        return memory_end <= memory * (1 + TOLERANCE) and descriptors_end <= descriptors + few

    def __str__(self) -> str:
        (memory, memory_end), (descriptors, descriptors_end) = self.memory_kib, self.descriptors
        return (
            f"{self.house} life {self.life} ({self.seconds} s): memory {memory / 1024:.1f} to {memory_end / 1024:.1f} MiB"
            f" ({memory_end / memory - 1:+.1%}), descriptors {descriptors:g} to {descriptors_end:g}"
        )


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Those of each life that was long enough."""
    found = []
    for house, life in dict.fromkeys((sample.house, sample.life) for sample in samples):
        own = [sample for sample in samples if (sample.house, sample.life) == (house, life)]
        if len(own) >= LONG_ENOUGH:
            fifth = len(own) // 5
            early, late = own[fifth : 2 * fifth], own[-fifth:]
            memory = [statistics.median(it.memory_kib for it in part) for part in (early, late)]
            descriptors = [statistics.median(it.descriptors for it in part) for part in (early, late)]
            found.append(Trend(house, life, len(own), (memory[0], memory[1]), (descriptors[0], descriptors[1])))
    return found
