"""The checker of the chaos run itself: it accepts a right history, and finds each thing that can be wrong in one."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from tests.chaos.checker import History, excuse, faults
from tests.chaos.journal import NO_ANSWER, NOT_SENT, Deed, Events, Exchange, Order, Post, exchange
from tests.chaos.kinds import KINDS, SECRET
from tests.chaos.steady import Sample, trends

OUTPUT = {"ticket": "t1", "sum": zlib.crc32(b"")}
KILLED = "worker gpu0 (pid 41) was killed by SIGKILL; it may have run out of memory"


def told(op: str, at: float, code: int = 200, path: str = "/", client: str = "c1", **body: Any) -> Exchange:
    """An answer at ``at`` to what was asked a moment before."""
    said = exchange("t1", client, op, path, at - 0.001, code, json.dumps(body).encode() if body else b"")
    return said._replace(received=at)


def ended(at: float, op: str = "status", **changes: Any) -> Exchange:
    return told(op, at, **final(**changes))


def final(**changes: Any) -> dict[str, Any]:
    body = {"id": "j1", "status": "COMPLETED", "delayTime": 1, "executionTime": 2, "workerId": "gpu0-1"}
    body |= {"output": OUTPUT, "retries": 0, **changes}
    return {name: value for name, value in body.items() if value is not None}


def failed(at: float, op: str = "status", error: str = KILLED, **changes: Any) -> Exchange:
    return ended(at, op, **{"status": "FAILED", "output": None, "error": error, **changes})


def accepted(at: float = 1.0) -> Exchange:
    return told("submit", at, id="j1", status="IN_QUEUE")


def history(*exchanges: Exchange, kind: str = "echo", hook: bool = False, **fields: Any) -> History:
    """One that ended as its last exchange says."""
    order = Order("t1", "mixed", kind, {"ticket": "t1", "count": 3, "lines": 1}, {}, None, None, hook)
    last = json.loads(exchanges[-1].body) if exchanges and exchanges[-1].body.startswith(b"{") else None
    return History(order, exchanges, **{"final": last, "starts": [1.5], **fields})


def wrong(*exchanges: Exchange, **fields: Any) -> str:
    return "\n".join(faults(history(*exchanges, **fields)))


def chunks(*numbers: int, start: str = "s") -> list[dict[str, Any]]:
    return [{"output": {"ticket": "t1", "start": start, "n": number}} for number in numbers]


def streamed(**changes: Any) -> Exchange:
    return ended(9, "final", output=[item["output"] for item in chunks(0, 1, 2)], **changes)


def test_what_is_right_is_accepted() -> None:
    assert wrong(accepted(), ended(2), ended(9, "final")) == ""
    assert wrong(told("submit", 1, NO_ANSWER), told("final", 9, 404), starts=[]) == ""
    assert wrong(told("submit", 1, NOT_SENT), accepted(2), ended(9, "final"), starts=[2.5]) == ""
    retried = [accepted(), failed(2, error="x"), told("retry", 3), failed(9, "final", error="x", retries=1)]
    assert "no reason" in wrong(*retried, starts=[1.5, 3.5])
    body: dict[str, Any] = {"output": {"left": "t1"}, "error": "t1 failed on purpose", "status": "FAILED"}
    retried = [
        accepted(),
        ended(2, **body),
        told("retry", 3, id="j1", status="IN_QUEUE"),
        ended(9, "final", **body, retries=1),
    ]
    assert wrong(*retried, kind="fail", starts=[1.5, 3.5]) == ""


@pytest.mark.parametrize(
    ("exchanges", "fields", "fault"),
    [
        ([accepted(), told("final", 9, 404)], {}, "accepted, and now 404"),
        ([accepted(), told("final", 9, id="j1", status="IN_QUEUE", retries=0)], {}, "accepted, and now 200"),
        ([told("submit", 1, 503), ended(9, "final")], {}, "refused, and yet"),
        ([accepted(), told("submit", 2, id="j2", status="IN_QUEUE"), ended(9, "final")], {}, "several ids"),
        ([accepted(), told("status", 2, 500), ended(9, "final")], {}, "answered 500"),
        ([accepted(), told("status", 2, 404), ended(9, "final")], {}, "answered 404"),
        ([accepted(), ended(2, executionTime=3), ended(9, "final")], {}, "different ends were told"),
        (
            [accepted(), ended(2), told("status", 3, status="IN_PROGRESS", retries=0), ended(9, "final")],
            {},
            "later status said",
        ),
        ([accepted(), ended(2), ended(9, "final", retries=1)], {}, "later final said COMPLETED (retries 1)"),
        ([accepted(), ended(2), ended(9, "final")], {"starts": [1.5, 8.0]}, "started 6.00 s after its end"),
        ([accepted(), ended(9, "final", output={"sum": 0})], {}, "for no reason"),
        ([accepted(), failed(9, "final")], {}, "for no reason"),
        ([accepted(), ended(9, "final", status="CANCELLED", output=None)], {}, "for no reason"),
        ([accepted(), told("cancel", 2, 503), ended(9, "final", status="CANCELLED", output=None)], {}, "for no reason"),
        ([accepted(), ended(9, "final", delayTime=1.5)], {}, "delayTime"),
        ([accepted(), ended(9, "final", workerId=None)], {}, "workerId"),
        ([accepted(), ended(9, "final")], {"starts": [1.1, 1.2]}, "2 starts, and only 0 retries"),
        (
            [accepted(), ended(9, "final", retries=5)],
            {"starts": [1.1, 1.2, 1.3, 1.4]},
            "4 starts, where 3 were allowed",
        ),
        ([accepted(), ended(9, "final")], {"starts": []}, "never started"),
        ([accepted(), told("status", 2, output=SECRET), ended(9, "final")], {}, "has the secret in it"),
    ],
)
def test_what_is_wrong_is_found(exchanges: list[Exchange], fields: dict[str, Any], fault: str) -> None:
    assert fault in wrong(*exchanges, **fields)


@pytest.mark.parametrize(
    ("error", "what", "pid"),
    [
        (KILLED, "worker", 41),
        ("the supervisor was killed while the job ran, 3 times", "SIGKILL", 0),
        ("the supervisor stopped while the job ran", "SIGTERM", 0),
        ("worker gpu0 (pid 3) lost its GPU 0 (GPU is lost)", "GPU lost", 0),
        ("worker gpu0 (pid 3) ended with the template process", "template", 0),
        ("worker gpu3 (pid 41) exited with code 7", "crash", 41),
    ],
)
def test_a_failure_is_excused_by_what_was_done_and_by_nothing_else(error: str, what: str, pid: int) -> None:
    deeds = [Deed(1.0, "mixed", what, "", pid)]
    assert excuse(error, deeds)
    assert not excuse(error, [Deed(1.0, "mixed", "Xid" if what == "worker" else "worker", "", 40)])
    assert wrong(accepted(), failed(9, "final", error), deeds=deeds) == ""


def test_each_chunk_is_handed_out_once_in_order_and_to_the_end() -> None:
    first = told("stream", 2, status="IN_PROGRESS", stream=chunks(0, 1))
    second = told("stream", 3, status="COMPLETED", stream=chunks(2), client="c2")
    empty = told("stream", 4, status="COMPLETED", stream=[])

    def said(*exchanges: Exchange) -> str:
        return wrong(accepted(), *exchanges, streamed(), kind="stream")

    assert said(first, second, empty) == ""
    assert "chunk 1 was handed out 2 times" in said(
        first, told("stream", 3, status="COMPLETED", stream=chunks(1)), empty
    )
    assert "was handed chunk 0 behind chunk 1" in said(told("stream", 2, status="IN_PROGRESS", stream=chunks(1, 0)))
    assert "chunks [2] were handed out to nobody" in said(first, empty)
    assert said(first, told("stream", 3, NO_ANSWER), empty) == ""
    other = told("stream", 3, status="COMPLETED", stream=chunks(2, start="other"))
    assert "chunks of 2 starts" in said(first, other)


def test_chunks_that_stay_are_those_of_the_output() -> None:
    def said(*exchanges: Exchange, **fields: Any) -> str:
        return wrong(accepted(), *exchanges, streamed(), kind="stream", **fields)

    assert said(told("after", 2, path="/stream/j1?after=1&wait=5", status="COMPLETED", stream=chunks(1, 2))) == ""
    assert "after=1" in said(told("after", 2, path="/stream/j1?after=1", status="COMPLETED", stream=chunks(2)))
    outputs = [(number, chunks(number)[0]["output"]) for number in range(3)]
    assert said(reads=[Events("t1", "chunks", 3, tuple(outputs), "COMPLETED")]) == ""
    assert said(reads=[Events("t1", "chunks", 3, tuple(outputs[:1]), None)]) == ""
    assert "ended after 2 of 3" in said(reads=[Events("t1", "chunks", 3, tuple(outputs[:2]), "COMPLETED")])
    assert "ids were [1, 2]" in said(reads=[Events("t1", "chunks", 3, tuple(outputs[1:]), None)])
    assert "ended with FAILED" in said(reads=[Events("t1", "chunks", 3, tuple(outputs), "FAILED")])


def test_webhooks_say_the_end_until_it_is_taken() -> None:
    last = ended(9, "final")

    def said(
        *posts: tuple[float, int], body: bytes = last.body, deeds: tuple[Deed, ...] = (), hook: bool = True
    ) -> str:
        sent = [Post("t1", at, "msg_1", body, answered) for at, answered in posts]
        return wrong(accepted(), last, hook=hook, posts=sent, deeds=deeds)

    assert said((2, 200)) == ""
    assert said((2, 500), (3, 0), (4, 500)) == ""
    assert "0 webhooks told" in said()
    assert "0 webhooks told" in said((2, 200), body=b"{}")
    assert "given up after 1 tries" in said((2, 500))
    assert "came again" in said((2, 200), (5, 200))
    assert said((2, 200), (5, 200), deeds=(Deed(2.1, "mixed", "SIGKILL"),)) == ""
    assert "came 4 times" in said((2, 500), (3, 500), (4, 500), (5, 500))
    assert "nobody asked" in said((2, 200), hook=False)


def test_a_log_is_the_jobs_own_and_whole() -> None:
    def said(text: str) -> str:
        log = told("log", 3)._replace(body=text.encode())
        fetched = wrong(accepted(), log, ended(9, "final"), kind="print")
        read = Events("t1", "log", 3, ((5, text.removesuffix("\n")),), "COMPLETED")
        assert wrong(accepted(), ended(9, "final"), kind="print", reads=[read]) == fetched
        return fetched

    assert said("t1 line 0 xx\nt1 from a child\nt1 last line\n") == ""
    assert "0 of 1 lines" in said("t1 last line\n")
    assert "lines of others" in said("t1 line 0 xx\nt2 line 0 xx\nt1 last line\n")


def test_memory_that_grows_is_not_flat() -> None:
    def samples(grows: int, leaks: int) -> list[Sample]:
        return [Sample("mixed", 1, 40_000 + grows * at, 20 + at * leaks // 100) for at in range(200)]

    (flat,), (grown,), (leaky,) = trends(samples(1, 0)), trends(samples(100, 0)), trends(samples(0, 10))
    assert flat.flat
    assert not grown.flat
    assert not leaky.flat
    assert trends(samples(100, 0)[:50]) == []


def test_every_kind_that_fails_by_itself_has_an_end_that_is_right() -> None:
    assert {end for kind in KINDS.values() for end in kind.ends} == {"COMPLETED", "FAILED", "TIMED_OUT"}
