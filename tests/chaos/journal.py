"""All that was sent, answered, posted and done to the program in a run; in the chaos program's own process, from many threads."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import Any, NamedTuple

WHOLE_BYTES = 16_384
"""Up to which length a body is kept; of a longer one its digest."""

NO_ANSWER = 0
"""The code of an exchange whose answer did not come, or not whole: the request may have been carried out."""

NOT_SENT = -1
"""The code of one whose connection was refused."""

TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class Order(NamedTuple):
    """A job that a client wants. ``own_id``: the id that it chose. ``key``: its ``Idempotency-Key``; the id follows from that.

    ``hook``: it asked for a webhook.
    """

    ticket: str
    house: str
    kind: str
    given: dict[str, Any]
    options: dict[str, Any]
    own_id: str | None = None
    key: str | None = None
    hook: bool = False


class Exchange(NamedTuple):
    """A request and its answer, on the monotonic clock. ``status``, ``retries`` and ``job`` (its id) are those of the body."""

    ticket: str
    client: str
    op: str
    path: str
    sent: float
    received: float
    code: int
    body: bytes
    status: str | None = None
    retries: int | None = None
    job: str | None = None
    note: str = ""

    @property
    def terminal(self) -> bool:
        """Whether it says in full how the job ended."""
        return self.code == 200 and self.retries is not None and self.status in TERMINAL

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Deed(NamedTuple):
    """Something done to a house, or that happened to it."""

    at: float
    house: str
    what: str
    detail: str = ""
    pid: int = 0


class Post(NamedTuple):
    """A webhook as the receiver got it, and what it answered (0: it hung up)."""

    ticket: str
    at: float
    webhook_id: str
    body: bytes
    answered: int


class Events(NamedTuple):
    """What one client got as server-sent events over all its connections: id and value of each, and the state at the end.

    ``what`` is ``chunks``, whose outputs are the values, or ``log``, where they are pieces of it.
    """

    ticket: str
    what: str
    at: float
    values: tuple[tuple[int, Any], ...]
    end: str | None


class Journal:
    """What happened. Methods may be called from any thread; the lists are read when all is over."""

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}
        self.exchanges: list[Exchange] = []
        self.deeds: list[Deed] = []
        self.posts: list[Post] = []
        self.read: list[Events] = []
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def order(self, order: Order) -> None:
        self.orders[order.ticket] = order

    def deed(self, house: str, what: str, detail: str = "", pid: int = 0) -> None:
        self.deeds.append(Deed(time.monotonic(), house, what, detail, pid))

    def events(self, ticket: str, what: str, values: list[tuple[int, Any]], end: str | None) -> None:
        self.read.append(Events(ticket, what, time.monotonic(), tuple(values), end))

    def fault(self, text: str) -> None:
        """Something is wrong that belongs to no job."""
        with self._lock:
            self.faults.append(text)


def exchange(
    ticket: str, client: str, op: str, path: str, sent: float, code: int, body: bytes, note: str = ""
) -> Exchange:
    """An exchange that ends now."""
    received = time.monotonic()
    facts: dict[str, Any] = {}
    if body.startswith(b"{"):
        try:
            facts = json.loads(body)
        except ValueError:
            note = note or "not JSON"
    said = (facts.get("status"), facts.get("retries"), facts.get("id"))
    return Exchange(ticket, client, op, path, sent, received, code, short(body), *said, note)


def short(body: bytes) -> bytes:
    """``body``, or what tells it from every other."""
    if len(body) <= WHOLE_BYTES:
        return body
    return b"sha256:%b of %d bytes" % (hashlib.sha256(body).hexdigest().encode(), len(body))
