"""What is known of GPUs at one moment; a field that a GPU or its driver lacks is ``None``. And what the supervisor and the reader
process say to each other, over a stream socket framed as ``wire`` frames.

Sizes are MiB (2**20 bytes), temperatures degrees Celsius, power watts, utilisation percent.
"""

from __future__ import annotations

from typing import Union

import msgspec

MIB = 1 << 20

LIMIT = 16 << 20
"""Most bytes of one message: thousands of processes on dozens of GPUs take a fraction of it."""


class Gpu(msgspec.Struct, frozen=True):
    """One device that a worker can be pinned to: a whole GPU, or one MIG instance of it.

    ``index`` is NVML's (PCI bus order); a MIG instance has its parent's ``index``, its own ``mig`` number, and the whole GPU's
    UUID as ``parent``. ``pci`` is the GPU's address as Linux writes it, ``0000:65:00.0``.
    """

    index: int
    uuid: str
    name: str
    memory_total_mib: int | None = None
    mig: int | None = None
    simulated: bool = False
    parent: str | None = None
    pci: str | None = None

    @property
    def label(self) -> str:
        """The name that slots carry: ``gpu0``, or ``gpu0m1`` for a MIG instance."""
        return f"gpu{self.index}" if self.mig is None else f"gpu{self.index}m{self.mig}"

    @property
    def number(self) -> str:
        """The same for a person: ``0``, or ``0 MIG 1``."""
        return f"{self.index}" if self.mig is None else f"{self.index} MIG {self.mig}"


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that NVML lists on a GPU. ``slot`` is ours when it belongs to a worker's tree, else ``None``.

    ``visible``: it is seen in this PID namespace, and known to be the one that NVML means. One that is not may be anybody's, a
    worker's too: then ``pid`` may be a number of another namespace, and name and slot are unknown.
    """

    pid: int
    memory_mib: int | None = None
    name: str | None = None
    slot: str | None = None
    visible: bool = True


class GpuSample(msgspec.Struct, frozen=True):
    """One reading of one GPU.

    ``error`` is NVML's word when the GPU could not be read; ``lost`` says that it has fallen off the bus, or is of no use until
    it is reset. ``processes`` is ``None`` when NVML cannot list them at all. Memory is ``None``, without an error, where the GPU
    has no counter of it.
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

    @property
    def counted(self) -> bool:
        """Whether it tells how much memory is in use. A total of 0 is no reading: what shares the host's memory may show that
        (nvtop#411)."""
        return self.memory_used_mib is not None and self.memory_total_mib != 0


class WorkerRef(msgspec.Struct, frozen=True):
    """The worker in a slot, as the source of samples knows it: its process and the UUIDs of the GPUs that it was pinned to."""

    pid: int
    uuids: tuple[str, ...] = ()


class Listing(msgspec.Struct, frozen=True, tag="listing"):
    """The GPUs of this machine. ``reason`` says in plain words why there are none, or why one is missing.

    ``complete`` is false when NVML counts a GPU that it cannot describe: CUDA may then number the others differently, so workers
    must be pinned by UUID.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str | None = None
    complete: bool = True


class Xid(msgspec.Struct, frozen=True, tag="xid"):
    """The driver has reported error number ``code`` of that GPU or MIG instance, at ``at`` on ``Reading``'s clock."""

    uuid: str
    code: int
    at: float

    @property
    def by_application(self) -> bool:
        """Whether it means the program that ran there. NVIDIA's own device plugin takes any other for the GPU's
        (k8s-device-plugin#1340)."""
        return self.code in (13, 31, 43, 45, 68, 109)


class Unwatched(msgspec.Struct, frozen=True, tag="unwatched"):
    """The driver does not report Xids here; ``reason`` is its word."""

    reason: str


class Reading(msgspec.Struct, frozen=True, tag="reading"):
    """One sample of every GPU; the answer to request ``number``.

    ``at`` is ``time.monotonic()``, one clock for all processes of a machine, just before the first GPU was read: what it shows
    was true then or later. ``error`` is set, and ``gpus`` empty, when nothing could be read at all.
    """

    number: int
    at: float
    gpus: tuple[GpuSample, ...] = ()
    error: str | None = None

    def of(self, uuid: str) -> GpuSample | None:
        """The sample of that GPU."""
        return next((sample for sample in self.gpus if sample.uuid == uuid), None)


class List(msgspec.Struct, frozen=True, tag="list"):
    """Which GPUs are there? Answered by a ``Listing``."""


class Sample(msgspec.Struct, frozen=True, tag="sample"):
    """Read every GPU. Answered by a ``Reading`` of the same number; ``workers`` holds the worker in each slot."""

    number: int
    workers: dict[str, WorkerRef]


ToReader = Union[List, Sample]
Answer = Union[Listing, Reading]
FromReader = Union[Answer, Xid, Unwatched]
"""The answers, in the order of the questions; and between them, unasked, what the driver reports."""
