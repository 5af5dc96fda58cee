"""Results of the slots' first loads: the first ready worker makes the program ready. In the supervisor."""

from __future__ import annotations

import asyncio

from supervisor.pool import events
from supervisor.pool.interfaces import Pool


class FirstLoads:
    """First loads by slot. ``first`` is the first that succeeded, or the worst one if all slots failed."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self.first: asyncio.Future[events.FirstLoad] = loop.create_future()
        self._failed: dict[str, events.FirstLoad] = {}

    @property
    def ok(self) -> bool:
        """True once a worker has been ready."""
        return self.first.done() and self.first.result().ok

    def record(self, event: events.FirstLoad) -> None:
        """Record the result of a slot's first start."""
        if self.first.done():
            return
        if event.ok:
            self.first.set_result(event)
            return
        self._failed[event.slot] = event
        started = {name for name, slot in self._pool.slots.items() if slot.generation and not slot.pausing}
        if self._failed.keys() >= started:
            died = [load for load in self._failed.values() if load.failed is None]
            self.first.set_result(died[0] if died else event)
