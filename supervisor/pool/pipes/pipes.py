"""The ways to all workers: who has something to say, and who does not listen. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from supervisor.pool.interfaces import Channel, Loop
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.wire import messages as wire


class Link:
    """One worker generation: the ways to it, and what it has said of itself by them. ``starts`` are the numbers of the starts of
    its jobs, until it has ended them."""

    def __init__(self, slot: str, generation: int, channel: Channel, log: LogPipe) -> None:
        """Own ``channel`` and ``log``."""
        self.slot = slot
        self.generation = generation
        self.channel = channel
        self.log = log
        self.starts: dict[str, int] = {}
        self.pid: int | None = None
        self.load_failed: wire.LoadFailed | None = None
        self.port_named = False
        self.warnings = 0


Launch = Callable[[str, int, Mapping[str, "str | None"]], Link]
"""Starts the worker of a slot and generation, with some variables set in its environment before any user code (None removes one),
and returns the way to it. Raises ``OSError`` when the system refuses. ``template.launch.fork_worker``, or another kind."""


class Links(dict[str, Link]):
    """The link of each slot's worker, by slot; closed links are no longer polled. ``spoke`` are those with messages to take,
    ``printed`` those with output."""

    def __init__(self, loop: Loop, wake: Callable[[], None], reads: Callable[[str], None]) -> None:
        """Watch by ``loop``; call ``wake`` when something can be read, and ``reads`` with a slot whose worker does not read what
        it was told, or reads again."""
        super().__init__()
        self.spoke: set[Link] = set()
        self.printed: set[Link] = set()
        self._loop = loop
        self._wake = wake
        self._reads = reads

    def add(self, link: Link) -> None:
        """Watch ``link`` in the place of the slot's last one."""
        self.drop(link.slot)
        self[link.slot] = link
        link.channel.attach(partial(self._readable, link, self.spoke), partial(self._unclogged, link.slot))
        self._watch(link, True)

    def drop(self, slot: str) -> None:
        """Close the link of ``slot``, if there is one."""
        link = self.pop(slot, None)
        if link is not None:
            self._loop.remove_reader(link.log.fd)
            link.channel.close()
            link.log.close()

    def take(self, links: set[Link]) -> list[Link]:
        """Return those of ``spoke`` or ``printed``, once."""
        taken = [link for link in links if self.get(link.slot) is link]
        links.clear()
        return taken

    def heard(self, link: Link) -> None:
        """What ``link`` had to say was taken, as much as one turn takes: the rest is for the next, if more can come at all."""
        if link.channel.more:
            self._readable(link, self.spoke)
        if link.log.more:
            self._readable(link, self.printed)
        if link.channel.closed or link.log.at_end:
            self._watch(link, True)

    def listen(self, listening: bool) -> None:
        """Watch all links, or none."""
        for link in self.values():
            self._watch(link, listening)

    def send(self, link: Link, message: wire.ToWorker) -> None:
        """Send ``message``."""
        link.channel.send(message)
        if link.channel.clogged:
            self._reads(link.slot)

    def clogged(self, slot: str) -> bool:
        """Tell whether the worker in ``slot`` does not read what it was told."""
        return slot in self and self[slot].channel.clogged

    def _watch(self, link: Link, listening: bool) -> None:
        """Watch what of ``link`` has not come to its end, or nothing."""
        link.channel.listen(listening)
        self._loop.remove_reader(link.log.fd)
        if listening and not link.log.at_end:
            self._loop.add_reader(link.log.fd, self._readable, link, self.printed)

    def _readable(self, link: Link, which: set[Link]) -> None:
        which.add(link)
        self._wake()

    def _unclogged(self, slot: str) -> None:
        self._reads(slot)
        self._wake()
