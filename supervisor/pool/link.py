"""The supervisor's end of one worker generation: its message pipe and its log pipe. Neither ever blocks the supervisor."""

from __future__ import annotations

import fcntl
import os
import termios
from array import array
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

from supervisor import wire
from supervisor.errors import WireError
from supervisor.pool.process import LOG_PIPE_BYTES

TURN_BYTES = 256 * 1024
"""Most bytes taken from one pipe in one turn, so that a flood on one does not starve the others."""

READ_BYTES = 16 * 1024
"""Bytes asked for at once: most messages are small, and a larger buffer costs page faults at each read (20 µs for 256 KiB)."""

LOG_TURN_BYTES = 32 * 1024
"""Most bytes of output taken from one worker in one turn: each line costs 4 to 8 µs on its way to the screens."""

LINE_BYTES = 8 * 1024
"""A longer line of a worker's output is cut into several."""

TAIL_LINES = 20
"""How many of a worker's last lines an error carries."""

_OWN_FRAME = f'  File "{Path(__file__).resolve().parents[1]}{os.sep}'
"""How ``faulthandler`` shows this program's own frames. They come last and are many, and say nothing about the user's code."""

# Shared by all links: it takes half a millisecond to make.
_CODEC: wire.Codec[wire.FromWorker] = wire.Codec(wire.FromWorker)


class Link:
    """One worker's pipes. Reading returns what is there; writing keeps what the pipe does not take yet."""

    def __init__(self, slot: str, generation: int, connection: Connection, log_fd: int, limit: int) -> None:
        """Own both descriptors, which are non-blocking; refuse messages of more than ``limit`` bytes."""
        self.slot = slot
        self.generation = generation
        self.fd = connection.fileno()
        self.log_fd = log_fd
        self.pid: int | None = None
        self.kind = "unknown"
        self.load_failed: wire.LoadFailed | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.broken = False
        self.at_end = False
        self.log_at_end = False
        self._connection = connection
        self._frames = wire.FrameReader(limit)
        self._unsent = bytearray()
        self._waiting = array("i", [0])
        self._line = b""

    def receive(self, budget: int = TURN_BYTES) -> list[wire.FromWorker]:
        """The messages that are there, at most about ``budget`` bytes of them; none when the pipe is empty or at its end.

        Raises:
            WireError: what came is no message of this channel; the link is then ``broken`` and reads nothing more.
        """
        if self.broken:
            return []
        payloads: list[bytes] = []
        size = READ_BYTES
        try:
            while budget > 0:
                data = self._read(self.fd, size)
                if not data:
                    self.at_end = data is not None
                    break
                payloads += self._frames.feed(data)
                if len(data) < size:
                    break
                budget -= len(data)
                size = TURN_BYTES
            return [_CODEC.decode(payload) for payload in payloads]
        except WireError:
            self.broken = True
            raise

    def send(self, message: wire.ToWorker) -> bool:
        """Write one message; false when part of it waits for ``flush``."""
        data = wire.frame(_CODEC.encode(message))
        if self._unsent:
            self._unsent += data
            return False
        sent = self._write(data)
        if sent < len(data):
            self._unsent += data[sent:]
            return False
        return True

    def flush(self) -> bool:
        """Write on; true when nothing is left."""
        if self._unsent:
            sent = self._write(self._unsent)
            del self._unsent[:sent]
        return not self._unsent

    @property
    def log_waits(self) -> bool:
        """Whether anything of the log is not returned yet. Asked at each end of a job: an empty read costs five times that."""
        fcntl.ioctl(self.log_fd, termios.FIONREAD, self._waiting)
        return self._waiting[0] != 0 or bool(self._line)

    def read_log(self, budget: int = LOG_TURN_BYTES) -> list[str]:
        """The whole lines that the worker (or what it started) has written, at most about ``budget`` bytes of them."""
        lines: list[str] = []
        while budget > 0:
            data = self._read(self.log_fd, READ_BYTES)
            if not data:
                self.log_at_end = data is not None
                break
            budget -= len(data)
            lines += self._cut(data)
            if len(data) < READ_BYTES:
                break
        self.tail.extend(line for line in lines if not line.startswith(_OWN_FRAME))
        return lines

    def last_log(self) -> list[str]:
        """Everything left in the log pipe, the unfinished last line too."""
        lines = self.read_log(LOG_PIPE_BYTES)
        if self._line:
            rest = [self._line.decode("utf-8", "replace")]
            self._line = b""
            self.tail.extend(rest)
            lines += rest
        return lines

    def close(self) -> None:
        """Let go of both pipes."""
        self._connection.close()
        os.close(self.log_fd)

    def _cut(self, data: bytes) -> list[str]:
        *whole, self._line = (self._line + data).split(b"\n")
        if len(self._line) > LINE_BYTES:
            whole.append(self._line)
            self._line = b""
        return [
            line[at : at + LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
            for line in whole
            for at in range(0, max(1, len(line)), LINE_BYTES)
        ]

    @staticmethod
    def _read(fd: int, size: int) -> bytes | None:
        """What is there; ``None`` when that is nothing, empty at the end of the pipe."""
        try:
            return os.read(fd, size)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The worker died with a message of ours unread: nothing of its own is lost by that.
            return b""

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            # The worker is dead; its death is reported by the template and decides about the job.
            return len(data)
