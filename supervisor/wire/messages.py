"""Messages between processes, one tagged union per channel and direction, and their framing. Used by every process.

====================== ============================================ ==============================================
channel                carries                                      over
====================== ============================================ ==============================================
supervisor → worker    ``ToWorker``: Run, Cancel, Exit              a ``multiprocessing`` pipe per worker generation
worker → supervisor    ``FromWorker``: Ready … Done                 the same pipe, so in order
supervisor → template  ``ToTemplate``: Fork, Signal, EndTree, …     a SEQPACKET socket pair; Fork carries 2 descriptors
template → supervisor  ``FromTemplate``: Forked, Died, Swept, …     the same socket pair
====================== ============================================ ==============================================

Messages are MessagePack (msgspec). A handler's values are JSON text in ``bytes``: the supervisor passes them on without parsing,
and never unpickles data of a child. Frames are those of ``multiprocessing.connection.Connection``: four bytes of length, signed,
big-endian (-1, then eight bytes, for 2 GiB and more), so a worker uses the standard library's class.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar, Union

import msgspec

from supervisor.cause import ResultFault, TooManyProcesses
from supervisor.errors import FrameTooLargeError, WireError

VERSION = 3
"""Incremented whenever a message changes; a template of another version is rejected at its first message."""

MAX_PROGRESS = 2**20
"""Most bytes of a progress value. It is kept in memory for each running job and shown by every screen."""

OVERHEAD = 2**16
"""Most bytes of a message besides its values."""

MAX_CAPACITY = 1024
"""Most jobs that one worker may run at once, whatever its ``concurrency_modifier`` returns."""


class _OfWorker(msgspec.Struct, frozen=True):
    """A message about the worker of ``slot`` and ``generation``."""

    slot: str
    generation: int


# --- supervisor → worker -------------------------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Run one job. ``input`` is JSON; ``extras`` a JSON object with its ``webhook``, ``policy`` and ``s3Config``, if any."""

    job: str
    input: bytes
    extras: bytes | None = None


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Cancel one running job: its coroutine gets ``CancelledError``."""

    job: str


class Exit(msgspec.Struct, frozen=True, tag="exit"):
    """Flush and exit. Sent when no job runs, or running jobs no longer matter."""


ToWorker = Union[Run, Cancel, Exit]


# --- worker → supervisor -------------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The handler is loaded and its fitness checks passed.

    ``kind`` is ``function``, ``coroutine``, ``generator`` or ``async_generator`` (``unknown``: known only from the result).
    ``capacity`` jobs may run at once. ``refresh_worker`` is the flag of ``config``. ``load_ms``: since the fork. ``mark`` begins
    the frames of jobs' output if several may run at once (``log_frames``), else empty.
    """

    pid: int
    kind: str
    capacity: int = 1
    refresh_worker: bool = False
    load_ms: float = 0.0
    mark: str = ""


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The handler cannot be served. ``reason``: ``not_found``, ``no_handler``, ``raised``, ``bad_config`` or ``fitness``.

    ``traceback`` is the user's own (frames of this program removed), empty where there is none.
    """

    reason: str
    message: str
    traceback: str = ""


class Capacity(msgspec.Struct, frozen=True, tag="capacity"):
    """``concurrency_modifier`` changed the number of jobs that may run at once."""

    capacity: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The newest progress of a running job, as JSON."""

    job: str
    value: bytes


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """One value that a generator handler yielded, as JSON; ``index`` counts from 0 within the attempt."""

    job: str
    index: int
    value: bytes


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A job ended in the worker: ``status`` is ``COMPLETED``, ``FAILED`` or ``CANCELLED``.

    ``output`` is JSON or absent. A failed job has the handler's ``error``, or a ``cause`` if its value cannot be passed on.
    ``refresh``: the result (or config) requests a new worker; ``poisoned`` names a sticky CUDA error, ``out_of_memory``: of a
    GPU.
    """

    job: str
    status: str
    output: bytes | None = None
    error: str | None = None
    refresh: bool = False
    poisoned: str | None = None
    out_of_memory: bool = False
    cause: ResultFault | None = None


class Warning(msgspec.Struct, frozen=True, tag="warning"):  # noqa: A001 - always used as wire.Warning
    """A message for the user (an unknown key of ``config``, …). Each text is sent once."""

    message: str


FromWorker = Union[Ready, LoadFailed, Capacity, Progress, Chunk, Done, Warning]


# --- supervisor → template -----------------------------------------------------------------------------------------------


class HandlerSpec(msgspec.Struct, frozen=True):
    """The handler that a worker loads.

    ``kind`` is ``file`` (run as ``python file.py`` does), ``module`` (as ``python -m``) or ``function`` (imported plainly, then
    ``attribute`` is served). ``target`` is the absolute path or the dotted name. ``argv`` is the handler's
    ``sys.argv[1:]``.
    """

    kind: str
    target: str
    attribute: str | None = None
    argv: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """The limits of each worker on the machine.

    ``processes``: most processes of its tree; 0 is no limit. ``private_tmp``: a private ``/tmp`` and ``/var/tmp``; ``kept`` are
    the folders below these that stay visible. ``cpus``, by slot, are the cores that it is pinned to.
    """

    processes: int = 0
    private_tmp: bool = False
    kept: tuple[str, ...] = ()
    cpus: dict[str, tuple[int, ...]] = {}


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first message: the settings of all workers. ``tmp_root`` is this run's folder for the workers' ``TMPDIR``;
    ``preload`` names modules, or is None for those that the handler's source imports; ``preload_timeout`` is the most seconds
    of each preloaded import; ``max_result`` the most bytes of a job's result, or of one chunk."""

    version: int
    run_id: str
    handler: HandlerSpec
    preload: tuple[str, ...] | None
    tmp_root: str
    preload_timeout: float = 60.0
    max_result: int = 100 * 2**20
    limits: Limits = Limits()


