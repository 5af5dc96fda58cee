"""Judges a job by everything that was heard of it: pure functions from its history to what is wrong; in the chaos program."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.chaos.journal import NO_ANSWER, NOT_SENT, TERMINAL, Deed, Events, Exchange, Order, Post
from tests.chaos.kinds import KINDS, SECRET

HOST_KILL_STARTS = 3
"""Most starts that a job may have when supervisors and templates die under it."""

WEBHOOK_TRIES = 3

STOP_S = 3.0
"""Within how long a worker that must stop is dead: `--grace` twice, and a busy machine."""

_RIGHT_CODES = {200, 503, NO_ANSWER, NOT_SENT}
_PID = re.compile(r"\(pid (\d+)\)")


class History(NamedTuple):
    """A job's life as seen from outside. ``exchanges`` are in the order of their answers; ``final`` is the last body, parsed.

    ``starts``: when each start was, on the monotonic clock. ``deeds``: what was done to its house and to the GPUs.
    """

    order: Order
    exchanges: Sequence[Exchange]
    final: dict[str, Any] | None = None
    starts: Sequence[float] = ()
    posts: Sequence[Post] = ()
    reads: Sequence[Events] = ()
    deeds: Sequence[Deed] = ()

    def of(self, *ops: str) -> list[Exchange]:
        """The exchanges of these operations."""
        return [it for it in self.exchanges if it.op in ops]

    @property
    def accepted(self) -> bool:
        return any(it.code == 200 for it in self.of("submit"))

    @property
    def ends(self) -> list[Exchange]:
        """Those that say in full how the job ended."""
        return [it for it in self.exchanges if it.terminal]

    def retried(self, since: float = 0.0, before: float = float("inf")) -> int:
        """How many retries by hand may have been carried out between those times."""
        taken = [it for it in self.of("retry") if it.code in (200, NO_ANSWER)]
        return len([it for it in taken if it.received > since and it.sent < before])


def faults(history: History) -> list[str]:
    """What is wrong with this job; empty: nothing."""
    checks = (_codes, _one_end, _lasting, _right_end, _attempts, _plain_stream, _other_streams, _webhooks, _log)
    return [fault for check in checks for fault in check(history)]


# --- that it is there, once ----------------------------------------------------------------------------------------------------


def _codes(history: History) -> Iterator[str]:
    for it in history.exchanges:
        expected = it.code in _RIGHT_CODES
        expected = expected or (
            it.code == 404 and not any(at.received < it.sent for at in history.exchanges if at.code == 200)
        )
        expected = expected or (it.code == 409 and it.op == "retry")
        if not expected:
            yield f"{it.op} was answered {it.code}: {it.body[:200]!r}"
        if SECRET.encode() in it.body:
            yield f"the answer of {it.op} has the secret in it"
    if any(SECRET.encode() in post.body for post in history.posts):
        yield "a webhook has the secret in it"


def _one_end(history: History) -> Iterator[str]:
    ids = {it.job for it in history.of("submit") if it.job is not None}
    if history.order.own_id is not None:
        ids.add(history.order.own_id)
    if len(ids) > 1:
        yield f"one job was given several ids: {sorted(ids)}"
    final = history.of("final")[-1:]
    if not final:
        return
    if history.accepted and not final[0].terminal:
        yield f"accepted, and now {final[0].code} {final[0].body[:200]!r}"
    refused = all(it.code in (503, NOT_SENT) for it in history.of("submit"))
    if refused and (final[0].code != 404 or history.starts):
        yield f"refused, and yet {final[0].body[:200]!r}, {len(history.starts)} starts"


def _lasting(history: History) -> Iterator[str]:
    """No result changed after it was seen, and nothing happened to the job any more."""
    bodies: dict[int, set[bytes]] = defaultdict(set)
    for end in history.ends:
        bodies[end.retries or 0].add(end.body)
    for number, different in bodies.items():
        if len(different) > 1:
            yield f"different ends were told (retries: {number}): {sorted(different)}"
    for end in history.ends:
        for it in history.exchanges:
            changed = it.code == 200 and it.sent > end.received and it.status is not None
            if not changed or (it.op in ("submit", "retry") and it.retries is None):
                continue
            again = history.retried(end.sent, it.received)
            same = it.retries == end.retries if it.retries is not None else it.status == end.status
            if it.op == "cancel":
                same = same or it.status == end.status
            if not again and not (same and it.status == end.status):
                yield f"it ended {end.status} (retries {end.retries}), and later {it.op} said {it.status} (retries {it.retries})"
    for end in history.ends:
        # One that was in a worker already may begin while that is being stopped.
        patience = 0.0 if b'"workerId":""' in end.body else STOP_S
        late = [at for at in history.starts if at > end.received + patience]
        if late and not history.retried(end.sent):
            yield f"it was started {late[0] - end.received:.2f} s after its end {end.status} was told"


# --- that its end is right -----------------------------------------------------------------------------------------------------


def _right_end(history: History) -> Iterator[str]:
    body = history.final
    if body is None or body.get("status") not in TERMINAL:
        return
    kind, status = KINDS[history.order.kind], body["status"]
    times = (body.get("delayTime"), body.get("executionTime"), body.get("retries"))
    if not all(isinstance(time, int) and time >= 0 for time in times):
        yield f"delayTime, executionTime, retries are {times}"
    if not isinstance(body.get("workerId"), str):
        yield f"workerId is {body.get('workerId')!r}"
    if status in kind.ends and _by_itself(history, body):
        return
    why = _excuse(history, body)
    if why is None:
        yield f"ended {status} for no reason that anybody gave it: {json.dumps(body)[:600]}"


def _by_itself(history: History, body: dict[str, Any]) -> bool:
    try:
        return KINDS[history.order.kind].right(history.order.given, body)
    except (ValueError, KeyError, TypeError):
        return False


def _excuse(history: History, body: dict[str, Any]) -> str | None:
    """Which deed explains an end that is not the handler's own."""
    if body["status"] == "CANCELLED":
        asked = any(it.code not in (503, NOT_SENT) for it in history.of("cancel"))
        asked = asked or any(deed.what == "purge" for deed in history.deeds)
        return "cancelled" if asked and not body.get("error") else None
    if body["status"] != "FAILED" or "output" in body:
        return None
    return excuse(body.get("error", ""), history.deeds)


