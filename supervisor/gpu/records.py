"""What is known of GPUs at one moment; a field that a GPU or its driver lacks is ``None``. Used by supervisor and reader.

Sizes are MiB (2**20 bytes), temperatures degrees Celsius, power watts, utilisation percent.
"""

from __future__ import annotations

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """One device that a worker can be pinned to: a whole GPU, or one MIG instance of it.

    ``index`` is NVML's (PCI bus order); a MIG instance has its parent's ``index`` and its own ``mig`` number.
    """

    index: int
    uuid: str
    name: str
    memory_total_mib: int | None = None
    mig: int | None = None
    simulated: bool = False

    @property
    def label(self) -> str:
        """The name that slots carry: ``gpu0``, or ``gpu0m1`` for a MIG instance."""
        return f"gpu{self.index}" if self.mig is None else f"gpu{self.index}m{self.mig}"


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that NVML lists on a GPU. ``slot`` is ours when it belongs to a worker's tree, else ``None``."""

    pid: int
    memory_mib: int | None = None
    name: str | None = None
    slot: str | None = None


class GpuSample(msgspec.Struct, frozen=True):
    """One reading of one GPU.

    ``error`` is NVML's word when the GPU could not be read; ``lost`` says that it has fallen off the bus (or shows a hardware
    Xid). ``processes`` is ``None`` when NVML cannot list them at all.
    """

    uuid: str
    memory_used_mib: int | None = None
    memory_total_mib: int | None = None
    utilization: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[GpuProcess, ...] | None = None
    error: str | None = None
    lost: bool = False
