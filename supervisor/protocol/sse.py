"""Server-sent events (WHATWG HTML, section 9.2): written by the supervisor, read by a client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

PING = b": ping\n\n"
"""A comment: what a stream says that has nothing to say."""

RETRY = b"retry: 1000\n\n"
"""The first words of a stream that can be resumed: come back a second after it broke off."""

PART_BYTES = 64 * 1024
"""How much is sent at once: a client that is far behind costs this, not what it has still to read."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


def event(data: bytes, *, id: int | None = None, name: str | None = None) -> bytes:  # noqa: A002 - the field's name
    """One event. ``data`` is UTF-8; its lines become lines of the event, so a client gets each line end as ``\\n``."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    if id is not None:
        head += b"id: %d\n" % id
    if b"\n" in data or b"\r" in data:  # mostly not, and searching by a pattern is slow
        data = _LINE_END.sub(b"\ndata: ", data)
    return head + b"data: %b\n\n" % data


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """``pieces`` joined, so that few writes carry many of them."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One server-sent event; ``id`` is what a connection that broke is resumed behind."""

    data: bytes
    name: str = ""
    id: str | None = None


class EventParser:
    """Makes events of a body, in pieces as they come; its lines end in ``\\n``, as ``event`` writes them."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._name = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """The events that ``piece`` completes."""
        self._rest += piece
        if b"\n" not in piece:  # a long event is not looked at from its start with each piece of it
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if line:
                self._field(line)
                continue
            if self._data:
                yield ServerSentEvent(b"\n".join(self._data), self._name, self._id)
            self._data, self._name, self._id = [], "", None

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id":
            self._id = value.decode("latin-1")
