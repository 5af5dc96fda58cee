"""Waiting for a condition to hold; in the supervisor's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Condition:
    """Lets one coroutine wait for something that others bring about. ``monotonic`` is the clock of its time-outs, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        self._loop = loop
        self._monotonic = monotonic
        self._changed: asyncio.Future[None] = loop.create_future()

    def notify(self) -> None:
        """Have the condition checked again, if anything waits for it."""
        if not self._changed.done():
            self._changed.set_result(None)

    async def until(self, reached: Callable[[], bool], timeout: float, at_once: asyncio.Event) -> None:
        """Wait until ``reached()`` is true after a ``notify``, ``at_once`` is set, or ``timeout`` seconds have passed."""
        deadline = self._monotonic() + timeout
        hurry = asyncio.ensure_future(at_once.wait())
        try:
            while not reached() and not at_once.is_set() and (left := deadline - self._monotonic()) > 0:
                self._changed = self._loop.create_future()
                waits: set[asyncio.Future[Any]] = {self._changed, hurry}
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
