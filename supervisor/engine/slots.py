"""What people do to slots: refresh, pause, resume, and reload of the handler. In the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from supervisor.engine.shared import Shared
from supervisor.engine.waiters import settle
from supervisor.errors import RequestError
from supervisor.pool.slots.rules import IllegalStepError


class _Asked(NamedTuple):
    """A step of ``slot`` that somebody waits for."""

    slot: str
    step: Callable[[str, float], None]
    refusal: str
    answer: asyncio.Future[None]


class SlotCommands:
    """Steps of slots by hand. Nothing of them is written, so they are done as a turn begins, before anything is decided."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pool = shared.pool
        self._asked: list[_Asked] = []
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
        for each in asked:
            settle(each.answer, None, self._step(each, now))
        if self._reload:
            self._reload = False
            self._pool.reload(now)

    def _step(self, asked: _Asked, now: float) -> RequestError | None:
        """Do it; why it cannot be done."""
        if asked.slot not in self._pool.slots:
            return self._unknown(asked.slot)
        try:
            asked.step(asked.slot, now)
        except IllegalStepError:
            state = self._pool.slots[asked.slot].state.value
            return RequestError(409, f"slot {asked.slot} is {state}: {asked.refusal}")
        return None

    def _unknown(self, slot: str) -> RequestError:
        return RequestError(404, f"no slot {slot[:80]!r}; there are: {', '.join(self._pool.slots)}")

    def refuse(self, error: RequestError) -> None:
        """Do nothing of what was asked for: the disk refuses, and nothing goes on. A reload comes when it does no more."""
        asked, self._asked = self._asked, []
        for each in asked:
            settle(each.answer, None, error)

    def _ask(self, slot: str, step: Callable[[str, float], None], refusal: str) -> asyncio.Future[None]:
        if slot not in self._pool.slots:
            raise self._unknown(slot)
        answer: asyncio.Future[None] = self._shared.loop.create_future()
        self._asked.append(_Asked(slot, step, refusal, answer))
        self._shared.turns.wake()
        return answer
