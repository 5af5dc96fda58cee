"""The seams of the pool: what the engine sees of it, and what it works with itself. In the supervisor.

``Pool`` is where slots come from: this machine (``local.LocalPool``), or whatever else runs workers behind the same face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from supervisor.cause import SpareCause
from supervisor.gpu.client import ReaderEvent
from supervisor.gpu.records import Gpu, GpuSample, WorkerRef
from supervisor.pool import events
from supervisor.pool.slots.free import FreeSlots
from supervisor.pool.slots.slot import Slot
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


class Pool(Protocol):
    """Slots, and the workers in them. Nothing here waits, and nothing changes but by these methods; ``collect`` says what came.

    Slots may come and go between two turns. A name that is not in ``slots`` (any more) is passed over. ``start`` is the number of
    a job's start, which only grows, so that nothing of an earlier one is taken for a later one's.
    """

    @property
    def slots(self) -> Mapping[str, Slot]:
        """All slots as they are now, by name."""

    @property
    def places(self) -> Mapping[str, Place]:
        """Where they are."""

    @property
    def free(self) -> FreeSlots:
        """Those that may be given jobs."""

    @property
    def samples(self) -> Mapping[str, GpuSample]:
        """The newest reading of each GPU, by UUID."""

    @property
    def changes(self) -> int:
        """A number that grows whenever a slot comes, goes, or changes otherwise than by its jobs."""

    @property
    def parked(self) -> bool:
        """Whether no slot has a worker any more."""

    def start(self, now: float) -> None:
        """Start a worker in every slot that is not to be spare; ``now`` is always in monotonic seconds."""

    def assign(self, name: str, run: wire.Run, start: int, now: float) -> None:
        """Send a job to the worker in slot ``name``, which has room."""

    def cancel(self, name: str, job: str, start: int, now: float, *, out_of_time: bool = False) -> None:
        """Stop a job if that start of it runs still: coroutines are told, anything else loses its worker, and so does one that is
        ``out_of_time``, unless others run beside it."""

    def distrust(self, name: str, what: str, now: float) -> None:
        """The worker in slot ``name`` broke the protocol, by ``what``: kill it."""

    def refresh(self, name: str, now: float) -> None:
        """Replace the worker in slot ``name``, by hand.

        Raises:
            IllegalStepError: not in its present state.
        """

    def pause(self, name: str, now: float) -> None:
        """Take slot ``name`` out of service by hand, after the jobs that its worker runs. Raises as ``refresh`` does."""

    def resume(self, name: str, now: float) -> None:
        """Put the paused slot ``name`` back into service. Raises as ``refresh`` does."""

    def spare(self, name: str, cause: SpareCause, now: float) -> None:
        """Take slot ``name``, which nobody has paused, out of service until jobs need it. Raises as ``refresh`` does."""

    def reload(self, now: float) -> None:
        """Replace every worker that has read the handler, or is at it; try again at once where one could not."""

    def stop(self, now: float, *, at_once: bool = False, idle_only: bool = False) -> None:
        """End the workers (``idle_only``: those without a job) and keep the slots parked."""

    def collect(self, now: float) -> list[events.PoolEvent]:
        """Read what is there, let time pass, and return what the engine must know."""

    def perform(self, now: float) -> list[events.PoolEvent]:
        """Carry out what was decided, which is on disk now; returns what came of it at once."""

    def deadline(self) -> float | None:
        """When ``collect`` must run again at the latest."""

    def resume_reading(self) -> None:
        """Read what workers, template and GPUs say."""

    def pause_reading(self) -> None:
        """Leave what they say where it is."""

    def close(self) -> None:
        """Let go of every worker."""


class Channel(Protocol):
    """Messages to and from one worker: ``pipes.message_pipe.MessagePipe``, or another way to reach one. Nothing here waits."""

    @property
    def more(self) -> bool:
        """Whether messages have come that ``receive`` has not returned yet, or failed at."""

    @property
    def clogged(self) -> bool:
        """Whether the worker does not read what it was told."""

    @property
    def closed(self) -> bool:
        """Whether nothing can come any more."""

    def attach(self, readable: Callable[[], None], unclogged: Callable[[], None]) -> None:
        """Call ``readable`` while listening whenever something can be received, ``unclogged`` when the worker reads again."""

    def listen(self, listening: bool) -> None:
        """Call ``readable``, or not."""

    def receive(self, budget: int = ..., most: int = ...) -> list[wire.FromWorker]:
        """Return what has come, about ``budget`` bytes and ``most`` messages of it.

        Raises:
            WireError: what came is no message of this channel; nothing more is received.
        """

    def send(self, message: wire.ToWorker) -> None:
        """Send ``message``, at once or as soon as the worker reads."""

    def close(self) -> None:
        """Let go of it."""


class Loop(Protocol):
    """The part of an asyncio event loop that watches descriptors."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> object: ...
    def remove_reader(self, fd: int) -> bool: ...
    def add_writer(self, fd: int, callback: Callable[..., object], *args: object) -> object: ...
    def remove_writer(self, fd: int) -> bool: ...


class Template(Protocol):
    """A template that was started, as ``pool.template.process.TemplateProcess`` describes it. Only ``wait`` waits."""

    @property
    def pid(self) -> int: ...
    @property
    def wants_write(self) -> bool: ...
    def fileno(self) -> int: ...
    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None: ...
    def flush(self) -> None: ...
    def receive(self) -> list[wire.FromTemplate | Gone]: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float) -> int | None: ...
    def close(self) -> None: ...


class Memory(Protocol):
    """Watches the GPUs' memory, as ``pool.release.watcher.GpuMemory`` describes it."""

    @property
    def samples(self) -> Mapping[str, GpuSample]: ...
    def fileno(self) -> int: ...
    def before_fork(self, place: Place) -> None: ...
    def forked(self, slot: str, pid: int) -> None: ...
    def measure(self, place: Place, now: float) -> None: ...
    def release(self, place: Place, now: float) -> None: ...
    def forget(self, slot: str) -> None: ...
    def collect(self, now: float) -> list[tuple[str, Event]]: ...
    def deadline(self) -> float: ...


class GpuReader(Protocol):
    """Reads GPUs, as ``gpu.client.Reader`` describes it."""

    def fileno(self) -> int: ...
    def ask(self, workers: Mapping[str, WorkerRef], now: float) -> int: ...
    def receive(self, now: float) -> Sequence[ReaderEvent]: ...
    def tick(self, now: float) -> Sequence[ReaderEvent]: ...
    def deadline(self) -> float | None: ...
