"""What the pool works with, as it sees it: real in production, fakes in tests of one turn. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from supervisor.gpu.records import Gpu, GpuSample
from supervisor.pool.pipes.ends import Pipes
from supervisor.pool.slots.steps import Event
from supervisor.pool.template.process import Gone
from supervisor.wire import messages as wire


class Place(msgspec.Struct, frozen=True):
    """Where a slot is: its name and number, the GPUs it occupies, and what its workers' environment says.

    ``env_by_uuid`` takes its place once indices may have shifted, because a GPU was lost.
    """

    name: str
    index: int
    gpus: tuple[Gpu, ...]
    env: dict[str, str | None]
    env_by_uuid: dict[str, str | None] | None = None


class Loop(Protocol):
    """The part of an asyncio event loop that watches descriptors."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> object:
        """Call ``callback`` whenever ``fd`` can be read."""

    def remove_reader(self, fd: int) -> bool:
        """Stop that."""

    def add_writer(self, fd: int, callback: Callable[..., object], *args: object) -> object:
        """Call ``callback`` whenever ``fd`` can be written."""

    def remove_writer(self, fd: int) -> bool:
        """Stop that."""


class Starter(Protocol):
    """Starts, signals and ends workers: ``pool.starter.TemplateStarter``, or a fake."""

    def fileno(self) -> int:
        """Readable when ``receive`` has something."""

    def start(self) -> None:
        """Start the template process (again)."""

    def receive(self) -> list[wire.FromTemplate | Gone]:
        """What has happened, without waiting."""

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` must be called when the descriptor can be written."""

    def flush(self) -> None:
        """Send what waits."""

    def pipes(self) -> Pipes:
        """Pipes for one worker generation."""

    def fork(self, slot: str, generation: int, env: Mapping[str, str | None], pipes: Pipes) -> None:
        """Ask for a worker and hand its ends of ``pipes`` over. Raises ``OSError`` when no descriptors are left."""

    def signal(self, slot: str, generation: int, signum: int) -> None:
        """Signal a worker."""

    def end_tree(self, slot: str, generation: int) -> None:
        """SIGKILL a worker and all it started."""

    def sweep(self) -> int:
        """End what a dead template left behind."""


class Memory(Protocol):
    """Watches the GPUs' memory: ``pool.memory.GpuMemory``, or a fake."""

    @property
    def samples(self) -> Mapping[str, GpuSample]:
        """The newest reading of each GPU, by UUID."""

    def fileno(self) -> int:
        """Readable when ``collect`` has something to learn from."""

    def before_fork(self, place: Place) -> None:
        """Remember what is in use before a worker comes."""

    def forked(self, slot: str, pid: int) -> None:
        """That worker is this process."""

    def measure(self, place: Place, now: float) -> None:
        """Read the memory now; ``Measured`` follows."""

    def release(self, place: Place, now: float) -> None:
        """Watch until the memory is free; ``Released`` or ``MemoryHeld`` follows."""

    def forget(self, slot: str) -> None:
        """Stop watching for this slot."""

    def collect(self, now: float) -> list[tuple[str, Event]]:
        """What has been learned for which slot."""

    def deadline(self) -> float:
        """When ``collect`` must be called again at the latest."""
