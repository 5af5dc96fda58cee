"""Selection of GPUs, their division into slots, and the variables that pin a worker; pure, used by the supervisor.

CUDA and NVML order GPUs differently unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, so that is always set. A worker's value is absolute,
not relative to the parent's: the parent's own ``CUDA_VISIBLE_DEVICES`` is resolved here first (CUDA Programming Guide,
environment variables: entries are indices, UUIDs or unique prefixes of one; the list ends at the first invalid one; empty: none).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from supervisor.errors import GpuError
from supervisor.gpu.records import Gpu


class SlotPlan(msgspec.Struct, frozen=True):
    """A planned slot: its name, its number (from 0) and the GPUs of its workers; none on a CPU."""

    name: str
    index: int
    gpus: tuple[Gpu, ...]


def select(spec: str, gpus: Sequence[Gpu], visible: str | None, reason: str | None = None) -> list[Gpu]:
    """Return the GPUs that ``--gpus`` selects: ``auto``, ``all``, ``none`` or a comma-separated list.

    ``gpus`` are NVML's, ``reason`` says why there are none or one is missing (``Listing.reason``), ``visible`` is the parent's
    ``CUDA_VISIBLE_DEVICES`` (``None``: not set). An entry of the list is an NVML index, a UUID or a unique prefix of one; a GPU
    in MIG mode selects all its instances. A list keeps its order, ``auto`` and ``all`` keep NVML's. A ``visible`` that names no
    device hides real GPUs only, not simulated ones.

    Raises:
        GpuError: an entry does not exist, is hidden by ``visible``, or is invalid; ``auto`` and ``none`` never fail.
    """
    allowed = _allowed(gpus, visible)
    word = spec.strip().lower()
    if word in ("none", "auto"):
        return allowed if word == "auto" else []
    available = _available(gpus, allowed, visible, reason)
    if word == "all":
        if not allowed:
            raise GpuError(f"--gpus all: {available}; --gpus none serves on the CPU")
        if reason and visible is None:
            raise GpuError(f"--gpus all: {available}; --gpus auto takes those that can be read")
        return allowed
    entries = [entry.strip() for entry in spec.split(",")]
    if not all(entries):
        raise GpuError(f"--gpus {spec!r} is not a list; use auto, all, none, or indices and UUIDs separated by commas")
    chosen: dict[str, Gpu] = {}
    for entry in entries:
        matches = _matches(entry, gpus)
        usable = [gpu for gpu in matches if gpu in allowed]
        if not usable or _ambiguous(entry, matches):
            called = f"GPU {entry}" if entry.isdigit() else entry
            problem = (
                "means more than one GPU" if usable else "is hidden from this program" if matches else "does not exist"
            )
            raise GpuError(f"--gpus {spec}: {called} {problem}; {available}")
        chosen |= {gpu.uuid: gpu for gpu in usable}
    return list(chosen.values())


def plan_slots(
    gpus: Sequence[Gpu], workers: int = 1, gpus_per_worker: int = 1, workers_per_gpu: int = 1
) -> list[SlotPlan]:
    """Divide ``gpus`` into slots: ``gpu0``, ``gpu2+3`` for a worker on several, ``gpu0.1`` for one of several on a GPU.

    Without GPUs there are ``workers`` slots on the CPU, ``cpu0`` and so on.

    Raises:
        GpuError: the GPUs cannot be divided that way.
    """
    if not gpus:
        return [SlotPlan(f"cpu{index}", index, ()) for index in range(workers)]
    left = len(gpus) % gpus_per_worker
    if left:
        raise GpuError(
            f"--gpus-per-worker {gpus_per_worker} does not divide {len(gpus)}, the number of GPUs: {left} would be left over;"
            " choose others with --gpus"
        )
    if gpus_per_worker > 1 and any(gpu.mig is not None for gpu in gpus):
        raise GpuError("--gpus-per-worker: CUDA shows a process one MIG instance only; use 1, or whole GPUs")
    groups = [tuple(gpus[at : at + gpus_per_worker]) for at in range(0, len(gpus), gpus_per_worker)]
    named = [
        (_group_name(group) + (f".{part}" if workers_per_gpu > 1 else ""), group)
        for group in groups
        for part in range(workers_per_gpu)
    ]
    return [SlotPlan(name, index, group) for index, (name, group) in enumerate(named)]


def environment(gpus: Sequence[Gpu], pin_by: str = "index") -> dict[str, str | None]:
    """Return the variables that make exactly ``gpus`` (maybe none) visible to a worker; ``pin_by`` is ``index`` or ``uuid``.

    Index by default, because libraries parse the entries as numbers (vllm#13815). CUDA accepts MIG instances by UUID only, and
    does not know the UUIDs of simulated GPUs.
    """
    by_uuid = pin_by == "uuid" or any(gpu.mig is not None for gpu in gpus)
    entries = [gpu.uuid if by_uuid and not gpu.simulated else str(gpu.index) for gpu in gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(entries), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def describe(gpus: Iterable[Gpu]) -> str:
    """Return the text for a message: ``0 (NVIDIA L4, GPU-8f1c…), 1 (…)``."""
    return ", ".join(f"{gpu.number} ({gpu.name}, {gpu.uuid})" for gpu in gpus)


# --- inside


def _allowed(gpus: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    if visible is None:
        return list(gpus)
    named: set[str] = set()
    for entry in (part.strip() for part in visible.split(",")):
        matches = _matches(entry, gpus)
        if not matches or _ambiguous(entry, matches):
            break
        named |= {gpu.uuid for gpu in matches}
    return [gpu for gpu in gpus if gpu.uuid in named or (gpu.simulated and not named)]


def _matches(entry: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return all GPUs that match an entry."""
    if entry.isascii() and entry.isdigit():
        return [gpu for gpu in gpus if gpu.index == int(entry)]
    if not entry.upper().startswith(("GPU-", "MIG-", "SIM-")):
        return []
    start = entry.lower()
    exact = [gpu for gpu in gpus if gpu.uuid.lower() == start]
    return exact or [
        gpu for gpu in gpus if any((name or "").lower().startswith(start) for name in (gpu.uuid, gpu.parent))
    ]


def _ambiguous(entry: str, matches: Sequence[Gpu]) -> bool:
    """Return whether the entry names several devices: the instances of one GPU, named by their parent, count as one."""
    if len(matches) < 2:
        return False
    by_own_name = sum(gpu.uuid.lower().startswith(entry.lower()) for gpu in matches)
    return by_own_name > 1 or len({gpu.parent or gpu.uuid for gpu in matches}) > 1


def _available(gpus: Sequence[Gpu], allowed: Sequence[Gpu], visible: str | None, reason: str | None) -> str:
    if not gpus:
        return f"this machine shows no GPU ({reason})" if reason else "this machine shows no GPU"
    if visible is None or len(allowed) == len(gpus):
        return f"there are {describe(gpus)}" + (f"; {reason}" if reason else "")
    if not allowed:
        return f"CUDA_VISIBLE_DEVICES={visible} hides all of {describe(gpus)}; unset it or name some there"
    return f"CUDA_VISIBLE_DEVICES={visible} leaves {describe(allowed)}; name one of these, or change it"


def _group_name(group: Sequence[Gpu]) -> str:
    return "+".join([group[0].label, *(str(gpu.index) for gpu in group[1:])])
