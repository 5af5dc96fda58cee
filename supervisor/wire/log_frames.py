"""Frames that attribute output in a log pipe to jobs; written by the worker, read by the supervisor.

::

    NUL MARK, length of the job's id and of the text (two bytes each, big-endian), the id, the text

A frame has at most ``PIPE_BUF`` bytes, which pipe(7) writes atomically. ``MARK`` is random and only in ``wire.Ready``, so a job
that prints its input cannot forge a frame. Output outside of frames comes from C code, child processes, and threads without a
known job.
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
    """Return a random mark."""
    return secrets.token_hex(8)


def frames(mark: str, job: str, data: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, int]]:
    """Yield ``data``, written by ``job``, in frames that begin with ``mark``, each with its number of bytes of ``data``."""
    view = memoryview(data).cast("B")
    begin, name = _beginning(mark), job.encode()
    room = select.PIPE_BUF - len(begin) - _LENGTHS.size - len(name)
    for at in range(0, len(view), room):
        part = view[at : at + room]
        yield b"".join((begin, _LENGTHS.pack(len(name), len(part)), name, part)), len(part)


class MarkReader:
    """Reads frames, on the supervisor's side. Data may come in pieces of any size: incomplete frames are kept."""

    def __init__(self, mark: str) -> None:
        """Read frames that begin with ``mark``.

        Raises:
            WireError: invalid mark.
        """
        if not _MARK.fullmatch(mark):
            raise WireError(f"{mark[:32]!r} is not a mark")
        self._begin = _beginning(mark)
        self._held = b""

    def feed(self, data: bytes) -> list[tuple[str | None, bytes]]:
        """Add data; return the texts of complete frames with their jobs, and the text between them with None, in order."""
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
        """Return the incomplete rest at the end of the pipe."""
        rest, self._held = self._held, b""
        return rest

    def _unsure(self, data: bytes, at: int) -> int:
        """Return where ``data`` may end in the beginning of a frame; its length if it does not."""
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
