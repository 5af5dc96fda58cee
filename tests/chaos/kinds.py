"""The kinds of jobs that clients send, how each may end by itself, and what its end must say."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

SECRET = "never-to-be-found"
"""How each job's secret begins; no file but its own and no answer may have this in it."""

Given = dict[str, Any]
Made = tuple[Given, dict[str, Any]]
"""The input, without ``do`` and ``ticket``, and what else stands in the request."""


class Kind(NamedTuple):
    """One kind. ``weight``: how often it is sent; ``ends``: the states in which it may end with nobody's help.

    ``right`` says whether the final body (parsed) of one that ended so is right. ``follow``: what a client may do about it.
    """

    name: str
    do: str
    weight: int
    ends: tuple[str, ...]
    make: Callable[[Random], Made]
    right: Callable[[Given, dict[str, Any]], bool]
    follow: tuple[str, ...] = ("poll", "sync", "forget", "poll", "sync", "cancel", "runsync", "leave", "twice")
    streams: bool = False


# --- what bodies must say ------------------------------------------------------------------------------------------------------


def _proof(given: Given) -> Given:
    return {"ticket": given["ticket"], "sum": zlib.crc32(given.get("payload", "").encode())}


def _proves(given: Given, body: dict[str, Any]) -> bool:
    return bool(body.get("output") == _proof(given))


def _plain(given: Given, body: dict[str, Any]) -> bool:
    value = body.get("output", "missing")
    return type(value) is type(given["value"]) and bool(value == given["value"])


def _large(given: Given, body: dict[str, Any]) -> bool:
    return bool(body.get("output") == {**_proof(given), "large": "L" * given["size"]})


def _digest(given: Given, body: dict[str, Any]) -> bool:
    digest = hashlib.sha256(secret(given["ticket"]).encode()).hexdigest()
    return bool(body.get("output") == {**_proof(given), "digest": digest})


def secret(ticket: str) -> str:
    """The secret of a job that has one."""
    return f"{SECRET}-{ticket}"


def _chunks(given: Given, body: dict[str, Any]) -> bool:
    output = body.get("output")
    if not isinstance(output, list) or len(output) != given["count"]:
        return False
    starts = {chunk["start"] for chunk in output}
    return len(starts) == 1 and [chunk["n"] for chunk in output] == list(range(given["count"]))


def _raised(given: Given, body: dict[str, Any]) -> bool:
    return given["ticket"] in (error := json.loads(body["error"]))["error_message"] and error["error_type"].startswith(
        "<class"
    )


def _broke_off(given: Given, body: dict[str, Any]) -> bool:
    return f"{given['ticket']} breaks off" in body["error"]


def _failed(given: Given, body: dict[str, Any]) -> bool:
    said = (f"{given['ticket']} failed on purpose", {"left": given["ticket"]})
    return (body.get("error"), body.get("output")) == said


def _crashed(given: Given, body: dict[str, Any]) -> bool:
    how = {"exit": "exited with code 9", "_exit": "exited with code 7", "SIGKILL": "was killed by SIGKILL"}
    words = how.get(given["how"], f"crashed with {given['how']}")
    return words in body["error"] and (given["how"] == "SIGKILL" or f"{given['ticket']} last words" in body["error"])


def _crashed_plainly(given: Given, body: dict[str, Any]) -> bool:
    return "exited with code 7" in body["error"]


def _timed_out(given: Given, body: dict[str, Any]) -> bool:
    return body["status"] == "TIMED_OUT" and "output" not in body


# --- what is sent --------------------------------------------------------------------------------------------------------------


def _payload(rng: Random) -> Made:
    return {"payload": "p" * rng.randrange(200), "mib": rng.randrange(100, 2000)}, {}


def _large_input(rng: Random) -> Made:
    return {"payload": "i" * rng.randrange(10_000, 400_000), "size": rng.randrange(1000, 1_500_000)}, {}


def _seconds(low: float, high: float) -> Callable[[Random], Made]:
    return lambda rng: ({"seconds": round(rng.uniform(low, high), 2)}, {})


def _stream(rng: Random) -> Made:
    return {"count": rng.randrange(1, 40), "pause": rng.choice([0, 0.001, 0.02, 0.05])}, {}


