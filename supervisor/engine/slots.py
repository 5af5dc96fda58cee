"""What people do to slots: refresh, pause, resume, and reload of the handler. In the supervisor."""

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
    """Steps of slots by hand. Nothing of them is written, so they are done as a turn begins, before anything is decided."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pool = shared.pool
        self._asked: list[tuple[asyncio.Future[None], Callable[[float], RequestError | None]]] = []
        self._reload = False

    def refresh(self, slot: str) -> asyncio.Future[None]:
        """Replace the worker in ``slot``, after the jobs that it runs; done once that has begun.

        Raises:
            RequestError: 404 for an unknown slot; by the future, 409 when it has no worker to replace now, and 503 when the
                disk refuses.
        """
        return self._ask(slot, self._pool.refresh, "it has no worker to refresh now")

    def pause(self, slot: str) -> asyncio.Future[None]:
        """Take ``slot`` out of service, after the jobs that its worker runs, and free its GPU. Raises as ``refresh`` does."""
        return self._ask(slot, self._pool.pause, "it cannot be paused now")

    def resume(self, slot: str) -> asyncio.Future[None]:
        """Put a paused ``slot`` back into service. Raises as ``refresh`` does."""
        return self._ask(slot, self._pool.resume, "it is not paused")

    def reload(self) -> None:
        """Replace every worker after the jobs that it runs, so that each loads the handler anew."""
        self._reload = True
        self._shared.turns.wake()

    def run(self, now: float) -> None:
        """Do what was asked for since the last turn; ``now`` in monotonic seconds."""
        asked, self._asked = self._asked, []
        for answer, step in asked:
            settle(answer, None, step(now))
        if self._reload:
            self._reload = False
            self._pool.reload(now)

    def _step(self, slot: str, step: _Step, refusal: str, now: float) -> RequestError | None:
        """Do ``step``; why it cannot be done: ``slot`` may have gone since."""
        if slot not in self._pool.slots:
            return self._unknown(slot)
        try:
            step(slot, now)
        except IllegalStepError:
            return RequestError(409, f"slot {slot} is {self._pool.slots[slot].state.value}: {refusal}")
        return None

    def _unknown(self, slot: str) -> RequestError:
        return RequestError(404, f"no slot {slot[:80]!r}; there are: {', '.join(self._pool.slots)}")

    def refuse(self, error: RequestError) -> None:
        """Do nothing of what was asked for: the disk refuses, and nothing goes on. A reload comes when it does no more."""
        asked, self._asked = self._asked, []
        for answer, _ in asked:
            settle(answer, None, error)

    def _ask(self, slot: str, step: _Step, refusal: str) -> asyncio.Future[None]:
        if slot not in self._pool.slots:
            raise self._unknown(slot)
        answer: asyncio.Future[None] = self._shared.loop.create_future()
        self._asked.append((answer, partial(self._step, slot, step, refusal)))
        self._shared.turns.wake()
        return answer
