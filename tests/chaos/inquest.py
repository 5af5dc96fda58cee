"""After the storm: waits for the end of all jobs and asks what there is to know; in the chaos program's main thread."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.checker import History
from tests.chaos.house import House
from tests.chaos.journal import Deed, Journal
from tests.chaos.kinds import KINDS
from tests.chaos.talk import Talk

CALM_S = 60.0
"""How long all accepted jobs may take to end once nobody does harm any more; lost GPUs come back meanwhile."""

QUIET_S = 3.0
"""After how long without a webhook there is none to come."""


def hold(houses: Sequence[House], journal: Journal, starts: Path) -> list[History]:
    """Wait until every job has ended, then ask for all there is to know; the history of each job.

    ``starts`` is the folder in which handlers note each start.
    """
    for house in houses:
        talk = Talk(journal, "checker", house.port)
        until = time.monotonic() + CALM_S
        while (busy := _busy(talk)) != 0:
            if time.monotonic() > until:
                workers = talk.ask("", "look", "GET", "/workers")[1]
                journal.fault(f"{house.name}: {busy} jobs do not end; {workers!r}")
                break
            time.sleep(0.1)
    _await_webhooks(journal)
    ids = _ids(journal)
    bodies: dict[str, dict[str, Any]] = {}
    for house in houses:
        talk = Talk(journal, "checker", house.port)
        for ticket, job in ids.items():
            if journal.orders[ticket].house == house.name:
                done, answer = talk.ask(ticket, "final", "GET", f"/status/{job}")
                if done.code == 200:
                    bodies[ticket] = json.loads(answer)
        journal.faults += _census(journal, house, talk, ids)
        talk.close()
    return _histories(journal, starts, bodies)


def _busy(talk: Talk) -> int | None:
    done, answer = talk.ask("", "look", "GET", "/health")
    if done.code != 200:
        return None
    jobs = json.loads(answer)["jobs"]
    return int(jobs["inQueue"]) + int(jobs["inProgress"])


def _await_webhooks(journal: Journal) -> None:
    """Until none has come for much longer than one is put off for."""
    began = time.monotonic()
    while (now := time.monotonic()) < began + CALM_S:
        last = max((post.at for post in journal.posts), default=0.0)
        if now - max(last, began) > QUIET_S:
            return
        time.sleep(0.2)


def _ids(journal: Journal) -> dict[str, str]:
    """The id of each job, as far as it is known, by its ticket."""
    ids = {ticket: order.own_id for ticket, order in journal.orders.items() if order.own_id is not None}
    for it in journal.exchanges:
        if it.op == "submit" and it.job is not None:
            ids.setdefault(it.ticket, it.job)
    return ids


def _census(journal: Journal, house: House, talk: Talk, ids: dict[str, str]) -> Iterator[str]:
    """Whether the store has the jobs that were accepted and no others, and counts them right."""
    pages = list(_pages(talk))
    listed = {job["id"]: job for job in pages}
    if len(listed) < len(pages):
        yield f"{house.name}: /requests lists a job twice"
    own = {ticket: job for ticket, job in ids.items() if journal.orders[ticket].house == house.name}
    accepted = {it.ticket for it in journal.exchanges if it.op == "submit" and it.code == 200}
    for ticket, job in own.items():
        if ticket in accepted and job not in listed:
            yield f"{house.name}: {job} was accepted, and /requests does not list it"
    nameless = [order for order in journal.orders.values() if order.house == house.name and order.ticket not in ids]
    if len(strange := set(listed) - set(own.values())) > len(nameless):
        some = sorted(strange)[:5]
        yield f"{house.name}: {len(strange)} jobs that nobody sent, where {len(nameless)} had no answer: {some}"
    states = Counter(job["status"] for job in listed.values())
    counted = json.loads(talk.ask("", "look", "GET", "/health")[1])["jobs"]
    expected = {
        "completed": states["COMPLETED"],
        "failed": states["FAILED"] + states["TIMED_OUT"],
        "inProgress": states["IN_PROGRESS"],
        "inQueue": states["IN_QUEUE"],
        "retried": sum(job["retries"] for job in listed.values()),
    }
    if counted != expected:
        yield f"{house.name}: /health counts {counted}, and there are {expected}"


def _pages(talk: Talk) -> Iterator[dict[str, Any]]:
    """Every job that the store has."""
    after: str | None = ""
    while after is not None:
        page = json.loads(talk.ask("", "look", "GET", f"/requests?limit=1000&after={after}")[1])
        yield from page["requests"]
        after = page["next"]


def _histories(journal: Journal, folder: Path, bodies: dict[str, dict[str, Any]]) -> list[History]:
    exchanges, posts, reads = defaultdict(list), defaultdict(list), defaultdict(list)
    for it in sorted(journal.exchanges, key=lambda it: it.received):
        exchanges[it.ticket].append(it)
        if it.op == "purge" and (it.code in (0, 200) or b"were cancelled before" in it.body):
            journal.deeds.append(Deed(it.received, it.client.rstrip("0123456789"), "purge"))
    for ticket, order in journal.orders.items():
        if KINDS[order.kind].do == "crash":
            journal.deeds += [Deed(at, order.house, "crash", ticket, pid) for at, pid in _starts(folder / ticket)]
    for post in journal.posts:
        posts[post.ticket].append(post)
    for read in journal.read:
        reads[read.ticket].append(read)
    houses = {order.house for order in journal.orders.values()}
    deeds = {house: [deed for deed in journal.deeds if deed.house in ("", house)] for house in houses}
    return [
        History(
            order,
            exchanges[ticket],
            bodies.get(ticket),
            [at for at, _ in _starts(folder / ticket)],
            posts[ticket],
            reads[ticket],
            deeds[order.house],
        )
        for ticket, order in journal.orders.items()
    ]


def _starts(path: Path) -> list[tuple[float, int]]:
    """When a job was started, and in which process."""
    with contextlib.suppress(FileNotFoundError):
        return [(float(at), int(pid)) for _, pid, at in map(str.split, path.read_text().splitlines())]
    return []
