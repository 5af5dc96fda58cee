"""Manual slot commands: refresh, pause, resume, and reload of the handler. In the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from supervisor.engine.shared import Shared
from supervisor.engine.waiters import settle
from supervisor.errors import RequestError
from supervisor.pool.slots.rules import IllegalStepError

_Step = Callable[[str, float], None]


class SlotCommands:
    """Manual steps of slots. They write nothing, so they run as a turn begins, before its decisions."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pool = shared.pool
        self._requests: list[tuple[asyncio.Future[None], Callable[[float], RequestError | None]]] = []
        self._reload = False

    def refresh(self, slot: str) -> asyncio.Future[None]:
        """Replace the worker in ``slot`` after its running jobs; the future is done once that has begun.

        Raises:
            RequestError: 404 for an unknown slot; by the future, 409 when it has no worker to replace now, and 503 when the
                store cannot be written.
        """
        return self._request(slot, self._pool.refresh, "it has no worker to refresh now")

    def pause(self, slot: str) -> asyncio.Future[None]:
        """Take ``slot`` out of service after its worker's running jobs, and free its GPU. Raises as ``refresh`` does."""
        return self._request(slot, self._pool.pause, "it cannot be paused now")

    def resume(self, slot: str) -> asyncio.Future[None]:
        """Put a paused ``slot`` back into service. Raises as ``refresh`` does."""
        return self._request(slot, self._pool.resume, "it is not paused")

    def reload(self) -> None:
        """Replace every worker after its running jobs, so that each loads the handler again."""
        self._reload = True
        self._shared.turns.wake()

    def run(self, now: float) -> None:
        """Carry out the requests since the last turn; ``now`` in monotonic seconds."""
        requests, self._requests = self._requests, []
        for answer, step in requests:
            settle(answer, None, step(now))
        if self._reload:
            self._reload = False
            self._pool.reload(now)

    def _step(self, slot: str, step: _Step, refusal: str, now: float) -> RequestError | None:
        """Do ``step``; return why it cannot be done, if so: ``slot`` may have been removed since the request."""
        if slot not in self._pool.slots:
            return self._unknown(slot)
        try:
            step(slot, now)
        except IllegalStepError:
            return RequestError(409, f"slot {slot} is {self._pool.slots[slot].state.value}: {refusal}")
        return None

    def _unknown(self, slot: str) -> RequestError:
        return RequestError(404, f"no slot {slot[:80]!r}; there are: {', '.join(self._pool.slots)}")

    def reject(self, error: RequestError) -> None:
        """Reject all pending requests: the store cannot be written. A reload stays pending until it can."""
        requests, self._requests = self._requests, []
        for answer, _ in requests:
            settle(answer, None, error)

    def _request(self, slot: str, step: _Step, refusal: str) -> asyncio.Future[None]:
        if slot not in self._pool.slots:
            raise self._unknown(slot)
        answer: asyncio.Future[None] = self._shared.loop.create_future()
        self._requests.append((answer, partial(self._step, slot, step, refusal)))
        self._shared.turns.wake()
        return answer
