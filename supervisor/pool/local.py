"""The pool of this machine's slots, in the supervisor: messages, exits and timers in; actions and events out.

``collect`` feeds them to the slot machine and returns the events for the engine. The actions of a step are only queued:
``perform`` carries them out after the engine has committed its turn, so that nothing is done that is not on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from supervisor import notice
from supervisor.cause import (
    EndedBecause,
    ForkRefused,
    HandlerNotLoaded,
    NoTemplate,
    PausedByHand,
    ProtocolBroken,
    RefreshBy,
    RefreshCause,
    SpareCause,
    WorkerEnd,
    process_end,
)
from supervisor.errors import WireError
from supervisor.gpu.records import GpuSample
from supervisor.pool import events
from supervisor.pool.actions import Actions
from supervisor.pool.interfaces import Loop, Memory, Place
from supervisor.pool.notices import EventBuffer
from supervisor.pool.pipes.pipes import Launch, Link, Links
from supervisor.pool.slots import steps
from supervisor.pool.slots.free import FreeSlots
from supervisor.pool.slots.machine import StateMachine
from supervisor.pool.slots.rules import Rules
from supervisor.pool.slots.slot import OUT_OF_SERVICE, Next, Slot, SlotState
from supervisor.pool.template.client import TemplateClient, TemplateLost
from supervisor.pool.timers import Timers
from supervisor.wire import messages as wire

LAST_BYTES = 16 * 1024 * 1024
"""Most bytes of a dead worker's messages to read: more than a pipe holds, but its children may keep writing."""

_RELEASE = (SlotState.RELEASING, SlotState.HELD)
"""The states in which a slot waits for the release of its GPU memory."""


