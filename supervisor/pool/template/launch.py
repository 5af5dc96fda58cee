"""Starts a worker by a fork of the template, and gives the way to it. In the supervisor."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.pool.interfaces import Loop
from supervisor.pool.pipes.ends import make_pipes
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.pool.pipes.message_pipe import MessagePipe
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.template.client import TemplateClient
from supervisor.wire import messages as wire


def fork_worker(
    template: TemplateClient, loop: Loop, limit: int, slot: str, generation: int, env: Mapping[str, str | None]
) -> Link:
    """Launch (``pipes.pipes.Launch``) a worker that talks by a pipe; the template reports its ``Forked`` or ``ForkFailed``.

    Messages over ``limit`` bytes are refused.
    """
    pipes = make_pipes()
    link = Link(slot, generation, MessagePipe(pipes.connection, limit, loop), LogPipe(pipes.log))
    try:
        template.send(wire.Fork(slot, generation, dict(env)), pipes.worker_connection.fileno(), pipes.worker_log)
    except OSError:
        link.close()
        raise
    finally:
        pipes.close_workers()
    return link
