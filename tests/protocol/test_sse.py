"""Server-sent events as they are written."""

from __future__ import annotations

import pytest

from supervisor.protocol import sse

EVENTS = [
    (sse.event(b"1"), b"data: 1\n\n"),
    (sse.event(b""), b"data: \n\n"),
    (sse.event(b"x", id=0), b"id: 0\ndata: x\n\n"),
    (sse.event(b"x", name="end"), b"event: end\ndata: x\n\n"),
    (sse.event(b"x", id=7, name="end"), b"event: end\nid: 7\ndata: x\n\n"),
    (sse.event(b"a\nb\r\nc\rd\n"), b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
    (sse.event("\u2028ř\x0b\x85".encode()), "data: \u2028ř\x0b\x85\n\n".encode()),
]


@pytest.mark.parametrize(("made", "text"), EVENTS)
def test_event(made: bytes, text: bytes) -> None:
    assert made == text


def test_packed_loses_nothing() -> None:
    small, large = b"x" * 1000, b"y" * (sse.PART_BYTES + 1)
    pieces = [small] * 100 + [large, small, large, large]
    parts = list(sse.packed(pieces))
    assert b"".join(parts) == b"".join(pieces)
    assert len(parts) == 4
    assert list(sse.packed([])) == []
