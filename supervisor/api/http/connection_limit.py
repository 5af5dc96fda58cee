"""Limits how many clients are connected, by closing idle connections when new ones come; in the supervisor.

Every connection takes a descriptor of this process, which needs some for its own pipes, files and webhooks: without them no
worker could be replaced. So some are reserved, and no number of idle clients, or ones that never finish a request, locks out
others.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Protocol

MOST = 10_000
"""Maximum number of connections, however many descriptors there are."""

SHARE = 32
"""One in so many is closed at once: choosing them looks at all, so it must not happen for each new connection."""


class ClientConnection(Protocol):
    """The part of a connection that the limiter uses."""

    def idle_since(self) -> float | None:
        """Return since when (seconds of the loop's clock) it waits for the client; None while the client waits for a response."""

    def drop(self) -> None:
        """Close it."""


class ConnectionLimiter:
    """Admits or rejects each new connection."""

    def __init__(self, most: int = MOST) -> None:
        self._most = min(most, MOST)
        self._closing: set[ClientConnection] = set()  # still present for a moment

    def admit(self, new: ClientConnection, present: Collection[ClientConnection]) -> bool:
        """Return whether ``new`` may stay, after closing the connections idle longest if there are too many.

        ``present`` are all connections, ``new`` included.
        """
        if len(present) - len(self._closing) <= self._most:
            return True
        waits = [
            (client.idle_since(), client) for client in present if client is not new and client not in self._closing
        ]
        idle = [(since, id(client), client) for since, client in waits if since is not None]
        for _, _, client in heapq.nsmallest(max(1, len(present) // SHARE), idle):
            self._closing.add(client)
            client.drop()
        return bool(idle)

    def left(self, client: ClientConnection) -> None:
        """Note that ``client`` is closed, for whatever reason."""
        self._closing.discard(client)
