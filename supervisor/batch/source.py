"""Reads the lines of a batch from a file or a pipe, lazily and in little memory; in the supervisor's process."""

from __future__ import annotations

import asyncio
import codecs
import os
import select
import zlib

import msgspec

CHUNK = 2**18
"""Bytes read at once: a few hundred lines, in well under a millisecond."""

_BLANKS = b" \t\r"


class InputLine(msgspec.Struct, frozen=True):
    """A line of the input. ``number`` counts from 1, including blank lines; ``size`` is in bytes, with the line end.

    ``text`` is stripped, and None if the line is too long to be kept. ``digest`` is the CRC-32 of the text, or of the whole line
    if it is too long.
    """

    number: int
    size: int
    digest: int
    text: bytes | None

    @property
    def name(self) -> str:
        """The default id of the line's job, the same for the same line in the same place."""
        return f"line-{self.number}-{self.digest:08x}"


class Source:
    """The lines of a descriptor, read only on demand, so that the writer of a pipe is held back."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, longest: int) -> None:
        """Read ``fd``, which stays open. Only the length and digest of a line longer than ``longest`` bytes are kept."""
        self._fd = fd
        self._loop = loop
        self._longest = longest
        self._number = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._digest = 0
        self._may_wait = _may_wait(fd)

    async def read(self) -> list[InputLine] | None:
        """Read the next lines, perhaps none yet; return None at the end.

        Raises:
            OSError: the input cannot be read.
        """
        if self._may_wait:
            await self._readable()
        # Reading a readable descriptor does not block, so it need not be made non-blocking, which would affect other programs.
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
        """Keep a part of an incomplete line, unless it is too long already."""
        self._size += len(piece)
        self._digest = zlib.crc32(piece, self._digest)
        if self._size > self._longest:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _finish(self, end: int) -> InputLine:
        """Return the held line, whose line end has ``end`` bytes."""
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
    """Return whether a read may block: on a pipe, socket or terminal, but not on a file, which epoll rejects."""
    with select.epoll() as poll:
        try:
            poll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True
