"""The webhooks that wait in the store, as they are on disk; read in the supervisor process. ``writes`` has what changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Webhook(msgspec.Struct, frozen=True):
    """A webhook that waits: ``tries`` were in vain, the next is due at ``due_ms`` (milliseconds since 1970).

    ``receiver`` is who is to get it, ``size`` how many bytes; they are read by ``Outbox.body``, since they may be many.
    """

    id: str
    job: str
    url: str
    receiver: str
    tries: int
    due_ms: int
    size: int


class Outbox:
    """Reads show what is committed; they are called from the store's thread.

    The order is kept for each receiver by itself, so that a thousand webhooks for one that does not answer hide no other's.
    """

    def __init__(self, rows: Callable[..., list[tuple[Any, ...]]]) -> None:
        """``rows`` runs the query of a name; ``Store.outbox`` is the one to use."""
        self._rows = rows

    def receivers(self) -> list[tuple[str, int]]:
        """Who has webhooks to get, and when the first of each is due; who is due first comes first."""
        found = [(str(name), int(due_ms)) for name, due_ms in self._rows("webhook_receivers")]
        return sorted(found, key=lambda entry: entry[1])

    def waiting(self, receiver: str, limit: int) -> list[Webhook]:
        """At most ``limit`` webhooks for ``receiver``, those due first before the others."""
        return [Webhook(*row) for row in self._rows("webhooks", receiver, limit)]

    def body(self, webhook_id: str) -> bytes | None:
        """What is to be posted; ``None``: it does not wait any more."""
        rows = self._rows("webhook_body", webhook_id)
        return rows[0][0] if rows else None

    def count(self) -> int:
        """How many wait; reads all of them, so not for every turn."""
        ((number,),) = self._rows("webhook_count")
        return int(number)


def receiver_of(url: str) -> str:
    """Scheme, host and port of ``url``: all of it that may be shown, since a path or a query may hold a secret and credentials
    do."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