class LocalPool:
    """The slots of this machine: implements ``interfaces.Pool``, which documents its methods."""

    def __init__(
        self,
        places: Sequence[Place],
        rules: Rules,
        template: TemplateClient,
        memory: Memory | None,
        loop: Loop,
        wake: Callable[[], None],
        launch: Launch,
    ) -> None:
        """Serve ``places``; call ``wake`` when ``collect`` should run. ``launch`` starts workers once ``template`` is ready."""
        self.places = {place.name: place for place in places}
        self.slots = {
            place.name: Slot(name=place.name, index=place.index, has_gpu=bool(place.gpus) and memory is not None)
            for place in places
        }
        self.free = FreeSlots()
        self.changes = 0
        self._machine = StateMachine(rules)
        self._memory = memory
        self._loop = loop
        self._wake = wake
        self._links = Links(loop, wake, self._count_room)
        self._template = template
        self._actions = Actions(self.places, template, self._links, memory, launch)
        self._timers = Timers()
        self._memory_readable = False
        self._pending: list[tuple[str, steps.Action]] = []
        self._events = EventBuffer(self.slots)

    # --- commands of the engine -----------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        self._template.start(now)
        self.resume_reading()
        for name, slot in self.slots.items():
            if not slot.pausing:
                self._step(name, steps.Start(), now)

    def assign(self, name: str, run: wire.Run, start: int, now: float) -> None:
        link = self._links[name]
        if not self.slots[name].running:
            link.log.clear_tails()
        link.starts[run.job] = start
        self._step(name, steps.Assign(run.job), now)
        self._links.send(link, run)

    def cancel(self, name: str, job: str, start: int, now: float, *, out_of_time: bool = False) -> None:
        slot = self.slots[name]
        if job not in slot.running or self._links[name].starts[job] != start:
            return
        gently = slot.cancels_gently
        if out_of_time:
            overdue = EndedBecause.OVERDUE_JOB_RAN
            step = steps.CancelJob(job, gently and len(slot.running) > 1, stuck=True, cause=overdue)
        else:
            step = steps.CancelJob(job, gently)
        self._step(name, step, now)

    def refresh(self, name: str, now: float) -> None:
        self._step(name, steps.RefreshRequested(RefreshCause(RefreshBy.HAND)), now)

    def reload(self, now: float) -> None:
        self._events.shown = None  # the load is retried: show its traceback even if it is the same
        for name in self.slots:
            self._step(name, steps.HandlerChanged(), now)

    def pause(self, name: str, now: float) -> None:
        self._step(name, steps.PauseRequested(PausedByHand()), now)

    def spare(self, name: str, cause: SpareCause, now: float) -> None:
        self._step(name, steps.PauseRequested(cause), now)

    def resume(self, name: str, now: float) -> None:
        self._step(name, steps.ResumeRequested(), now)

    def distrust(self, name: str, what: str, now: float) -> None:
        if self.slots[name].state in (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY, SlotState.ENDING):
            self._step(name, steps.ProtocolViolated(ProtocolBroken(what)), now)

    def stop(self, now: float, *, at_once: bool = False, idle_only: bool = False) -> None:
        for name, slot in self.slots.items():
            if slot.state is not SlotState.PARKED and not (idle_only and slot.running):
                self._step(name, steps.Stop(at_once), now)

    @property
    def parked(self) -> bool:
        return all(slot.state is SlotState.PARKED for slot in self.slots.values())

    @property
    def samples(self) -> Mapping[str, GpuSample]:
        return self._memory.samples if self._memory is not None else {}

    def resume_reading(self) -> None:
        self._links.set_reading(True)
        self._template.set_reading(True)
        if self._memory is not None:
            self._loop.add_reader(self._memory.fileno(), self._on_memory_readable)

    def pause_reading(self) -> None:
        self._links.set_reading(False)
        self._template.set_reading(False)
        if self._memory is not None:
            self._loop.remove_reader(self._memory.fileno())

    def close(self) -> None:
        self.pause_reading()
        for name in self.slots:
            self._links.drop(name)
        self._template.close()

    # --- one turn -------------------------------------------------------------------------------------------------------

    def collect(self, now: float) -> list[events.PoolEvent]:
        for link in self._links.drain(self._links.with_messages):
            self._read(link, now)
        for link in self._links.drain(self._links.with_output):
            self._read_log(link)
        for report in self._template.collect(now):
            self._from_template(report, now)
        if self._memory is not None and (self._memory_readable or now >= self._memory.deadline()):
            self._memory_readable = False
            for name, event in self._memory.collect(now):
                self._step(name, event, now)
                if isinstance(event, steps.Released) and event.unknown:
                    self._events.emit(notice.ReleaseUnverified(name, event.unknown))
        for name in self._timers.due(now):
            self._step(name, steps.Tick(), now)
        return self._events.drain()

    def perform(self, now: float) -> list[events.PoolEvent]:
        while self._pending:
            name, action = self._pending.pop(0)
            if (event := self._actions.perform(self.slots[name], action, now)) is not None:
                self._step(name, event, now)
        return self._events.drain()

    def deadline(self) -> float | None:
        memory = None if self._memory is None else self._memory.deadline()
        times = (self._timers.next(), self._template.deadline(), memory)
        return min((at for at in times if at is not None), default=None)

    # --- steps ----------------------------------------------------------------------------------------------------------

    def _step(self, name: str, event: steps.Event, now: float) -> None:
        before = self.slots[name]
        after, actions = self._machine.step(before, event, now)
        self.slots[name] = after
        self._count_room(name)
        self._timers.set(name, after.deadline)
        for action in actions:
            if isinstance(action, steps.ReportJobLost):
                self._events.lost(self._links[name], action, machinery=isinstance(event, steps.TemplateDied))
            elif isinstance(action, notice.Notice):
                self._events.emit(action)
                if isinstance(action, notice.StartFailed):
                    self._events.not_loaded(name, action.end)
            else:
                self._pending.append((name, action))
        if after.pausing is not before.pausing or (
            after.state is not before.state and not after.serving & before.serving
        ):
            self.changes += 1
        if after.state is not before.state:
            self._events.state_changed(after)
            if after.state in OUT_OF_SERVICE:
                self._wake()  # scaling may start another one
        if isinstance(event, steps.GpuLost):
            self._actions.by_uuid = True
        if self._memory is not None and before.state in _RELEASE and after.state not in _RELEASE:
            self._memory.unwatch(name)  # its events would come too late

    def _count_room(self, name: str) -> None:
        slot = self.slots[name]
        self.free.update(slot, 0 if self._links.clogged(name) else slot.room)

    # --- messages of workers --------------------------------------------------------------------------------------------

    def _read(self, link: Link, now: float) -> None:
        try:
            for message in link.channel.receive():
                self._from_worker(link, message, now)
        except WireError as error:
            self.distrust(link.slot, str(error), now)
        self._links.reschedule(link)

    def _read_log(self, link: Link) -> None:
        running = self.slots[link.slot].running
        self._events.printed(link, link.log.read(running), running)
        self._links.reschedule(link)

    def _drain_pipes(self, link: Link, now: float) -> None:
        """Drain both pipes of a dead worker before its jobs count as lost: ``Done`` may be in one."""
        try:
            for message in link.channel.receive(LAST_BYTES, most=LAST_BYTES):
                self._from_worker(link, message, now)
        except WireError as error:
            self._events.emit(notice.LastMessageUnreadable(link.slot, str(error)))
        running = self.slots[link.slot].running
        self._events.printed(link, link.log.read_rest(running), running)

    def _from_worker(self, link: Link, message: wire.FromWorker, now: float) -> None:
        slot = self.slots[link.slot]
        if isinstance(message, wire.Done):
            if message.job not in slot.running:
                raise WireError(f"{message.status} of job {message.job[:128]!r}: the job does not run in this worker")
            # Including its unfinished line: a job's output is in the log pipe before ``Done`` is in the message pipe.
            if link.log.pending:
                self._events.printed(link, link.log.read_end_of(message.job, slot.running), slot.running)
            self._events.emit(events.JobEnded(message.job, link.starts.pop(message.job), link.slot, message))
            self._events.port_taken(link, message.error or "", self._links.values())
            refresh = RefreshCause(RefreshBy.HANDLER) if message.refresh else None
            broken = RefreshCause(RefreshBy.CUDA_ERROR, message.poisoned) if message.poisoned else None
            self._step(link.slot, steps.JobDone(message.job, broken or refresh, message.out_of_memory), now)
        elif isinstance(message, (wire.Progress, wire.Chunk)):
            self._job_reported(link, message)
        elif isinstance(message, wire.Ready):
            self._worker_ready(link, message, now)
        elif isinstance(message, wire.LoadFailed):
            link.load_failed = message
            self._events.port_taken(link, message.message, self._links.values())
        elif isinstance(message, wire.Capacity):
            self._step(link.slot, steps.CapacityChanged(min(message.capacity, wire.MAX_CAPACITY)), now)
        else:
            self._events.warned(link, message.message)

    def _job_reported(self, link: Link, message: wire.Progress | wire.Chunk) -> None:
        start = link.starts.get(message.job)
        if start is None:
            return  # the job has ended
        if isinstance(message, wire.Progress):
            self._events.emit(events.JobProgressed(message.job, start, link.slot, message.value))
        else:
            self._events.emit(events.JobYielded(message.job, start, link.slot, message.index, message.value))

    def _worker_ready(self, link: Link, message: wire.Ready, now: float) -> None:
        state = self.slots[link.slot].state
        if state is SlotState.ENDING:
            return  # too late
        if state is not SlotState.STARTING:
            raise WireError("Ready was sent twice")
        if link.pid is None:  # ``Ready`` overtook the template's ``Forked``
            link.pid = message.pid
            self._step(link.slot, steps.WorkerForked(message.pid), now)
        if message.mark:
            link.log.expect_marks(message.mark)
        self._step(link.slot, steps.WorkerLoaded(min(message.capacity, wire.MAX_CAPACITY), message.kind), now)
        self._events.emit(notice.WorkerReady(link.slot, message.pid, message.kind, message.load_ms))
        self._events.loaded(link.slot)

    # --- messages of the template ---------------------------------------------------------------------------------------

    def _from_template(self, message: wire.FromTemplate | TemplateLost, now: float) -> None:
        if isinstance(message, TemplateLost):
            self._template_lost(message, now)
            return
        if isinstance(message, wire.TemplateReady):
            for module, why in message.skipped:
                self._events.emit(notice.NotPreloaded(module, why))
            self._pending += self._actions.take_waiting()
            return
        link = self._links.get(message.slot)
        if link is None or link.generation != message.generation:
            return
        if isinstance(message, wire.Forked):
            link.pid = message.pid
            if self._memory is not None:
                self._memory.forked(message.slot, message.pid)
            self._step(message.slot, steps.WorkerForked(message.pid), now)
        elif isinstance(message, wire.ForkFailed):
            self._step(message.slot, steps.WorkerForkFailed(ForkRefused(message.error)), now)
        elif isinstance(message, wire.Died):
            self._worker_died(link, message.cause or process_end(message.status), now)
        else:
            self._step(message.slot, steps.TreeSwept(), now)

    def _worker_died(self, link: Link, end: WorkerEnd, now: float) -> None:
        self._drain_pipes(link, now)
        before = self.slots[link.slot]
        if link.load_failed is not None:
            end = HandlerNotLoaded(link.load_failed.message)
        ending = before.state is SlotState.ENDING
        if ending and before.next is not Next.PARK and before.cause:
            end = before.cause
        if not (ending and before.next in (Next.REFRESH, Next.PAUSE)):  # else the exit is unrelated to loading
            self._events.not_loaded(link.slot, end, link.load_failed)
        self._step(link.slot, steps.WorkerExited(end), now)
        after = self.slots[link.slot]
        if after.restarts > before.restarts:
            self._events.emit(notice.WorkerRestarts(link.slot, link.pid, after.cause or end))

    def _template_lost(self, lost: TemplateLost, now: float) -> None:
        for link in self._links.values():
            self._drain_pipes(link, now)
        left = self._template.sweep()
        self._events.emit(notice.TemplateRestarts(lost.end, left))
        for name in self.slots:
            self._step(name, steps.TemplateDied(), now)
        if lost.repeated:
            for name in self.slots:
                self._events.not_loaded(name, NoTemplate(lost.end))

    def _on_memory_readable(self) -> None:
        self._memory_readable = True
        self._wake()
