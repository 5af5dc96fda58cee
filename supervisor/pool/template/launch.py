"""Starts a worker by a fork of the template, and returns the link to it. In the supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

from supervisor.pool.interfaces import Loop
from supervisor.pool.pipes.log_pipe import LOG_PIPE_BYTES, LogPipe
from supervisor.pool.pipes.message_pipe import MessagePipe
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.template.client import TemplateClient
from supervisor.wire import messages as wire


class Pipes(NamedTuple):
    """The pipes of one worker generation: ``connection`` and ``log`` are the supervisor's non-blocking ends, ``for_worker`` the
    worker's ends."""

    connection: Connection
    log: int
    for_worker: tuple[int, int]


def make_pipes() -> Pipes:
    """Create the pipes of one worker generation.

    Raises:
        OSError: no descriptors are left.
    """
    ours, theirs = socket.socketpair()
    try:
        log, worker_log = os.pipe2(os.O_CLOEXEC)
    except OSError:
        ours.close()
        theirs.close()
        raise
    ours.setblocking(False)
    os.set_blocking(log, False)
    with contextlib.suppress(OSError):  # over the user's limit of pipe memory: a smaller pipe works too
        fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
    return Pipes(Connection(ours.detach()), log, (theirs.detach(), worker_log))


def fork_worker(
    template: TemplateClient, loop: Loop, limit: int, slot: str, generation: int, env: Mapping[str, str | None]
) -> Link:
    """Fork a worker (a ``pipes.pipes.Launch``); the template reports ``Forked`` or ``ForkFailed``.

    Messages over ``limit`` bytes are rejected.
    """
    pipes = make_pipes()
    link = Link(slot, generation, MessagePipe(pipes.connection, limit, loop), LogPipe(pipes.log))
    try:
        template.send(wire.Fork(slot, generation, dict(env)), pipes.for_worker)
    except OSError:
        link.channel.close()
        link.log.close()
        raise
    return link
