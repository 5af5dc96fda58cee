"""What the pool works with, as it sees it: real in production, fakes in tests of one turn. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from supervisor.gpu.records import Gpu, GpuSample
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


class Template(Protocol):
    """A template that was started: ``pool.template.process.TemplateProcess``, or a fake. Only ``wait`` waits."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def fileno(self) -> int:
        """Readable when ``receive`` has something."""

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` with copies of ``descriptors``. Raises ``OSError`` when none are left."""

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` must be called when the descriptor can be written."""

    def flush(self) -> None:
        """Send what waits."""

    def receive(self) -> list[wire.FromTemplate | Gone]:
        """What has happened; ``Gone`` is the last of all."""

    def resume(self) -> None:
        """SIGCONT it."""

    def kill(self) -> None:
        """SIGKILL it."""

    def wait(self, timeout: float) -> int | None:
        """Its exit status, or None after ``timeout`` seconds."""

    def close(self) -> None:
        """Let go of it: one that lives ends all that it forked, and itself."""


class Memory(Protocol):
    """Watches the GPUs' memory: ``pool.release.watcher.GpuMemory``, or a fake."""

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
