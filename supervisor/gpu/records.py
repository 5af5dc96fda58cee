"""Records of GPUs and their readings, and the messages between the supervisor and the reader process.

A field that a GPU or its driver lacks is ``None``. Messages travel over a stream socket, framed as in ``wire``.

Sizes are MiB (2**20 bytes), temperatures degrees Celsius, power watts, utilisation percent.
"""

from __future__ import annotations

from typing import Union

import msgspec

MIB = 1 << 20

LIMIT = 16 << 20
"""Most bytes of a message: thousands of processes on dozens of GPUs take a fraction."""


class Gpu(msgspec.Struct, frozen=True):
    """A device that a worker can be pinned to: a whole GPU, or a MIG instance.

    ``index`` is NVML's (PCI bus order); a MIG instance has its GPU's ``index``, its own ``mig`` number, and its GPU's UUID as
    ``parent``. ``pci`` is the GPU's address in Linux's form, ``0000:65:00.0``.
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
        """The name in slot names: ``gpu0``, or ``gpu0m1`` for a MIG instance."""
        return f"gpu{self.index}" if self.mig is None else f"gpu{self.index}m{self.mig}"

    @property
    def number(self) -> str:
        """The name in messages: ``0``, or ``0 MIG 1``."""
        return f"{self.index}" if self.mig is None else f"{self.index} MIG {self.mig}"


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that NVML lists on a GPU. ``slot`` is set if it belongs to a worker's tree.

    ``visible``: it is in this PID namespace, and known to be the one that NVML lists. Otherwise it may be any process, also a
    worker's: ``pid`` may be a number of another namespace, and name and slot are unknown.
    """

    pid: int
    memory_mib: int | None = None
    name: str | None = None
    slot: str | None = None
    visible: bool = True


class GpuSample(msgspec.Struct, frozen=True):
    """One reading of one GPU.

    ``error`` is NVML's error if the GPU could not be read; ``lost``: it has fallen off the bus, or needs a reset. ``processes``
    is ``None`` if NVML cannot list them. Memory is ``None``, without an error, if the GPU has no memory counter.
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
        """True if it has the memory in use. A total of 0 is no reading: GPUs that share the host's memory may show that
        (nvtop#411)."""
        return self.memory_used_mib is not None and self.memory_total_mib != 0


class WorkerRef(msgspec.Struct, frozen=True):
    """The worker in a slot: its process and the UUIDs of the GPUs that it was pinned to."""

    pid: int
    uuids: tuple[str, ...] = ()


class Listing(msgspec.Struct, frozen=True, tag="listing"):
    """The GPUs of this machine. ``reason`` is a message: why there are none, or why one is missing.

    ``complete`` is false if NVML counts a GPU that it cannot describe: CUDA may then number the others differently, so workers
    must be pinned by UUID.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str | None = None
    complete: bool = True


class Xid(msgspec.Struct, frozen=True, tag="xid"):
    """The driver's error ``code`` for that GPU or MIG instance, at ``at`` on ``Reading``'s clock."""

    uuid: str
    code: int
    at: float

    @property
    def by_application(self) -> bool:
        """True if the program is at fault. NVIDIA's device plugin attributes all other codes to the GPU
        (k8s-device-plugin#1340)."""
        return self.code in (13, 31, 43, 45, 68, 109)


class Unwatched(msgspec.Struct, frozen=True, tag="unwatched"):
    """The driver does not report Xids here; ``reason`` is its error."""

    reason: str


class Reading(msgspec.Struct, frozen=True, tag="reading"):
    """One sample of every GPU; the answer to request ``number``.

    ``at`` is ``time.monotonic()``, one clock for all processes of a machine, just before the first GPU was read: the values are
    from then or later. ``error`` is set, and ``gpus`` empty, if nothing could be read.
    """

    number: int
    at: float
    gpus: tuple[GpuSample, ...] = ()
    error: str | None = None

    def of(self, uuid: str) -> GpuSample | None:
        """Return the sample of that GPU, or None."""
        return next((sample for sample in self.gpus if sample.uuid == uuid), None)


class List(msgspec.Struct, frozen=True, tag="list"):
    """List the GPUs. Answered by a ``Listing``."""


class Sample(msgspec.Struct, frozen=True, tag="sample"):
    """Read every GPU. Answered by a ``Reading`` of the same number; ``workers`` holds the worker in each slot."""

    number: int
    workers: dict[str, WorkerRef]


ToReader = Union[List, Sample]
Answer = Union[Listing, Reading]
FromReader = Union[Answer, Xid, Unwatched]
"""Answers in the order of the requests, and unsolicited reports of the driver between them."""
