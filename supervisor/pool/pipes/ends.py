"""The pipes of one worker generation as they are made, all four ends of them; in the supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import os
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import msgspec

LOG_PIPE_BYTES = 1024 * 1024
"""A log pipe holds at most this (`/proc/sys/fs/pipe-max-size`): what a worker wrote before ``Done`` is no more."""


class Pipes(msgspec.Struct, frozen=True):
    """The pipes of one worker generation: ``connection`` and ``log`` are the supervisor's and never block."""

    connection: Connection
    worker_connection: Connection
    log: int
    worker_log: int

    def close_workers(self) -> None:
        """Close the worker's ends, after they were sent: only then does the supervisor see them close."""
        self.worker_connection.close()
        os.close(self.worker_log)


def make_pipes() -> Pipes:
    """New pipes for one worker generation.

    Raises:
        OSError: there are no descriptors left.
    """
    connection, worker_connection = Pipe(duplex=True)
    try:
        log, worker_log = os.pipe2(os.O_CLOEXEC)
    except OSError:
        connection.close()
        worker_connection.close()
        raise
    os.set_blocking(connection.fileno(), False)
    os.set_blocking(log, False)
    with contextlib.suppress(OSError):  # over this user's share of pipe memory: the pipe is small, and works
        fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
    return Pipes(connection, worker_connection, log, worker_log)
