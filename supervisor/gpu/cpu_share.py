"""Divides the machine's cores among slots: ``OMP_NUM_THREADS``, and ``--cpu-affinity``; in the supervisor.

Otherwise each of N workers starts as many threads as there are cores, and they compete for them, also on GPUs, whose input is
prepared on the cores. Measured: two workers that multiply matrices with torch on two cores have 1.8 times the throughput with
one thread each as with two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from supervisor.gpu.records import Gpu

_CGROUPS = Path("/sys/fs/cgroup")
_SYSTEM = Path("/sys")


def usable(cpus: Collection[int], own_groups: str, cgroups: Path = _CGROUPS) -> float:
    """Return the number of cores that this process may use: ``cpus``, unless the quota of one of its control groups is less.

    ``own_groups`` is the text of ``/proc/self/cgroup``; of version 2, whose quota is ``cpu.max`` (kernel's cgroup-v2 document).
    """
    most = float(len(cpus))
    path = next((line[3:] for line in own_groups.splitlines() if line.startswith("0::")), None)
    if path is None:
        return most
    group = Path(path.lstrip("/"))
    for each in (group, *group.parents):
        quota, _, period = _read(cgroups / each / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            most = min(most, int(quota) / int(period))
    return most


def threads(cpus: Collection[int], slots: int, pinned: Collection[int] = (), most: float | None = None) -> int | None:
    """Return the number of compute threads for a worker of one of ``slots``; None if it has all of ``cpus`` for itself.

    It may be ``pinned`` to some of them. ``most`` defaults to ``usable``.
    """
    if most is None:
        most = usable(cpus, _read(Path("/proc/self/cgroup")))
    share = max(1, int(most / slots))
    if pinned:
        share = len(pinned) if most == len(cpus) else min(len(pinned), share)
    return share if share < len(cpus) else None


def share_out(
    slots: Mapping[str, Sequence[Gpu]], cpus: Collection[int], system: Path = _SYSTEM
) -> dict[str, tuple[int, ...]]:
    """Return the cores of each slot's workers: an even part of those of ``cpus`` that are near its GPUs, or of all.

    The hardware threads of one core stay together if the numbers allow it. If there are more slots than cores, slots share them.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, gpus in slots.items():
        near = set().union(*(_near(gpu, system) for gpu in gpus)) & set(cpus)
        groups.setdefault(tuple(sorted(near or cpus, key=lambda cpu: (_core(cpu, system), cpu))), []).append(name)
    return {name: share for near, names in groups.items() for name, share in _divide(near, names).items()}


def _divide(cpus: Sequence[int], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    if len(names) > len(cpus):
        return {name: (cpus[number % len(cpus)],) for number, name in enumerate(names)}
    ends = [number * len(cpus) // len(names) for number in range(len(names) + 1)]
    return {name: tuple(sorted(cpus[ends[number] : ends[number + 1]])) for number, name in enumerate(names)}


def _near(gpu: Gpu, system: Path) -> set[int]:
    """Return the cores near the GPU, by its PCI address; none if unknown."""
    return _numbers(_read(system / "bus/pci/devices" / gpu.pci / "local_cpulist")) if gpu.pci else set()


def _core(cpu: int, system: Path) -> int:
    """Return the first hardware thread of the core of ``cpu``."""
    return min(_numbers(_read(system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")), default=cpu)


def _numbers(text: str) -> set[int]:
    """Parse a kernel list such as ``0-3,8``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
