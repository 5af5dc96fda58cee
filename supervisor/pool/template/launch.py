"""Starts a worker by a fork of the template, and gives the way to it. In the supervisor."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.pool.interfaces import Loop
from supervisor.pool.pipes.ends import make_pipes
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.pool.pipes.message_pipe import MessagePipe
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.template.client import TemplateClient


class ForkLauncher:
    """The ``Launcher`` of workers that talk by a pipe."""

    def __init__(self, template: TemplateClient, loop: Loop, message_limit: int) -> None:
        """Fork by ``template``. Messages over ``message_limit`` bytes are refused."""
        self._template = template
        self._loop = loop
        self._limit = message_limit

    def launch(self, slot: str, generation: int, env: Mapping[str, str | None]) -> Link:
        """Start a worker with ``env``, in which None removes a variable; the template reports its ``Forked`` or ``ForkFailed``.

        Raises:
            OSError: no descriptors are left.
        """
        pipes = make_pipes()
        link = Link(slot, generation, MessagePipe(pipes.connection, self._limit, self._loop), LogPipe(pipes.log))
        try:
            self._template.fork(slot, generation, env, pipes)
        except OSError:
            link.close()
            raise
        return link
