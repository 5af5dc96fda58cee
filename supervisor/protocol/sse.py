"""Server-sent events, as a client reads them; a client's process."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One server-sent event; ``id`` is what a connection that broke is resumed behind."""

    data: bytes
    name: str = ""
    id: str | None = None


class EventParser:
    """Makes events of a body of server-sent events, in pieces as they come (WHATWG HTML, section 9.2; lines end in ``\\n``)."""

    def __init__(self) -> None:
        """At the beginning of the body."""
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._name = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[Event]:
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
                yield Event(b"\n".join(self._data), self._name, self._id)
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
