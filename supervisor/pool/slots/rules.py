"""The settings of the slot machine, and its error for an illegal step. Used by the supervisor."""

from __future__ import annotations

import msgspec

from supervisor.config.settings import Settings
from supervisor.errors import SuperviseError
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.pool.slots.steps import Event


class Rules(msgspec.Struct, frozen=True):
    """The settings that steps depend on, in seconds and MiB; 0 disables ``start_timeout``, ``refresh_after_jobs`` and
    ``refresh_above``."""

    grace: float = 5.0
    start_timeout: float = 0.0
    refresh_worker: bool = False
    refresh_after_jobs: int = 0
    refresh_above: int = 0
    refresh_on_oom: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Return the rules of a supervisor with ``settings``."""
        return msgspec.convert(settings, cls, from_attributes=True)


class IllegalStepError(SuperviseError):
    """The event cannot happen in the slot's state: a bug, or a worker that breaks the protocol."""


def expect(slot: Slot, event: Event, *states: SlotState) -> None:
    """Raise ``IllegalStepError`` unless ``slot`` is in one of ``states``."""
    if slot.state not in states:
        raise illegal(slot, event)


def illegal(slot: Slot, event: Event) -> IllegalStepError:
    """Return the error for an ``event`` that cannot happen now."""
    return IllegalStepError(f"slot {slot.name} is {slot.state.value}: {type(event).__name__} cannot happen ({event})")
