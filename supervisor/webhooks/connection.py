"""The connection of one try at a webhook: opened in the try's thread, cut by the loop after its timeout; in the supervisor."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from supervisor.webhooks.addresses import is_public

MARGIN_S = 1.0
"""How much later than the loop's timeout the connection's own is."""

_RESET = struct.pack("ii", 1, 0)
"""Makes closing reset the connection: else a receiver that fills it would wait a minute to learn that it is unread."""

Resolve = Callable[..., list[tuple[Any, ...]]]
"""As ``socket.getaddrinfo``."""


class PrivateAddressError(OSError):
    """``--webhook-deny-private`` forbids every address of the host."""


class WebhookConnection:
    """State that a try's thread and the loop share. ``status`` is the response's, once its headers have arrived."""

    def __init__(self, timeout: float, *, deny_private: bool, resolve: Resolve = socket.getaddrinfo) -> None:
        """Allow the try ``timeout`` seconds from now; with ``deny_private``, connect to public addresses only."""
        self.status: int | None = None
        self.deny_private = deny_private
        self._until = time.monotonic() + timeout
        self._resolve = resolve
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self._is_cut = False

    @property
    def left(self) -> float:
        """Seconds one step may take: ``MARGIN_S`` more than are left, so that the loop ends the try and reports it."""
        return max(0.0, self._until - time.monotonic()) + MARGIN_S

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of ``host`` that accepts; each gets its share of the time.

        The name is resolved once, so that the checked address is the one connected to.

        Raises:
            OSError: none accepts; ``PrivateAddressError`` if none is allowed.
        """
        found = self._resolve(host, port, type=socket.SOCK_STREAM)
        allowed = [entry for entry in found if not self.deny_private or is_public(entry[4][0])]
        if found and not allowed:
            raise PrivateAddressError(f"{found[0][4][0]} is not a public address (--webhook-deny-private)")
        failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for position, (family, kind, protocol, _, address) in enumerate(allowed):
            sock = socket.socket(family, kind, protocol)
            try:
                self._hold(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.left / (len(allowed) - position))
                sock.connect(address)
                sock.settimeout(self.left)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure

    def _hold(self, sock: socket.socket) -> None:
        """Keep a second descriptor of ``sock``: TLS moves the first one into another object."""
        with self._lock:
            if self._is_cut:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._release()
            self._held = sock.dup()

    def cut(self) -> None:
        """Shut the connection down for good; this wakes threads that wait on it, and the receiver."""
        with self._lock:
            self._is_cut = True
            if self._held is not None:
                with contextlib.suppress(OSError):  # it is not connected, or not any more
                    self._held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    self._held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the connection, once the thread has finished."""
        with self._lock:
            self._is_cut = True
            self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
