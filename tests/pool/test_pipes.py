"""The links under the loop that the program really uses."""

from __future__ import annotations

import asyncio
import multiprocessing
import os

import uvloop

from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.pool.pipes.message_pipe import MessagePipe
from supervisor.pool.pipes.pipes import Link, Links
from supervisor.wire import messages as wire

DEADLINE_S = 30


def test_the_log_of_a_worker_that_dies_with_a_message_unread_is_still_read() -> None:
    """uvloop gives up a descriptor that shows an error, and refuses to watch it again as if nothing had been."""

    async def died() -> None:
        ours, theirs = multiprocessing.Pipe()
        log, their_log = os.pipe()
        for fd in (ours.fileno(), log):
            os.set_blocking(fd, False)
        spoke = asyncio.Event()
        loop = asyncio.get_running_loop()
        links = Links(loop, spoke.set, lambda slot: None)
        link = Link("gpu0", 1, MessagePipe(ours, 1000, loop), LogPipe(log))
        links.add(link)
        links.send(link, wire.Exit())
        theirs.send_bytes(wire.Codec(wire.FromWorker).encode(wire.Capacity(2)))
        theirs.close()
        await asyncio.wait_for(spoke.wait(), DEADLINE_S)
        assert links.drain(links.with_messages) == [link]
        assert link.channel.receive() == [wire.Capacity(2)]
        links.reschedule(link)
        assert not link.channel.closed  # it was not looked for: what came is less than one read takes
        spoke.clear()
        os.close(their_log)
        await asyncio.wait_for(spoke.wait(), DEADLINE_S)
        assert link in links.drain(links.with_output)
        link.log.read(())
        links.reschedule(link)
        await asyncio.wait_for(spoke.wait(), DEADLINE_S)
        assert link.channel.receive() == []
        assert link.channel.closed
        links.drop("gpu0")

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(died())
    finally:
        loop.close()