def excuse(error: str, deeds: Sequence[Deed]) -> str | None:
    """Which of the ``deeds`` made a job fail with ``error``; ``None``: none of them."""
    whats = {deed.what for deed in deeds}
    if error.startswith("the supervisor was killed") and "SIGKILL" in whats:
        return "supervisor killed"
    if error.startswith("the supervisor stopped") and "SIGTERM" in whats:
        return "supervisor stopped"
    if "GPU" in error and "lost" in error and whats & {"GPU lost", "Xid"}:
        return "GPU lost"
    if "Xid" in error and "Xid" in whats:
        return "Xid"
    if "template" in error and "template" in whats:
        return "template killed"
    found = _PID.search(error)
    for deed in deeds:
        if found and deed.pid == int(found[1]) and deed.what in ("worker", "crash"):
            return f"{deed.what} killed" if deed.what == "worker" else f"{deed.detail} crashed beside it"
    return None


def _attempts(history: History) -> Iterator[str]:
    body, starts = history.final, len(history.starts)
    if body is None or body.get("status") not in TERMINAL:
        return
    if starts > body["retries"] + 1:
        yield f"{starts} starts, and only {body['retries']} retries"
    if body["status"] == "COMPLETED" and not starts:
        yield "COMPLETED, and never started"
    free = len([deed for deed in history.deeds if deed.what == "SIGTERM"])
    limit = HOST_KILL_STARTS * (1 + history.retried()) + free
    if starts > limit and not history.order.kind.startswith("together"):
        yield f"{starts} starts, where {limit} were allowed"


# --- what it said on the way ---------------------------------------------------------------------------------------------------


def _plain_stream(history: History) -> Iterator[str]:
    answers = [it for it in history.of("stream") if it.code == 200 and it.body.startswith(b"{")]
    seen: dict[tuple[str, int], int] = defaultdict(int)
    newest: dict[tuple[str, str], int] = {}
    for it in answers:
        for item in it.json["stream"]:
            chunk = item["output"]
            seen[chunk["start"], chunk["n"]] += 1
            if chunk["n"] <= newest.get((it.client, chunk["start"]), -1):
                yield f"{it.client} was handed chunk {chunk['n']} behind chunk {newest[it.client, chunk['start']]}"
            newest[it.client, chunk["start"]] = chunk["n"]
    for (_, number), times in seen.items():
        if times > 1:
            yield f"chunk {number} was handed out {times} times"
    starts = {start for start, _ in seen}
    if len(starts) > 1 + history.retried():
        yield f"chunks of {len(starts)} starts were handed out"
    body = history.final
    to_the_end = any(it.status in TERMINAL and not it.json["stream"] for it in answers)
    sure = not any(it.code == NO_ANSWER for it in history.of("stream"))
    if body and body["status"] == "COMPLETED" and body["retries"] == 0 and to_the_end and sure:
        wanted = set(range(history.order.given["count"]))
        if missing := wanted - {number for _, number in seen}:
            yield f"chunks {sorted(missing)} were handed out to nobody"


