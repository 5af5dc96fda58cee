"""What a run prints: the counts, what is wrong, and the whole history of each job that it is wrong with; in the chaos program."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tests.chaos.checker import History
from tests.chaos.journal import NO_ANSWER, NOT_SENT, Deed, Journal

SIGNALLED = ("worker", "template", "supervisor", "NVML reader")
"""Who gets signals while it lives; a deed's detail says which."""

NEAR_S = 2.0
"""How long before and after a job what was done to its house is shown with it."""


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Names and numbers, one a line."""
    return "\n".join(f"  {name:<44} {value!s:>12}" for name, value in rows)


def counts(journal: Journal, histories: Sequence[History]) -> list[tuple[str, object]]:
    """What was done and what came of it."""
    accepted = [it for it in histories if it.accepted]
    ends = Counter(it.final["status"] if it.final else "never accepted" for it in histories)
    exchanges = journal.exchanges
    shown = [deed for deed in journal.deeds if deed.what not in ("started", "ended", "crash")]
    deeds = Counter(_name(deed) for deed in shown)
    chunks = sum(len(read.values) for read in journal.read if read.what == "chunks")
    rows: list[tuple[str, object]] = [
        ("jobs that clients wanted", len(histories)),
        ("  accepted", len(accepted)),
        *((f"  {status}", number) for status, number in sorted(ends.items())),
        ("  starts", sum(len(it.starts) for it in histories)),
        ("  retries", sum(it.final["retries"] for it in histories if it.final)),
        ("requests", len(exchanges)),
        ("  without an answer", sum(it.code == NO_ANSWER for it in exchanges)),
        ("  not connected", sum(it.code == NOT_SENT for it in exchanges)),
        ("  refused (503)", sum(it.code == 503 for it in exchanges)),
        ("  slowest answer but those that may wait, s", f"{slowest(journal):.2f}"),
        ("chunks read as events", chunks),
        ("webhooks posted", len(journal.posts)),
        ("  acknowledged", sum(post.answered == 200 for post in journal.posts)),
        *((f"done: {what}", number) for what, number in sorted(deeds.items())),
    ]
    return rows


def _name(deed: Deed) -> str:
    if deed.what.startswith("SIG"):
        return f"supervisor {deed.what}, started again"
    return f"{deed.what} {deed.detail}" if deed.what in SIGNALLED else deed.what


def slowest(journal: Journal) -> float:
    """The longest that an answer took which nothing holds back."""
    plain = [
        it for it in journal.exchanges if it.op in ("status", "look", "cancel", "retry") and "wait=" not in it.path
    ]
    return max((it.received - it.sent for it in plain if it.code == 200), default=0.0)


def causes(histories: Sequence[History]) -> Counter[str]:
    """The errors that jobs ended with, numbers left out."""
    found: Counter[str] = Counter()
    for history in histories:
        if history.final and (error := history.final.get("error")):
            found[
                re.sub(r"[0-9a-f]{6,}|\d+", "N", error.replace(history.order.ticket, "TICKET"))[:110].splitlines()[0]
            ] += 1
    return found


def story(history: History, began: float) -> str:
    """Everything that was heard of a job and done to its house meanwhile, in order; seconds since ``began``."""
    order = history.order
    lines: list[tuple[float, str]] = []
    for it in history.exchanges:
        lines.append((it.sent, f"{it.client} sends {it.op} {it.path}"))
        lines.append(
            (it.received, f"{it.client} gets  {it.op} {it.code} {it.note} {it.body[:400].decode('utf-8', 'replace')}")
        )
    lines += [(at, "the handler starts") for at in history.starts]
    lines += [
        (post.at, f"webhook {post.webhook_id}, answered {post.answered}: {post.body[:300]!r}") for post in history.posts
    ]
    lines += [(read.at, f"events of {read.what} up to here: {len(read.values)}, {read.end}") for read in history.reads]
    if lines:
        first, last = min(lines)[0] - NEAR_S, max(lines)[0] + NEAR_S
        lines += [
            (deed.at, f"** {deed.what} {deed.detail} {deed.pid or ''}")
            for deed in history.deeds
            if first < deed.at < last
        ]
    shown = "\n".join(f"    {at - began:9.3f} {text}" for at, text in sorted(lines))
    return (
        f"  job {order.ticket}: {order.kind}, id {order.own_id}, key {order.key}, {order.given}"[:600]
        + f" {order.options}\n{shown}"
    )
