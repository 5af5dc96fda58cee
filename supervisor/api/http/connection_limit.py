"""How many clients may be connected, and who has to go when another comes; in the supervisor.

Every connection is a descriptor of this process, which needs some for its own pipes, files and webhooks: without them no worker
could be replaced. So some are kept back, and any number of clients that are idle or never finish a request keep nobody out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Protocol

MOST = 10_000
"""Most connections, however many descriptors there are."""

SHARE = 32
"""One of so many has to go at once: all are looked at for that, so it must not be done for each that comes."""


class Client(Protocol):
    """A connection, as far as it matters here."""

    def waits_since(self) -> float | None:
        """Since when (seconds of the loop's clock) the client is waited for; ``None``: it waits for an answer itself."""

    def drop(self) -> None:
        """Close it."""


class ConnectionLimiter:
    """Decides about each client that comes."""

    def __init__(self, most: int = MOST) -> None:
        self._most = min(most, MOST)
        self._going: set[Client] = set()  # still present for a moment

    def admit(self, new: Client, present: Collection[Client]) -> bool:
        """Whether ``new`` may stay; ``present`` are all, it among them. Those who have been waited for longest go for it."""
        if len(present) - len(self._going) <= self._most:
            return True
        waits = [
            (client.waits_since(), client) for client in present if client is not new and client not in self._going
        ]
        idle = [(since, id(client), client) for since, client in waits if since is not None]
        for _, _, client in heapq.nsmallest(max(1, len(present) // SHARE), idle):
            self._going.add(client)
            client.drop()
        return bool(idle)

    def left(self, client: Client) -> None:
        """``client`` is gone, for whatever reason."""
        self._going.discard(client)
