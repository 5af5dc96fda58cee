"""The connections to all workers, and their readiness for reading and writing. In the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from supervisor.pool.interfaces import Channel, Loop
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.wire import messages as wire


class Link:
    """The connection to one worker generation, and what the worker has reported. ``starts`` has the start number of each job that
    has not ended."""

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
"""Starts the worker of a slot and generation and returns its link. The variables are set in its environment before any user code
(None removes one). Raises ``OSError`` if the system cannot. ``template.launch.fork_worker`` is one."""


class Links(dict[str, Link]):
    """The link of each slot's worker, by slot; closed links are no longer polled. ``with_messages`` and ``with_output`` are those
    with unread messages and output."""

    def __init__(self, loop: Loop, wake: Callable[[], None], clog_changed: Callable[[str], None]) -> None:
        """Watch by ``loop``; call ``wake`` when something can be read, and ``clog_changed`` with a slot whose worker does not
        read its messages, or reads again."""
        super().__init__()
        self.with_messages: set[Link] = set()
        self.with_output: set[Link] = set()
        self._loop = loop
        self._wake = wake
        self._clog_changed = clog_changed

    def add(self, link: Link) -> None:
        """Watch ``link``, replacing the slot's previous one."""
        self.drop(link.slot)
        self[link.slot] = link
        link.channel.attach(partial(self._readable, link, self.with_messages), partial(self._unclogged, link.slot))
        self._watch(link, True)

    def drop(self, slot: str) -> None:
        """Close the link of ``slot``, if there is one."""
        link = self.pop(slot, None)
        if link is not None:
            self._loop.remove_reader(link.log.fd)
            link.channel.close()
            link.log.close()

    def drain(self, links: set[Link]) -> list[Link]:
        """Return the open ones of ``links`` (``with_messages`` or ``with_output``) and clear it."""
        taken = [link for link in links if self.get(link.slot) is link]
        links.clear()
        return taken

    def reschedule(self, link: Link) -> None:
        """Mark ``link`` as readable again if a turn's read left anything; stop watching pipes at their end."""
        if link.channel.more:
            self._readable(link, self.with_messages)
        if link.log.more:
            self._readable(link, self.with_output)
        if link.channel.closed or link.log.at_end:
            self._watch(link, True)

    def set_reading(self, reading: bool) -> None:
        """Watch all links, or stop watching them."""
        for link in self.values():
            self._watch(link, reading)

    def send(self, link: Link, message: wire.ToWorker) -> None:
        """Send ``message`` to a worker."""
        link.channel.send(message)
        if link.channel.clogged:
            self._clog_changed(link.slot)

    def clogged(self, slot: str) -> bool:
        """Return whether the worker in ``slot`` does not read its messages."""
        return slot in self and self[slot].channel.clogged

    def _watch(self, link: Link, reading: bool) -> None:
        """Watch the pipes of ``link`` that are not at their end, or stop watching them."""
        link.channel.set_reading(reading)
        self._loop.remove_reader(link.log.fd)
        if reading and not link.log.at_end:
            self._loop.add_reader(link.log.fd, self._readable, link, self.with_output)

    def _readable(self, link: Link, which: set[Link]) -> None:
        which.add(link)
        self._wake()

    def _unclogged(self, slot: str) -> None:
        self._clog_changed(slot)
        self._wake()
