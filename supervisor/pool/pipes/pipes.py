"""The pipes of all workers, watched by the loop: which of them can be read. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from supervisor.pool.interfaces import Loop
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.pool.pipes.message_pipe import MessagePipe
from supervisor.wire import messages as wire


class Link:
    """One worker generation: its two pipes, and what it has said of itself by them."""

    def __init__(self, slot: str, generation: int, connection: Connection, log_fd: int, limit: int) -> None:
        """Own both descriptors, which are non-blocking; refuse messages of more than ``limit`` bytes."""
        self.slot = slot
        self.generation = generation
        self.messages = MessagePipe(connection, limit)
        self.log = LogPipe(log_fd)
        self.pid: int | None = None
        self.kind = "unknown"
        self.load_failed: wire.LoadFailed | None = None
        self.port_named = False
        self.warnings = 0

    def close(self) -> None:
        """Let go of both pipes."""
        self.messages.close()
        self.log.close()


class Links:
    """The link of each slot's worker, by slot; closed links are no longer polled.

    ``clogged``: the slots whose worker does not read what it was told.
    """

    def __init__(self, loop: Loop, wake: Callable[[], None]) -> None:
        """Watch by ``loop``; call ``wake`` when something can be read."""
        self._loop = loop
        self._wake = wake
        self.clogged: set[str] = set()
        self._links: dict[str, Link] = {}
        self._spoke: set[Link] = set()
        self._printed: set[Link] = set()

    def __getitem__(self, slot: str) -> Link:
        """The link of the worker in ``slot``."""
        return self._links[slot]

    def __iter__(self) -> Iterator[Link]:
        """All of them."""
        return iter(self._links.values())

    def get(self, slot: str) -> Link | None:
        """The link of the worker in ``slot``, if there is one."""
        return self._links.get(slot)

    def add(self, link: Link) -> None:
        """Watch ``link`` in the place of the slot's last one."""
        self.drop(link.slot)
        self._links[link.slot] = link
        self.listen(link, True)

    def drop(self, slot: str) -> None:
        """Close the link of ``slot``, if there is one."""
        link = self._links.pop(slot, None)
        if link is not None:
            self.clogged.discard(slot)
            self.listen(link, False)
            self._loop.remove_writer(link.messages.fd)
            link.close()

    def take_spoken(self) -> list[Link]:
        """Those with messages since the last call."""
        return self._take(self._spoke)

    def take_printed(self) -> list[Link]:
        """Those with output since the last call."""
        return self._take(self._printed)

    def heard(self, link: Link) -> None:
        """What ``link`` had to say was taken, as much as one turn takes: the rest is for the next, if more can come at all."""
        if link.messages.more:
            self._readable(link, self._spoke)
        if link.log.more:
            self._readable(link, self._printed)
        if link.messages.at_end or link.messages.broken or link.log.at_end:
            self.listen(link, True)

    def listen(self, link: Link, listening: bool) -> None:
        """Watch those pipes of ``link`` that have not come to their end, or none."""
        # First of all: uvloop gives up a descriptor that shows an error (a worker died with a message unread), and refuses to
        # watch it again until it is removed.
        messages, log = link.messages, link.log
        self._loop.remove_reader(messages.fd)
        self._loop.remove_reader(log.fd)
        if listening and not (messages.at_end or messages.broken):
            self._loop.add_reader(messages.fd, self._readable, link, self._spoke)
        if listening and not log.at_end:
            self._loop.add_reader(log.fd, self._readable, link, self._printed)

    def send(self, link: Link, message: wire.ToWorker) -> None:
        """Write ``message``, the rest of it as soon as the worker reads."""
        if not link.messages.send(message):
            self._loop.add_writer(link.messages.fd, self._write_on, link)
            if link.messages.clogged:
                self.clogged.add(link.slot)

    def _take(self, links: set[Link]) -> list[Link]:
        taken = [link for link in links if self._links.get(link.slot) is link]
        links.clear()
        return taken

    def _readable(self, link: Link, which: set[Link]) -> None:
        which.add(link)
        self._wake()

    def _write_on(self, link: Link) -> None:
        if link.messages.flush():
            self._loop.remove_writer(link.messages.fd)
        if link.slot in self.clogged and not link.messages.clogged:
            self.clogged.discard(link.slot)
            self._wake()
