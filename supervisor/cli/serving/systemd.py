"""Notifies systemd (sd_notify(3)): ready, reloading, stopping, and watchdog pings; in the supervisor's process.

Without ``NOTIFY_SOCKET`` nothing is sent. Workers do not get that variable: only this process may notify.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Service:
    """sd_notify client."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` from ``environ``, by default this process's."""
        environ = os.environ if environ is None else environ
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        patience = environ.get("WATCHDOG_USEC", "")
        self._period = int(patience) / 2e6 if for_us and patience.isdigit() and self._address else 0.0

    def notify(self, *assignments: str) -> None:
        """Send ``NAME=value`` pairs without blocking; errors are ignored, so that the manager cannot hold up the service."""
        if self._address is None:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), self._address)

    def ready(self, status: str, loop: asyncio.AbstractEventLoop) -> None:
        """Report that the service is ready; from now on ping the watchdog from ``loop``, twice per watchdog period."""
        self.notify("READY=1", f"STATUS={status}")
        if self._period:
            self._watch(loop)

    def reloading(self) -> None:
        """Report that the service reloads; ``READY=1`` must follow."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Report that the service stops."""
        self.notify("STOPPING=1", f"STATUS={status}")

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.notify("WATCHDOG=1")
        loop.call_later(self._period, self._watch, loop)
