"""How the prints of several jobs share one log pipe: frames that name their job, written by the worker, read by the supervisor.

::

    NUL MARK, length of the job's id and of the text (two bytes each, big-endian), the id, the text

A frame has at most ``PIPE_BUF`` bytes, and pipe(7) promises that no other writer comes in between those. ``MARK`` is random and
in no message but ``wire.Ready``, so what a job merely repeats of its input is never taken for a frame. Everything outside of
frames is as it was written: by C code, by children, by threads that no job is known of.
"""

from __future__ import annotations

import re
import secrets
import select
import struct
from collections.abc import Iterator

from supervisor.errors import WireError

_LENGTHS = struct.Struct("!HH")
_MARK = re.compile("[0-9a-f]{16}")


def new_mark() -> str:
    """A mark that nobody can guess."""
    return secrets.token_hex(8)


def frames(mark: str, job: str, data: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, int]]:
    """``data``, written by ``job``, as frames that begin with ``mark``, each with how many bytes of ``data`` are in it."""
    view = memoryview(data).cast("B")
    begin, name = _beginning(mark), job.encode()
    room = select.PIPE_BUF - len(begin) - _LENGTHS.size - len(name)
    for at in range(0, len(view), room):
        part = view[at : at + room]
        yield b"".join((begin, _LENGTHS.pack(len(name), len(part)), name, part)), len(part)


class MarkReader:
    """Reads frames, the supervisor's side. A pipe may be read in pieces of any size: what is not whole yet waits here."""

    def __init__(self, mark: str) -> None:
        """Know frames by ``mark``.

        Raises:
            WireError: that is no mark.
        """
        if not _MARK.fullmatch(mark):
            raise WireError(f"{mark[:32]!r} is not a mark")
        self._begin = _beginning(mark)
        self._held = b""

    def feed(self, data: bytes) -> list[tuple[str | None, bytes]]:
        """Take what was read; return it by job, None for what is outside of frames, in the order it was written."""
        data = self._held + data
        pieces: list[tuple[str | None, list[bytes]]] = []
        at = 0
        while (begin := data.find(self._begin, at)) >= 0:
            _add(pieces, None, data[at:begin])
            at = begin
            lengths = begin + len(self._begin)
            name = lengths + _LENGTHS.size
            if name > len(data):
                break
            name_length, text_length = _LENGTHS.unpack_from(data, lengths)
            text = name + name_length
            if text + text_length > len(data):
                break
            at = text + text_length
            _add(pieces, data[name:text].decode("utf-8", "replace"), data[text:at])
        else:
            begin = self._unsure(data, at)
            _add(pieces, None, data[at:begin])
        self._held = data[begin:]
        return [(job, b"".join(parts)) for job, parts in pieces]

    def rest(self) -> bytes:
        """What waits for more, when there will be no more."""
        rest, self._held = self._held, b""
        return rest

    def _unsure(self, data: bytes, at: int) -> int:
        """From where on ``data`` may be the beginning of a frame; its length if it is not."""
        begin = data.rfind(0, max(at, len(data) - len(self._begin) + 1))
        return begin if begin >= 0 and self._begin.startswith(data[begin:]) else len(data)


def _beginning(mark: str) -> bytes:
    return b"\0" + mark.encode()


def _add(pieces: list[tuple[str | None, list[bytes]]], job: str | None, text: bytes) -> None:
    if not text:
        return
    if pieces and pieces[-1][0] == job:
        pieces[-1][1].append(text)
    else:
        pieces.append((job, [text]))