def _breaks(rng: Random) -> Made:
    return {"count": 20, "raises_at": rng.randrange(20), "pause": 0.01}, {}


def _hang(rng: Random) -> Made:
    return {"deaf": rng.random() < 0.3}, {"policy": {"executionTimeout": rng.randrange(100, 600)}}


def _expires(rng: Random) -> Made:
    return {"seconds": 30.0}, {"policy": {"ttl": rng.randrange(50, 800)}}


def _low(rng: Random) -> Made:
    return {"payload": "low"}, {"policy": {"lowPriority": True}}


def _of(**values: Any) -> Callable[[Random], Made]:
    """The same every time but for what is a list: one of that."""
    return lambda rng: ({name: rng.choice(it) if isinstance(it, list) else it for name, it in values.items()}, {})


STREAMED = ("stream", "stream", "readers", "after", "events", "events", "forget", "cancel")
DONE, FAILED = ("COMPLETED",), ("FAILED",)

MIXED: tuple[Kind, ...] = (
    Kind("echo", "echo", 20, DONE, _payload, _proves),
    Kind("low priority", "echo", 5, DONE, _low, _proves),
    Kind("plain value", "plain", 5, DONE, _of(value=[0, False, "", None, [], "text", [1, {"a": None}]]), _plain),
    Kind("slow", "slow", 10, DONE, _seconds(0.05, 1.5), _proves),
    Kind("progress", "progress", 4, DONE, _of(count=300), _proves),
    Kind("print", "print", 3, DONE, _of(lines=[10, 2000]), _proves, ("poll", "log", "follow")),
    Kind("large", "large", 2, DONE, _large_input, _large),
    Kind("refresh", "refresh", 6, DONE, _payload, _proves),
    Kind("secret", "secret", 4, DONE, _seconds(0, 0.5), _digest),
    Kind("litter", "litter", 2, DONE, _of(refresh=[True, False]), _proves),
    Kind("daemon", "daemon", 3, DONE, _of(refresh=[True, True, False]), _proves),
    Kind("coroutine", "coroutine", 4, DONE, _seconds(0, 0.6), _proves),
    Kind("stream", "stream", 8, DONE, _stream, _chunks, STREAMED, streams=True),
    Kind("async stream", "astream", 4, DONE, _stream, _chunks, STREAMED, streams=True),
    Kind("broken stream", "stream", 3, FAILED, _breaks, _broke_off, STREAMED, streams=True),
    Kind("fail", "fail", 4, FAILED, _of(), _failed, ("poll", "sync", "retry", "retry", "forget")),
    Kind("raise", "raise", 4, FAILED, _of(), _raised, ("poll", "sync", "retry", "forget")),
    Kind(
        "crash",
        "crash",
        5,
        FAILED,
        _of(how=["exit", "_exit", "SIGSEGV", "SIGABRT", "SIGKILL"]),
        _crashed,
        ("poll", "sync", "retry", "forget", "cancel"),
    ),
    Kind("hang", "hang", 3, ("TIMED_OUT",), _hang, _timed_out, ("poll", "sync", "retry", "forget")),
    Kind("expire", "slow", 2, ("TIMED_OUT",), _expires, _timed_out, ("poll", "sync", "retry")),
)

TOGETHER: tuple[Kind, ...] = (
    Kind("together: echo", "echo", 10, DONE, _payload, _proves),
    Kind("together: slow", "slow", 12, DONE, _seconds(0.05, 1.0), _proves),
    Kind("together: print", "print", 3, DONE, _of(lines=[5, 100]), _proves, ("poll", "log", "follow")),
    Kind("together: fail", "fail", 3, FAILED, _of(), _failed, ("poll", "retry")),
    Kind("together: raise", "raise", 3, FAILED, _of(), _raised, ("poll", "retry")),
    Kind("together: crash", "crash", 1, FAILED, _of(), _crashed_plainly, ("poll", "retry", "forget")),
    Kind("together: hang", "hang", 2, ("TIMED_OUT",), _hang, _timed_out, ("poll", "retry")),
)

BULK = Kind("bulk", "echo", 1, DONE, lambda _: ({"payload": "b" * 400_000}, {}), _proves, ("poll",))
"""Fills a store."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*MIXED, *TOGETHER, BULK)}
