"""Clients that send jobs of every kind and do with each what clients do: poll, wait, stream, cancel, retry, hang up; threads."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.chaos.house import House
from tests.chaos.journal import NOT_SENT, TERMINAL, Journal, Order
from tests.chaos.kinds import Kind, secret
from tests.chaos.talk import Talk

FOLLOW_S = 20.0
"""How long a client cares for one job."""

DOWN_S = 0.2
"""How long a client waits when nobody listens."""

DAWDLERS = 40
SLOTS = ("gpu0", "gpu1", "gpu2", "gpu3")
LOOKS = ("/health", "/workers", "/gpus", "/stats", "/snapshot", "/requests?limit=20", "/metrics", "/openapi.json")


class Client:
    """One client of one house; its choices come from ``rng``."""

    def __init__(
        self, name: str, house: House, kinds: Sequence[Kind], rng: Random, hook: Callable[[str], str], journal: Journal
    ) -> None:
        """Send jobs of ``kinds`` from ``start`` to ``close``; ``hook`` gives the URL of a job's webhook."""
        self._name = name
        self._house = house
        self._kinds = kinds
        self._rng = rng
        self._hook = hook
        self._journal = journal
        self._over = threading.Event()
        self._numbers = itertools.count(1)
        self._talk = Talk(journal, name, house.port)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, pause: float) -> None:
        """Begin; pause for ``pause`` seconds on average between two jobs."""
        self._pause = pause
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._over.set()

    def join(self) -> None:
        self._thread.join()
        self._talk.close()

    def _run(self) -> None:
        while not self._over.is_set():
            kind = self._rng.choices(self._kinds, [kind.weight for kind in self._kinds])[0]
            order = self._order(kind)
            self._journal.order(order)
            how = self._rng.choice(kind.follow)
            job = self._submit(order, how)
            if job is not None:
                self._follow(order, job, how)
            self._ask_for_something_else()
            if self._rng.random() < 0.05:
                self._talk.close()
            self._over.wait(self._rng.expovariate(1 / self._pause))

    def _ask_for_something_else(self) -> None:
        """Now and then: what is not about one job."""
        fate = self._rng.random()
        if fate < 0.01:
            self._talk.ask("", "purge", "POST", "/purge-queue")
        elif fate < 0.03:
            slot = self._rng.choice(SLOTS)
            self._talk.ask("", "by hand", "POST", f"/workers/{slot}/refresh")
        elif fate < 0.04:
            self._dawdle()
        elif fate < 0.08:
            self._talk.ask("", "look", "GET", self._rng.choice(LOOKS))

    def _dawdle(self) -> None:
        """Open many connections, say half a request on each, and hang up later."""
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for _ in range(DAWDLERS):
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", self._house.port() or 1), 1))
                idle.sendall(b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            self._over.wait(1)

    def _order(self, kind: Kind) -> Order:
        ticket = f"{self._name}-{next(self._numbers)}"
        given, options = kind.make(self._rng)
        given = {"ticket": ticket, "do": kind.do, **given}
        if kind.do == "secret":
            options["s3Config"] = {"accessSecret": secret(ticket), "bucketName": "b"}
        hook = self._rng.random() < 0.3
        if hook:
            options["webhook"] = self._hook(ticket)
        name = f"own-{ticket}-{self._rng.getrandbits(32):08x}"
        own_id, key = self._rng.choice([(name, None), (None, name), (None, None)])
        return Order(ticket, self._house.name, kind.name, given, options, own_id, key, hook)

    # --- in

    def _submit(self, order: Order, how: str) -> str | None:
        """Send it, once more where that is safe; its id, or ``None`` when that is not known."""
        body: dict[str, Any] = {"input": order.given, **order.options}
        headers = {} if order.key is None else {"Idempotency-Key": order.key}
        if order.own_id is not None:
            body["id"] = order.own_id
        safe = order.own_id is not None or order.key is not None
        if how == "leave":
            self._talk.leave(order.ticket, "submit", "POST", "/runsync", body)
            return order.own_id
        path = "/runsync?wait=1000" if how == "runsync" else "/run"
        tries = 2 if how == "twice" and safe else 1
        job: str | None = None
        while not self._over.is_set():
            done, answer = self._talk.ask(order.ticket, "submit", "POST", path, body, headers)
            tries -= 1
            if done.code == 200:
                job = json.loads(answer)["id"]
                if tries <= 0:
                    return job
            elif done.code in (NOT_SENT, 503):
                self._over.wait(DOWN_S)
            elif not safe:
                return job  # it may run or not: sent again, it could run twice
        return job or order.own_id

    # --- and on

    def _follow(self, order: Order, job: str, how: str) -> None:
        until = time.monotonic() + FOLLOW_S
        if how == "stream":
            self._stream(order, job, self._talk, until)
        elif how == "readers":
            self._readers(order, job, until)
        elif how == "after":
            self._after(order, job, until)
        elif how == "events":
            self._events(order, "chunks", f"/stream/{job}", until)
        elif how == "follow":
            self._events(order, "log", f"/logs/{job}?follow=1", until)
        elif how == "cancel":
            self._over.wait(self._rng.choice([0, 0.05, 0.3]))
            self._talk.ask(order.ticket, "cancel", "POST", f"/cancel/{job}")
            self._poll(order, job, until)
        elif how not in ("forget", "leave"):
            ended = self._poll(order, job, until, sync=how in ("sync", "runsync"))
            if ended and how == "log":
                self._talk.ask(order.ticket, "log", "GET", f"/logs/{job}")
            if ended and how == "retry":
                self._talk.ask(order.ticket, "retry", "POST", f"/retry/{job}")
                self._poll(order, job, until)

    def _poll(self, order: Order, job: str, until: float, *, sync: bool = False) -> bool:
        """Ask until it has ended; whether that was seen."""
        while not self._over.is_set() and time.monotonic() < until:
            if sync:
                done, _ = self._talk.ask(order.ticket, "status", "GET", f"/status-sync/{job}?wait=1000")
            else:
                done, _ = self._talk.ask(order.ticket, "status", self._rng.choice(["GET", "POST"]), f"/status/{job}")
            if done.terminal:
                return True
            self._over.wait(DOWN_S if done.code != 200 else self._rng.choice([0.02, 0.2]))
        return False

    def _stream(self, order: Order, job: str, talk: Talk, until: float) -> None:
        """Read chunks as RunPod's client does, to the empty answer behind the end."""
        while not self._over.is_set() and time.monotonic() < until:
            wait = self._rng.choice([0, 100, 1000])
            done, answer = talk.ask(order.ticket, "stream", "GET", f"/stream/{job}?wait={wait}")
            if done.code == 200:
                if done.status in TERMINAL and not json.loads(answer)["stream"]:
                    return
            else:
                self._over.wait(DOWN_S)
            if self._rng.random() < 0.03:
                talk.leave(order.ticket, "stream", "GET", f"/stream/{job}?wait=200")

    def _readers(self, order: Order, job: str, until: float) -> None:
        """Two who share the chunks."""
        second = Talk(self._journal, f"{self._name}b", self._house.port)
        reader = threading.Thread(target=self._stream, args=(order, job, second, until))
        reader.start()
        self._stream(order, job, self._talk, until)
        reader.join()
        second.close()

    def _after(self, order: Order, job: str, until: float) -> None:
        """Read on from where the last answer ended."""
        at = 0
        while not self._over.is_set() and time.monotonic() < until:
            done, answer = self._talk.ask(order.ticket, "after", "GET", f"/stream/{job}?after={at}&wait=500")
            if done.code != 200:
                self._over.wait(DOWN_S)
                continue
            chunks = json.loads(answer)["stream"]
            at += len(chunks)
            if done.status in TERMINAL and not chunks:
                return

    def _events(self, order: Order, what: str, path: str, until: float) -> None:
        """Read server-sent events, and on from the last one when they break off."""
        last: int | None = None
        got: list[tuple[int, Any]] = []
        while not self._over.is_set() and time.monotonic() < until:
            for name, number, data in self._talk.events(order.ticket, path, last, self._after_a_while()):
                if name == "end":
                    self._journal.events(order.ticket, what, got, json.loads(data)["status"])
                    return
                got.append((number, json.loads(data)["output"] if what == "chunks" else data))
                last = number
            self._over.wait(0.05)
        self._journal.events(order.ticket, what, got, None)

    def _after_a_while(self) -> Callable[[], bool]:
        """Whether it is time to hang up."""
        at = time.monotonic() + self._rng.choice([0.1, 0.5, 60, 60])
        return lambda: self._over.is_set() or time.monotonic() > at


def crowd(
    count: int,
    house: House,
    kinds: Sequence[Kind],
    seed: int,
    hook: Callable[[str], str],
    journal: Journal,
) -> list[Client]:
    """``count`` clients of ``house``, each with a generator of its own that ``seed`` begins."""
    names = [f"{house.name}{number}" for number in range(count)]
    return [Client(name, house, kinds, Random(f"{seed}/{name}"), hook, journal) for name in names]
