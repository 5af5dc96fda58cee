"""Simulated GPUs for a machine that has none; runs in the reader process.

The memory in use on a simulated GPU is the anonymous memory of the processes pinned to it: a handler's allocations appear, and
the exit of its processes frees them, so that pinning, refresh and the dashboard can be tried anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from supervisor.gpu.proc import anonymous_memory_of, name_of, started_at
from supervisor.gpu.records import MIB, Gpu, GpuProcess, GpuSample, Listing, WorkerRef
from supervisor.host.processes import children_of

NAME = "Simulated GPU"
MEMORY_MIB = 24576


class _Member(msgspec.Struct, frozen=True):
    """A process of a worker's tree."""

    slot: str
    uuids: tuple[str, ...]
    started: int | None


class SimulatedSource:
    """``count`` simulated GPUs, with the methods of ``nvml.NvmlSource``; one test suite covers both."""

    def __init__(self, count: int) -> None:
        """Number them from 0; their UUIDs are the same in every process, so locks hold between supervisors."""
        self._gpus = tuple(
            Gpu(index=i, uuid=uuid_of(i), name=NAME, memory_total_mib=MEMORY_MIB, simulated=True) for i in range(count)
        )
        self._members: dict[int, _Member] = {}

    def listing(self) -> Listing:
        """Return all of them."""
        return Listing(gpus=self._gpus)

    def sample(self, workers: Mapping[str, WorkerRef]) -> list[GpuSample]:
        """Read each tree's anonymous memory, divided among the GPUs that it was pinned to."""
        self._find_members(workers)
        processes: dict[str, list[GpuProcess]] = {gpu.uuid: [] for gpu in self._gpus}
        for pid, member in list(self._members.items()):
            memory = anonymous_memory_of(pid)
            if memory is None or started_at(pid) != member.started:
                del self._members[pid]
                continue
            share = memory // MIB // max(1, len(member.uuids))
            for uuid in member.uuids:
                if uuid in processes:
                    processes[uuid].append(GpuProcess(pid, share, name_of(pid), member.slot))
        return [
            GpuSample(
                uuid=gpu.uuid,
                memory_used_mib=sum(process.memory_mib or 0 for process in processes[gpu.uuid]),
                memory_total_mib=MEMORY_MIB,
                processes=tuple(processes[gpu.uuid]),
            )
            for gpu in self._gpus
        ]

    def _find_members(self, workers: Mapping[str, WorkerRef]) -> None:
        """Record each tree's processes: one whose worker is dead still holds its memory, as on a real GPU."""
        for slot, ref in workers.items():
            waiting = [ref.pid]
            while waiting:
                pid = waiting.pop()
                self._members[pid] = _Member(slot, ref.uuids, started_at(pid))
                waiting += children_of(pid)


def uuid_of(index: int) -> str:
    """Return the UUID of simulated GPU ``index``."""
    return f"SIM-00000000-0000-0000-0000-{index:012d}"
