"""Server-sent events (WHATWG HTML, section 9.2): encoding in the supervisor, parsing in clients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

PING = b": ping\n\n"
"""A comment, sent while a stream is idle."""

RETRY = b"retry: 1000\n\n"
"""The start of a stream that can be resumed: reconnect after a second."""

PART_BYTES = 64 * 1024
"""Bytes sent at once: a client that is far behind costs so much memory, not all that it has yet to read."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


def event(data: bytes, *, id: int | None = None, name: str | None = None) -> bytes:  # noqa: A002 - the field's name
    """Encode an event. ``data`` is UTF-8; its lines become lines of the event, so a client gets each line end as ``\\n``."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    if id is not None:
        head += b"id: %d\n" % id
    if b"\n" in data or b"\r" in data:  # rarely, and searching by a pattern is slow
        data = _LINE_END.sub(b"\ndata: ", data)
    return head + b"data: %b\n\n" % data


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join ``pieces`` into parts of about ``PART_BYTES``, to save writes."""
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
    """A server-sent event; a broken connection is resumed after its ``id``."""

    data: bytes
    name: str = ""
    id: str | None = None


class EventParser:
    """Incremental parser of a body whose lines end in ``\\n``, as ``event`` writes them."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._name = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that ``piece`` completes."""
        self._rest += piece
        if b"\n" not in piece:  # a long event is not scanned from its start with each piece
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