def _other_streams(history: History) -> Iterator[str]:
    body = history.final
    if body is None or body.get("retries") != 0:
        return
    output = body.get("output") if body["status"] == "COMPLETED" else None
    for it in history.of("after"):
        if it.code != 200 or not it.body.startswith(b"{"):
            continue
        first = int(it.path.partition("after=")[2].partition("&")[0])
        numbers = [item["output"]["n"] for item in it.json["stream"]]
        if numbers != list(range(first, first + len(numbers))):
            yield f"after={first} was answered with chunks {numbers}"
        if (
            output is not None
            and [item["output"] for item in it.json["stream"]] != output[first : first + len(numbers)]
        ):
            yield f"after={first} gave other chunks than the output has"
    for read in history.reads:
        if read.what == "chunks":
            yield from _events(read, body, output)


def _events(read: Events, body: dict[str, Any], output: list[Any] | None) -> Iterator[str]:
    if [number for number, _ in read.values] != list(range(len(read.values))):
        yield f"the events' ids were {[number for number, _ in read.values]}"
    if read.end is not None and read.end != body["status"]:
        yield f"the events ended with {read.end}"
    if output is not None and [chunk for _, chunk in read.values] != output[: len(read.values)]:
        yield "the events' chunks are not those of the output"
    if output is not None and read.end is not None and len(read.values) != len(output):
        yield f"the events ended after {len(read.values)} of {len(output)} chunks"


def _webhooks(history: History) -> Iterator[str]:
    if not history.order.hook:
        if history.posts:
            yield "a webhook was posted that nobody asked for"
        return
    by_id: dict[str, list[Post]] = defaultdict(list)
    for post in history.posts:
        by_id[post.webhook_id].append(post)
    for number, posts in by_id.items():
        if len({post.body for post in posts}) > 1:
            yield f"webhook {number} had several bodies"
        yield from _tries(number, sorted(posts, key=lambda post: post.at), history)
    ends = {end.retries: end.body for end in history.ends}
    for retries, body in ends.items():
        about = [posts for posts in by_id.values() if posts[0].body == body]
        which = f"of the end with retries {retries}"
        if len(about) != 1:
            bodies = [posts[0].body[:300] for posts in by_id.values()]
            yield f"{len(about)} webhooks told {which}; there were {bodies}"
        elif not any(post.answered == 200 for post in about[0]) and len(about[0]) < WEBHOOK_TRIES:
            yield f"the webhook {which} was given up after {len(about[0])} tries"


def _tries(number: str, posts: list[Post], history: History) -> Iterator[str]:
    """How often one webhook may come: a supervisor that died may not have known that it was taken."""
    deaths = [deed.at for deed in history.deeds if deed.what in ("SIGKILL", "SIGTERM")]
    taken = next((post.at for post in posts if post.answered == 200), None)
    if taken is not None:
        for post in posts:
            if post.at > taken and not any(taken - 1 < at < post.at for at in deaths):
                yield f"webhook {number} came again {post.at - taken:.1f} s after it was taken"
    near = [at for at in deaths if posts[0].at - 1 < at < posts[-1].at]
    if len(posts) > WEBHOOK_TRIES + len(near):
        yield f"webhook {number} came {len(posts)} times, with {len(near)} deaths of the supervisor"


def _log(history: History) -> Iterator[str]:
    body, given = history.final, history.order.given
    if body is None or body["status"] != "COMPLETED" or body["retries"] != 0:
        return
    for it in history.of("log"):
        if it.code != 200 or it.body.startswith(b"sha256:"):
            continue
        yield from _lines(given, it.body.decode().splitlines())
    for read in history.reads:
        if read.what == "log" and read.end is not None:
            yield from _lines(given, [line for _, piece in read.values for line in piece.split("\n")])


def _lines(given: dict[str, Any], lines: list[str]) -> Iterator[str]:
    own = [line for line in lines if line.startswith(f"{given['ticket']} line ")]
    if len(own) != given["lines"] or f"{given['ticket']} last line" not in lines:
        yield f"its log has {len(own)} of {given['lines']} lines, the last one {lines[-1:]}"
    if strange := [line for line in lines if not line.startswith(f"{given['ticket']} ")]:
        yield f"its log has lines of others: {strange[:3]}"
