"""The interfaces of the pool, to the engine and to its own parts. In the supervisor.

``Pool`` provides the slots: on this machine (``local.LocalPool``), or from any other implementation that runs workers.
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
from supervisor.pool.template.process import TemplateExited
from supervisor.wire import messages as wire


class Place(msgspec.Struct, frozen=True):
    """A slot's name and number, its GPUs, and the environment of its workers.

    ``env_by_uuid`` replaces ``env`` when GPU indices may have shifted because a GPU was lost.
    """

    name: str
    index: int
    gpus: tuple[Gpu, ...]
    env: dict[str, str | None]
    env_by_uuid: dict[str, str | None] | None = None


class Pool(Protocol):
    """Slots and their workers. No method blocks, and only these methods change the state; ``collect`` returns the events.

    Slots may appear and disappear between two turns. A step for a slot that has gone does nothing; a job assigned to one is
    reported lost, uncharged. ``start`` is the number of a job's start, which only grows, so that events of an earlier start are
    not mistaken for those of a later one.
    """

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The current slots, by name."""

    @property
    def places(self) -> Mapping[str, Place]:
        """The places of the slots, by name."""

    @property
    def free(self) -> FreeSlots:
        """The slots with free capacity."""

    @property
    def samples(self) -> Mapping[str, GpuSample]:
        """The newest reading of each GPU, by UUID."""

    @property
    def changes(self) -> int:
        """A number that grows whenever a slot is added or removed, starts or stops serving, or is paused or resumed."""

    @property
    def parked(self) -> bool:
        """True if no slot has a worker."""

    def start(self, now: float) -> None:
        """Start a worker in every slot that is not scaled down; ``now`` is always in monotonic seconds."""

    def assign(self, name: str, run: wire.Run, start: int, now: float) -> None:
        """Send a job to the worker in slot ``name``, which has free capacity."""

    def cancel(self, name: str, job: str, start: int, now: float, *, out_of_time: bool = False) -> None:
        """Cancel a job if that start is still running: a coroutine gets ``CancelledError``; otherwise its worker is terminated,
        also if it is ``out_of_time`` and runs alone."""

    def distrust(self, name: str, what: str, now: float) -> None:
        """Kill the worker in slot ``name``: it broke the protocol, by ``what``."""

    def refresh(self, name: str, now: float) -> None:
        """Replace the worker in slot ``name`` (manual refresh).

        Raises:
            IllegalStepError: not possible in the current state.
        """

    def pause(self, name: str, now: float) -> None:
        """Take slot ``name`` out of service (manual), after its running jobs. Raises as ``refresh`` does."""

    def resume(self, name: str, now: float) -> None:
        """Put the paused slot ``name`` back into service. Raises as ``refresh`` does."""

    def spare(self, name: str, cause: SpareCause, now: float) -> None:
        """Scale down slot ``name``, which is not paused, until jobs need it. Raises as ``refresh`` does."""

    def reload(self, now: float) -> None:
        """Replace every worker that has loaded the handler or is loading it; retry failed loads at once."""

    def stop(self, now: float, *, at_once: bool = False, idle_only: bool = False) -> None:
        """Terminate the workers (``idle_only``: those without a job) and park their slots."""

    def collect(self, now: float) -> list[events.PoolEvent]:
        """Read pending messages, advance timers, and return the events for the engine."""

    def perform(self, now: float) -> list[events.PoolEvent]:
        """Perform the pending actions, whose turn is committed; return the events that follow at once."""

    def deadline(self) -> float | None:
        """Return the latest time at which ``collect`` must run again."""

    def resume_reading(self) -> None:
        """Watch the descriptors of workers, template and GPU reader."""

    def pause_reading(self) -> None:
        """Stop watching them; what arrives stays in their buffers."""

    def close(self) -> None:
        """Close the connections to all workers and to the template."""


class Channel(Protocol):
    """Messages to and from one worker, such as ``pipes.message_pipe.MessagePipe``. No method blocks."""

    @property
    def more(self) -> bool:
        """True if messages have arrived that ``receive`` has not returned yet, or failed on."""

    @property
    def clogged(self) -> bool:
        """True while the worker does not read its messages."""

    @property
    def closed(self) -> bool:
        """True if nothing more can arrive."""

    def attach(self, readable: Callable[[], None], unclogged: Callable[[], None]) -> None:
        """Set the callbacks: ``readable`` while reading is on and data has arrived, ``unclogged`` when the worker reads again."""

    def set_reading(self, reading: bool) -> None:
        """Turn the ``readable`` callback on or off."""

    def receive(self, budget: int = ..., most: int = ...) -> list[wire.FromWorker]:
        """Return received messages, about ``budget`` bytes and at most ``most`` messages.

        Raises:
            WireError: malformed data, or no message of this channel; nothing more is received.
        """

    def send(self, message: wire.ToWorker) -> None:
        """Send ``message`` now, or queue it until the worker reads."""

    def close(self) -> None:
        """Close the connection."""


class Loop(Protocol):
    """The descriptor methods of an asyncio event loop."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> object: ...
    def remove_reader(self, fd: int) -> bool: ...
    def add_writer(self, fd: int, callback: Callable[..., object], *args: object) -> object: ...
    def remove_writer(self, fd: int) -> bool: ...


class Template(Protocol):
    """A started template, documented in ``pool.template.process.TemplateProcess``. Only ``wait`` blocks."""

    @property
    def pid(self) -> int: ...
    @property
    def wants_write(self) -> bool: ...
    def fileno(self) -> int: ...
    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None: ...
    def flush(self) -> None: ...
    def receive(self) -> list[wire.FromTemplate | TemplateExited]: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float) -> int | None: ...
    def close(self) -> None: ...


class Memory(Protocol):
    """Watches the GPUs' memory, documented in ``pool.release.watcher.GpuMemory``."""

    @property
    def samples(self) -> Mapping[str, GpuSample]: ...
    def fileno(self) -> int: ...
    def before_fork(self, place: Place) -> None: ...
    def forked(self, slot: str, pid: int) -> None: ...
    def measure(self, place: Place, now: float) -> None: ...
    def release(self, place: Place, now: float) -> None: ...
    def unwatch(self, slot: str) -> None: ...
    def collect(self, now: float) -> list[tuple[str, Event]]: ...
    def deadline(self) -> float: ...


class GpuReader(Protocol):
    """Reads GPUs, documented in ``gpu.client.Reader``."""

    def fileno(self) -> int: ...
    def request(self, workers: Mapping[str, WorkerRef], now: float) -> int: ...
    def receive(self, now: float) -> Sequence[ReaderEvent]: ...
    def tick(self, now: float) -> Sequence[ReaderEvent]: ...
    def deadline(self) -> float | None: ...
