"""Reads the lines of a batch, from a file or a pipe, as they are asked for and in little memory; in the supervisor's process."""

from __future__ import annotations

import asyncio
import codecs
import os
import select
import zlib

import msgspec

CHUNK = 2**18
"""Bytes read at once: some hundred lines, in well under a millisecond."""

_BLANKS = b" \t\r"


class InputLine(msgspec.Struct, frozen=True):
    """A line of the input. ``number`` counts from 1, blank ones too; ``size`` is in bytes, with what ends the line.

    ``text`` is without blanks around it, and ``None`` when the line is too long to be kept. ``digest`` is the CRC-32 of the
    text, or of the whole of a line that is too long.
    """

    number: int
    size: int
    digest: int
    text: bytes | None

    @property
    def name(self) -> str:
        """The id of the job that the line becomes unless it names one itself: the same line in the same place has the same."""
        return f"line-{self.number}-{self.digest:08x}"


class Source:
    """The lines behind a descriptor. It is never read while nobody asks, which holds back who writes into a pipe."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, longest: int) -> None:
        """Read ``fd``, which stays open in the end. Of a line longer than ``longest`` bytes only the length is kept."""
        self._fd = fd
        self._loop = loop
        self._longest = longest
        self._number = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._digest = 0
        self._may_wait = _may_wait(fd)

    async def read(self) -> list[InputLine] | None:
        """The next lines, perhaps none yet; ``None`` at the end.

        Raises:
            OSError: it cannot be read.
        """
        if self._may_wait:
            await self._readable()
        # A descriptor that says it is readable gives what it has: it need not be non-blocking, which would change it for others.
        chunk = os.read(self._fd, CHUNK)
        if chunk:
            return self._cut(chunk)
        return [self._finish(0)] if self._size else None

    async def _readable(self) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(self._fd, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._fd)

    def _cut(self, chunk: bytes) -> list[InputLine]:
        first, *others = chunk.split(b"\n")
        self._hold(first)
        if not others:
            return []
        lines = [self._finish(1)]
        rest = others.pop()
        lines.extend([self._line(text, len(text) + 1) for text in others])
        self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> None:
        """Keep a part of a line whose end has not come, unless it is too long already."""
        self._size += len(piece)
        self._digest = zlib.crc32(piece, self._digest)
        if self._size > self._longest:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _finish(self, end: int) -> InputLine:
        """The line that was held, with ``end`` bytes that end it."""
        if self._size > self._longest:
            self._number += 1
            line = InputLine(self._number, self._size + end, self._digest, None)
        else:
            line = self._line(b"".join(self._pieces), self._size + end)
        self._pieces.clear()
        self._size = self._digest = 0
        return line

    def _line(self, text: bytes, size: int) -> InputLine:
        self._number += 1
        if len(text) > self._longest:
            return InputLine(self._number, size, zlib.crc32(text), None)
        if self._number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        text = text.strip(_BLANKS)
        return InputLine(self._number, size, zlib.crc32(text), text)


def _may_wait(fd: int) -> bool:
    """Whether a read could wait: of a pipe, a socket or a terminal, but not of a file, which epoll refuses."""
    with select.epoll() as poll:
        try:
            poll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True
