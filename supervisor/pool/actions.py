"""Performs the slots' actions: forks, messages, signals, readings of GPU memory. In the supervisor."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.cause import ForkRefused
from supervisor.pool.interfaces import Memory, Place
from supervisor.pool.pipes.pipes import Launch, Links
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import Slot, SlotState
from supervisor.pool.template.client import TemplateClient
from supervisor.wire import messages as wire


class Actions:
    """Performs actions for slots. ``by_uuid``: pin workers by UUID, because GPU indices may have shifted."""

    def __init__(
        self,
        places: Mapping[str, Place],
        template: TemplateClient,
        links: Links,
        memory: Memory | None,
        launch: Launch,
    ) -> None:
        """Start workers for ``places`` by ``launch``, once ``template`` is ready; ``links`` holds the connections to them."""
        self.by_uuid = False
        self._places = places
        self._template = template
        self._links = links
        self._memory = memory
        self._launch = launch
        self._waiting: dict[str, steps.ForkWorker] = {}

    def perform(self, slot: Slot, action: steps.Action, now: float) -> steps.Event | None:
        """Perform ``action`` at ``now`` (monotonic seconds); return the event that follows at once, or None."""
        name, link = slot.name, self._links.get(slot.name)
        if isinstance(action, steps.ForkWorker):
            return self._fork(slot, action)
        if isinstance(action, steps.WatchRelease):
            return self._release(slot, now)
        if self._waiting.pop(name, None) is not None:
            return steps.Unforked()
        if link is None:
            return None
        if isinstance(action, steps.Send):
            self._links.send(link, action.message)
        elif isinstance(action, steps.KillTree):
            self._template.send(wire.EndTree(name, link.generation))
        elif isinstance(action, steps.SendSignal):
            self._template.send(wire.Signal(name, link.generation, action.signum))
        elif isinstance(action, steps.Measure) and self._memory is not None and not slot.running:
            self._memory.measure(self._places[name], now)
        return None

    def take_waiting(self) -> list[tuple[str, steps.ForkWorker]]:
        """Return the forks that waited for a template, by slot, and clear them."""
        waiting, self._waiting = self._waiting, {}
        return list(waiting.items())

    def _fork(self, slot: Slot, action: steps.ForkWorker) -> steps.Event | None:
        if slot.state is SlotState.ENDING:
            return steps.Unforked()
        if slot.state is not SlotState.STARTING:
            return None
        if not self._template.ready:
            self._waiting[slot.name] = action
            return None
        place = self._places[slot.name]
        if self._memory is not None and slot.has_gpu:
            self._memory.before_fork(place)
        pinned = place.env_by_uuid if self.by_uuid and place.env_by_uuid is not None else place.env
        env = {**pinned, "SUPERVISE_WORKER_ID": slot.worker_id, "RUNPOD_POD_ID": slot.worker_id}
        try:
            self._links.add(self._launch(slot.name, slot.generation, env))
        except OSError as error:
            return steps.WorkerForkFailed(ForkRefused(str(error)))
        return None

    def _release(self, slot: Slot, now: float) -> steps.Event | None:
        self._links.drop(slot.name)
        if self._memory is None or not slot.has_gpu:
            return steps.Released()
        if slot.state is SlotState.RELEASING:  # not lost meanwhile
            self._memory.release(self._places[slot.name], now)
        return None