class Fork(_OfWorker, frozen=True, tag="fork"):
    """Fork the worker of ``generation`` for ``slot``. Sent with its message pipe end and its log pipe's write end.

    ``env`` is set in the child before any user code; ``None`` removes a variable.
    """

    env: dict[str, str | None]


class Signal(_OfWorker, frozen=True, tag="signal"):
    """Send ``signum`` to that worker (not to what it started). Unknown or dead workers are ignored."""

    signum: int


class EndTree(_OfWorker, frozen=True, tag="end_tree"):
    """SIGKILL that worker and its descendants. ``Died`` and ``Swept`` follow."""


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Terminate all workers and their descendants, then exit."""


ToTemplate = Union[Setup, Fork, Signal, EndTree, Quit]


# --- template → supervisor -----------------------------------------------------------------------------------------------


class TemplateReady(msgspec.Struct, frozen=True, tag="template_ready"):
    """The template can fork. ``skipped`` holds (module, reason) of requested modules that were not preloaded."""

    version: int
    pid: int
    preloaded: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    took_ms: float = 0.0


class Forked(_OfWorker, frozen=True, tag="forked"):
    """That worker runs as ``pid``."""

    pid: int


class ForkFailed(_OfWorker, frozen=True, tag="fork_failed"):
    """That worker could not be forked; ``error`` is the operating system's message."""

    error: str


class Died(_OfWorker, frozen=True, tag="died"):
    """That worker's process has exited and was reaped. ``status`` is ``-N`` for signal N, else its exit code.

    ``cause`` is why the template killed it, if it did.
    """

    pid: int
    status: int
    cause: TooManyProcesses | None = None


class Swept(_OfWorker, frozen=True, tag="swept"):
    """All descendants of the dead worker have exited. ``killed`` counts those that were killed."""

    killed: int = 0


FromTemplate = Union[TemplateReady, Forked, ForkFailed, Died, Swept]


# --- codec and frames ----------------------------------------------------------------------------------------------------

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes any message and decodes those of one channel and direction."""

    def __init__(self, union: object) -> None:
        """Decode the tagged ``union``, such as ``ToWorker``."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)
        self.encode = msgspec.msgpack.Encoder().encode

    def decode(self, payload: bytes | bytearray | memoryview) -> T:
        """Decode the message in ``payload``.

        Raises:
            WireError: it is not one of this channel's messages.
        """
        try:
            return self._decoder.decode(payload)
        # msgspec does not wrap the latter two.
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"malformed message ({len(payload)} bytes): {str(error)[:200]}") from error


_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!Q")
_SHORT_LIMIT = 0x7FFFFFFF


def frame(payload: bytes) -> bytes:
    """Return ``payload`` with the header that ``Connection.recv_bytes`` expects."""
    if len(payload) <= _SHORT_LIMIT:
        return _SHORT.pack(len(payload)) + payload
    return _SHORT.pack(-1) + _LONG.pack(len(payload)) + payload


class FrameReader:
    """Splits the data of a non-blocking pipe into payloads; an incomplete frame is kept."""

    def __init__(self, limit: int) -> None:
        """Reject payloads of more than ``limit`` bytes."""
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add data; return the complete payloads.

        Raises:
            FrameTooLargeError: a header announces more than the limit.
            WireError: a header is invalid. After either error the stream cannot be read further.
        """
        self._buffer += data
        payloads: list[bytes] = []
        try:
            while (payload := self._next()) is not None:
                payloads.append(payload)
        except WireError:
            if not payloads:
                raise  # else earlier payloads count; the next call raises
        return payloads

    def _next(self) -> bytes | None:
        """Remove and return the first payload; ``None`` if it is incomplete."""
        buffer, start = self._buffer, _SHORT.size
        if len(buffer) < start:
            return None
        (size,) = _SHORT.unpack_from(buffer)
        if size == -1:
            start += _LONG.size
            if len(buffer) < start:
                return None
            (size,) = _LONG.unpack_from(buffer, _SHORT.size)
        if size < 0:
            raise WireError(f"malformed frame header: length {size}")
        if size > self._limit:
            raise FrameTooLargeError(f"a message of {size} bytes is over the limit of {self._limit}")
        end = start + size
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[start:end])
        del buffer[:end]
        return payload
