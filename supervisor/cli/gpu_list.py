"""What `supervise gpus` says of each GPU, as JSON or in a table; a process of its own."""

from __future__ import annotations

import msgspec

from supervisor.gpu.locks import Holder


class ListedProcess(msgspec.Struct, frozen=True, rename="camel"):
    """A process on a GPU; ``supervisor`` is the pid of the supervisor below which it runs. Of one that is not ``visible`` in this
    PID namespace neither name nor supervisor is known; ``pid`` may then be another namespace's."""

    pid: int
    memory_mib: int | None = msgspec.field(default=None, name="memoryMiB")
    name: str | None = None
    supervisor: int | None = None
    visible: bool = True


class ListedGpu(msgspec.Struct, frozen=True, rename="camel"):
    """A GPU or MIG instance (``mig``: its number, ``parent``: its GPU's UUID), and the supervisor whose lock is on it."""

    index: int
    uuid: str
    name: str
    mig: int | None = None
    parent: str | None = None
    simulated: bool = False
    memory_used_mib: int | None = msgspec.field(default=None, name="memoryUsedMiB")
    memory_total_mib: int | None = msgspec.field(default=None, name="memoryTotalMiB")
    utilization: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[ListedProcess, ...] | None = None
    holder: Holder | None = None
    error: str | None = None
    lost: bool = False
