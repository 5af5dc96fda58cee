"""How the first loads of the slots go: the first worker in service opens the doors. In the supervisor."""

from __future__ import annotations

import asyncio

from supervisor.pool import events
from supervisor.pool.interfaces import Pool


class FirstLoads:
    """``first`` is the load of the first worker in service, or the worst of those that failed on every slot."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self.first: asyncio.Future[events.FirstLoad] = loop.create_future()
        self._failed: dict[str, events.FirstLoad] = {}

    @property
    def ok(self) -> bool:
        """Whether some worker has been ready."""
        return self.first.done() and self.first.result().ok

    def loaded(self, event: events.FirstLoad) -> None:
        """A slot's first start has ended as ``event`` says."""
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
