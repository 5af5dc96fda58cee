"""One worker forked ahead, which waits for its assignment: after large imports a fork takes milliseconds; template process.

It has run none of the handler's code and belongs to no slot: the next request for a worker gets it, and another is forked. A
request while none is ready gets a fork of its own.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from supervisor.host.processes import kill
from supervisor.template.child import Assignment, GetAssignment
from supervisor.template.reap import Reaper

_AFTER = 0.002
"""Seconds from a worker's start to the fork of the next one, so that they do not slow each other down."""

_AGAIN = 1.0
"""Seconds until a failed fork is retried."""

_ASSIGNMENT_BYTES = 256 * 1024

_DECODER = msgspec.msgpack.Decoder(Assignment)  # made in the template: it takes long


class Standby:
    """Keeps one worker waiting. ``turn`` must be called by ``next_check`` (monotonic seconds): None while one waits, or until
    the first worker is requested."""

    def __init__(self, fork: Callable[[GetAssignment], int], reaper: Reaper) -> None:
        """Use ``fork`` to fork a worker that calls its argument for an assignment; ``reaper`` is to spare the waiting one."""
        self._fork = fork
        self._reaper = reaper
        self._pid = 0
        self._sock: socket.socket | None = None
        self.next_check: float | None = None

    def turn(self) -> None:
        """Fork a worker if one is due."""
        if self.next_check is None or time.monotonic() < self.next_check:
            return
        self.next_check = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self.next_check = time.monotonic() + _AGAIN
            return
        with theirs:
            try:
                self._pid = self._fork(lambda: _wait_for_assignment(theirs, ours))
            except OSError:
                ours.close()
                self.next_check = time.monotonic() + _AGAIN
                return
        self._reaper.spared.add(self._pid)
        ours.setblocking(False)
        self._sock = ours

    def take(self, assignment: Assignment, descriptors: Sequence[int]) -> int | None:
        """Send ``assignment`` and copies of ``descriptors`` to the waiting worker; return its pid, or None if there is none."""
        self.next_check = time.monotonic() + _AFTER
        sock, self._sock = self._sock, None
        if sock is None:
            return None
        with sock:
            try:
                socket.send_fds(sock, [msgspec.msgpack.encode(assignment)], descriptors)
            except OSError:  # the worker is dead, or the assignment too long for the socket
                if self._pid in self._reaper.spared:
                    kill(self._pid)
                return None
        return self._pid

    def close(self) -> None:
        """Let the waiting worker exit."""
        self.next_check = None
        if self._sock is not None:
            self._sock.close()


def _wait_for_assignment(sock: socket.socket, other: socket.socket) -> tuple[Assignment, int, int]:
    other.close()
    with sock:
        data, descriptors, _, _ = socket.recv_fds(sock, _ASSIGNMENT_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)  # closed: the template shuts down
    connection, log = descriptors
    return _DECODER.decode(data), connection, log
