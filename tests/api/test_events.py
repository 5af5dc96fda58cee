from __future__ import annotations

import pytest

from supervisor.api import events

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
