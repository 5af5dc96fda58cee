"""What `supervise gpus` says of each GPU, as JSON or in a table; a process of its own."""

from __future__ import annotations

from supervisor.gpu.locks import Holder
from supervisor.protocol.views import Gpu, GpuProcess


class ListedProcess(GpuProcess, frozen=True, rename="camel"):
    """A process on a GPU; ``supervisor`` is the pid of the supervisor below which it runs, if that is known."""

    supervisor: int | None = None


class ListedGpu(Gpu, frozen=True, rename="camel"):
    """A GPU or MIG instance (``mig``: its number, ``parent``: its GPU's UUID), and the supervisor whose lock is on it."""

    mig: int | None = None
    parent: str | None = None
    processes: tuple[ListedProcess, ...] | None = None
    holder: Holder | None = None
