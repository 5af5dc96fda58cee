from __future__ import annotations

import pytest

from supervisor.api import events

EVENTS = [
    (events.event(b"1"), b"data: 1\n\n"),
    (events.event(b""), b"data: \n\n"),
    (events.event(b"x", id=0), b"id: 0\ndata: x\n\n"),
    (events.event(b"x", name="end"), b"event: end\ndata: x\n\n"),
    (events.event(b"x", id=7, name="end"), b"event: end\nid: 7\ndata: x\n\n"),
    (events.event(b"a\nb\r\nc\rd\n"), b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
    (events.event("\u2028ř\x0b\x85".encode()), "data: \u2028ř\x0b\x85\n\n".encode()),
]


@pytest.mark.parametrize(("made", "text"), EVENTS)
def test_event(made: bytes, text: bytes) -> None:
    assert made == text


ACCEPTS = [
    (b"", False),
    (b"*/*", False),
    (b"text/*", False),
    (b"application/json", False),
    (b"text/html, */*;q=0.8", False),
    (b"text/event-stream", True),
    (b"Text/Event-Stream; charset=utf-8", True),
    (b"text/event-stream, */*", True),
    (b"application/json, text/event-stream", True),
    (b"text/event-stream;q=0.5", True),
    (b"text/event-stream ; q=1.000", True),
    (b"application/json;q=0.4, text/event-stream;q=0.5", True),
    (b"application/json, text/event-stream;q=0.9", False),
    (b"text/event-stream;q=0", False),
    (b"text/event-stream;q=0.0,*/*", False),
    (b"text/event-streams", False),
    (b",;q=,;;q=x,\xff", False),
]


@pytest.mark.parametrize(("accept", "wanted"), ACCEPTS)
def test_who_asks_for_events(accept: bytes, wanted: bool) -> None:
    assert events.wanted(accept) is wanted


def test_packed_loses_nothing() -> None:
    small, large = b"x" * 1000, b"y" * (events.PART_BYTES + 1)
    pieces = [small] * 100 + [large, small, large, large]
    parts = list(events.packed(pieces))
    assert b"".join(parts) == b"".join(pieces)
    assert len(parts) == 4
    assert list(events.packed([])) == []
