"""Undelivered webhooks in the store; read in the supervisor process. ``writes`` has their changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Webhook(msgspec.Struct, frozen=True):
    """An undelivered webhook: ``tries`` failed, the next is due at ``due_ms`` (milliseconds since 1970).

    ``receiver`` is its URL's scheme, host and port. ``size`` is the body's in bytes; ``Outbox.body`` reads the body itself, which
    may be large.
    """

    id: str
    job: str
    url: str
    receiver: str
    tries: int
    due_ms: int
    size: int


class Outbox:
    """Reads of committed webhooks; call them in the store's thread.

    Each receiver has its own order, so that a thousand webhooks for one that does not answer delay no other's.
    """

    def __init__(self, rows: Callable[..., list[tuple[Any, ...]]]) -> None:
        """Read by ``rows``, which runs a named query. Use ``Store.outbox`` instead."""
        self._rows = rows

    def receivers(self) -> list[tuple[str, int]]:
        """Return the receivers of waiting webhooks with the due time of their first, the earliest first."""
        found = [(str(name), int(due_ms)) for name, due_ms in self._rows("webhook_receivers")]
        return sorted(found, key=lambda entry: entry[1])

    def waiting(self, receiver: str, limit: int) -> list[Webhook]:
        """Return at most ``limit`` webhooks for ``receiver``, the earliest due first."""
        return [Webhook(*row) for row in self._rows("webhooks", receiver, limit)]

    def body(self, webhook_id: str) -> bytes | None:
        """Return the body to post; ``None`` if the webhook is not waiting any more."""
        rows = self._rows("webhook_body", webhook_id)
        return rows[0][0] if rows else None

    def count(self) -> int:
        """Count the waiting webhooks. Reads all of them, so do not call it every turn."""
        ((number,),) = self._rows("webhook_count")
        return int(number)


def receiver_of(url: str) -> str:
    """Return scheme, host and port of ``url``: the parts that may be shown. Path, query and credentials may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
