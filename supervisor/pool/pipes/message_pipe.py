"""The supervisor's end of a worker's message pipe; never blocks. In the supervisor."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

from supervisor.errors import WireError
from supervisor.pool.interfaces import Loop
from supervisor.pool.pipes.validation import checked
from supervisor.wire import messages as wire

TURN_BYTES = 256 * 1024
"""Most bytes read from one pipe per turn, so that a flood on one does not starve the others."""

TURN_MESSAGES = 250
"""Most messages read from one worker per turn: each costs some microseconds, a chunk twenty."""

READ_BYTES = 16 * 1024
"""Bytes per read: most messages are small, and a larger buffer costs page faults at each read (20 µs for 256 KiB)."""

CLOGGED_BYTES = 1024 * 1024
"""A worker with more unread bytes than this gets no further job: jobs wait in the store, not here."""

# Shared by all pipes: creating it takes half a millisecond.
_CODEC: wire.Codec[wire.FromWorker] = wire.Codec(wire.FromWorker)


class MessagePipe:
    """A channel to a forked worker: implements ``interfaces.Channel``, which documents its methods."""

    def __init__(self, connection: Connection, limit: int, loop: Loop) -> None:
        """Own ``connection``, which is non-blocking and watched by ``loop``; reject messages of more than ``limit`` bytes."""
        self.closed = False
        self._fd = connection.fileno()
        self._connection = connection
        self._loop = loop
        self._readable: Callable[[], None]
        self._unclogged: Callable[[], None]
        self._frames = wire.FrameReader(limit)
        self._payloads: deque[bytes] = deque()
        self._unsent = bytearray()

    def attach(self, readable: Callable[[], None], unclogged: Callable[[], None]) -> None:
        self._readable = readable
        self._unclogged = unclogged

    def set_reading(self, reading: bool) -> None:
        # uvloop stops watching a descriptor with an error (a worker died with a message unread), and does not watch it again
        # until it is removed.
        self._loop.remove_reader(self._fd)
        if reading and not self.closed:
            self._loop.add_reader(self._fd, self._readable)

    def receive(self, budget: int = TURN_BYTES, most: int = TURN_MESSAGES) -> list[wire.FromWorker]:
        messages: list[wire.FromWorker] = []
        try:
            if len(self._payloads) < most and not self.closed:
                self._read_frames(budget)
            while self._payloads and len(messages) < most:
                messages.append(checked(_CODEC.decode(self._payloads[0])))
                self._payloads.popleft()
        except WireError:
            if messages:
                return messages  # earlier messages count; the next call raises
            self.closed = True
            self._payloads.clear()
            raise
        return messages

    def _read_frames(self, budget: int) -> None:
        """Read available frames. A malformed one raises only after all earlier ones have been returned."""
        size = READ_BYTES
        while budget > 0:
            data = self._read(size)
            if not data:
                self.closed = data is not None
                break
            try:
                self._payloads += self._frames.feed(data)
            except WireError:
                if not self._payloads:
                    raise
                break
            if len(data) < size:
                break
            budget -= len(data)
            size = TURN_BYTES

    @property
    def more(self) -> bool:
        return bool(self._payloads)

    def send(self, message: wire.ToWorker) -> None:
        data = wire.frame(_CODEC.encode(message))
        sent = 0 if self._unsent else self._write(data)
        if sent < len(data):
            if not self._unsent:
                self._loop.add_writer(self._fd, self._flush)
            self._unsent += data[sent:]

    @property
    def clogged(self) -> bool:
        return len(self._unsent) > CLOGGED_BYTES

    def _flush(self) -> None:
        clogged = self.clogged
        del self._unsent[: self._write(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._fd)
        if clogged and not self.clogged:
            self._unclogged()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._connection.close()

    def _read(self, size: int) -> bytes | None:
        """Return available data; ``None`` if there is none, empty at the end of the pipe."""
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The worker died with a message of ours unread; its own messages are not lost.
            return b""

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            # The worker is dead; the template reports it, and its jobs are decided then.
            return len(data)
