"""Owns the slots, in the supervisor: bytes, deaths and timers in; messages, signals and events for the engine out.

``collect`` turns whatever is there into steps of the slot machine and returns what the engine must know. What a step asks for is
only queued; ``perform`` carries it out, after the engine has committed what it decided, so nothing is done that is not on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from supervisor import wire
from supervisor.errors import WireError
from supervisor.gpu.records import GpuSample
from supervisor.pool import events, steps
from supervisor.pool.link import Link
from supervisor.pool.process import Gone, describe_exit
from supervisor.pool.seams import Loop, Memory, Place, Starter
from supervisor.pool.slot import Machine, Next, Rules, Slot, SlotState

ENDS = ("COMPLETED", "FAILED", "CANCELLED")
"""How a worker may say that a job ended."""

TEMPLATE_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the template is started again, by how often in a row it died before it could fork."""

TEMPLATE_TRIES = 3
"""After so many deaths in a row the first load has failed."""


class Pool:
    """All slots of one supervisor."""

    def __init__(
        self,
        places: Sequence[Place],
        rules: Rules,
        starter: Starter,
        memory: Memory | None,
        loop: Loop,
        wake: Callable[[], None],
        message_limit: int,
    ) -> None:
        """Serve ``places``; call ``wake`` whenever ``collect`` should run. Messages over ``message_limit`` bytes are refused."""
        self.places = {place.name: place for place in places}
        self.slots = {
            place.name: Slot(name=place.name, index=place.index, has_gpu=bool(place.gpus) and memory is not None)
            for place in places
        }
        self.last_refresh: dict[str, tuple[steps.RefreshReport, int]] = {}
        self._machine = Machine(rules)
        self._starter = starter
        self._memory = memory
        self._loop = loop
        self._wake = wake
        self._limit = message_limit
        self._links: dict[str, Link] = {}
        self._ready: set[Link] = set()
        self._printed: set[Link] = set()
        self._template_ready = False
        self._template_up = False
        self._template_spoke = False
        self._template_failures = 0
        self._template_retry: float | None = None
        self._waiting_forks: list[str] = []
        self._actions: list[tuple[str, steps.Action]] = []
        self._runs: list[tuple[Link, wire.Run]] = []
        self._events: list[events.PoolEvent] = []
        self._first_load: set[str] = set(self.slots)

    # --- what the engine asks for ---------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start the template and a worker in every slot."""
        self._start_template()
        for name in self.slots:
            self._step(name, steps.Start(), now)

    def assign(self, name: str, run: wire.Run, now: float) -> None:
        """Give a job to the worker in slot ``name``, which has room; it is sent by ``perform``."""
        link = self._links[name]
        if not self.slots[name].running:
            link.tail.clear()
        self._step(name, steps.Assign(run.job), now)
        self._runs.append((link, run))

    def cancel(self, name: str, job: str, now: float) -> None:
        """Stop a running job: coroutines are told, anything else loses its worker."""
        gently = self._links[name].kind in ("coroutine", "async_generator", "unknown")
        self._step(name, steps.CancelJob(job, gently), now)

    def refresh(self, name: str, cause: str, now: float) -> None:
        """Replace the worker in slot ``name``.

        Raises:
            IllegalStepError: not in its present state.
        """
        self._step(name, steps.RefreshAsked(cause), now)

    def distrust(self, name: str, cause: str, now: float) -> None:
        """The worker in slot ``name`` broke the protocol: kill it."""
        self._misbehaved(self._links[name], cause, now)

    def stop(self, now: float, *, at_once: bool = False, idle_only: bool = False) -> None:
        """End the workers (``idle_only``: those without a job) and keep the slots parked."""
        for name, slot in self.slots.items():
            if slot.state is not SlotState.PARKED and not (idle_only and slot.running):
                self._step(name, steps.Stop(at_once), now)

    @property
    def parked(self) -> bool:
        """Whether no slot has a worker any more."""
        return all(slot.state is SlotState.PARKED for slot in self.slots.values())

    @property
    def samples(self) -> Mapping[str, GpuSample]:
        """The newest reading of each GPU, by UUID."""
        return self._memory.samples if self._memory is not None else {}

    def kind(self, name: str) -> str:
        """The kind of handler that the worker of this slot runs."""
        link = self._links.get(name)
        return link.kind if link is not None else "unknown"

    def close(self) -> None:
        """Let go of every pipe."""
        for name in list(self._links):
            self._drop_link(name)
        if self._template_up:
            self._loop.remove_reader(self._starter.fileno())
            self._template_up = False

    # --- one turn -------------------------------------------------------------------------------------------------------

    def collect(self, now: float) -> list[events.PoolEvent]:
        """Read what is there, let time pass, and return what the engine must know."""
        for link in self._take(self._ready):
            self._read(link, now)
        for link in self._take(self._printed):
            self._read_log(link)
        if self._template_up:
            if self._template_spoke:
                self._template_spoke = False
                for message in self._starter.receive():
                    self._from_template(message, now)
        elif self._template_retry is not None and now >= self._template_retry:
            self._start_template()
        if self._memory is not None:
            pids = {name: slot.pid for name, slot in self.slots.items() if slot.pid is not None}
            for name, event in self._memory.collect(pids, now):
                self._step(name, event, now)
                if isinstance(event, steps.Released) and event.why:
                    self._say("gpu", f"release unverified: {event.why}", name)
        for name, slot in self.slots.items():
            if slot.deadline is not None and now >= slot.deadline:
                self._step(name, steps.Tick(), now)
        collected, self._events = self._events, []
        return collected

    def perform(self, now: float) -> list[events.PoolEvent]:
        """Carry out what the steps asked for; returns what came of it at once (a slot without a GPU is free immediately)."""
        while self._actions:
            name, action = self._actions.pop(0)
            self._perform(name, action, now)
        for link, run in self._runs:
            if not link.send(run):
                self._loop.add_writer(link.fd, self._write_on, link)
        self._runs.clear()
        collected, self._events = self._events, []
        return collected

    def deadline(self) -> float | None:
        """When ``collect`` must run again at the latest."""
        times = [slot.deadline for slot in self.slots.values() if slot.deadline is not None]
        if self._template_retry is not None:
            times.append(self._template_retry)
        if self._memory is not None and (memory := self._memory.deadline()) is not None:
            times.append(memory)
        return min(times, default=None)

    # --- steps ----------------------------------------------------------------------------------------------------------

    def _step(self, name: str, event: steps.Event, now: float) -> None:
        before = self.slots[name]
        after, actions = self._machine.step(before, event, now)
        self.slots[name] = after
        for action in actions:
            if isinstance(action, steps.JobLost):
                self._lost(after, action, machinery=isinstance(event, steps.TemplateGone))
            elif isinstance(action, steps.RefreshReport):
                self._refreshed(name, action)
            elif isinstance(action, steps.StartFailed):
                self._say("worker", f"{action.cause}; next try in {action.retry_s:g} s", name, broken=action.broken)
                self._first_load_failed(name, action.cause)
            else:
                self._actions.append((name, action))
        if after.state is SlotState.HELD and before.state is not SlotState.HELD:
            self._say("gpu", f"held: {after.cause}", name)

    def _lost(self, slot: Slot, action: steps.JobLost, *, machinery: bool) -> None:
        link = self._links[slot.name]
        error = f"worker {slot.name} (pid {link.pid}) {action.how}"
        if link.tail:
            error += "; its last output:\n" + "\n".join(link.tail)
        self._events.append(events.JobLost(action.job, slot.name, error, action.charged, machinery))

    def _refreshed(self, name: str, report: steps.RefreshReport) -> None:
        total = report.end_s + report.release_s + report.start_s
        freed = "" if report.freed_mib is None else f", {report.freed_mib} MiB freed"
        text = (
            f"refreshed in {total * 1000:.1f} ms (end {report.end_s * 1000:.1f}, release {report.release_s * 1000:.1f},"
            f" start {report.start_s * 1000:.1f}){freed}{'' if report.verified else ', unverified'}; asked by {report.cause}"
        )
        self.last_refresh[name] = (report, self.slots[name].generation)
        self._say("refresh", text, name, report=report)

    def _say(self, kind: str, text: str, name: str | None = None, **fields: object) -> None:
        self._events.append(events.Notice(kind, text, name, fields))

    # --- the workers' words ---------------------------------------------------------------------------------------------

    def _read(self, link: Link, now: float) -> None:
        try:
            for message in link.receive():
                self._from_worker(link, message, now)
        except WireError as error:
            self._misbehaved(link, str(error), now)
        if link.at_end or link.broken:
            self._loop.remove_reader(link.fd)

    def _read_log(self, link: Link) -> None:
        self._print(link, link.read_log())
        if link.log_at_end:
            self._loop.remove_reader(link.log_fd)

    def _from_worker(self, link: Link, message: wire.FromWorker, now: float) -> None:
        slot = self.slots[link.slot]
        if isinstance(message, wire.Done):
            if message.job not in slot.running or message.status not in ENDS:
                raise WireError(f"job {message.job!r}, {message.status}: no end of a job that runs here")
            self._print(link, link.read_log())
            self._events.append(events.JobEnded(message.job, link.slot, message))
            self._step(link.slot, steps.JobDone(message.job, "the handler" if message.refresh else None), now)
        elif isinstance(message, wire.Progress):
            self._events.append(events.JobProgressed(message.job, message.value))
        elif isinstance(message, wire.Chunk):
            self._events.append(events.JobYielded(message.job, link.slot, message.index, message.value))
        elif isinstance(message, wire.Ready):
            self._worker_ready(link, message, now)
        elif isinstance(message, wire.LoadFailed):
            link.load_failed = message
        elif isinstance(message, wire.Capacity):
            self._step(link.slot, steps.CapacityChanged(message.capacity), now)
        else:
            self._say("warning", message.message, link.slot)

    def _worker_ready(self, link: Link, message: wire.Ready, now: float) -> None:
        if self.slots[link.slot].state not in (SlotState.STARTING, SlotState.ENDING):
            raise WireError("a worker said twice that it is ready")
        link.kind = message.kind
        self._step(link.slot, steps.Ready(message.capacity), now)
        self._say("worker", f"ready (pid {link.pid}, {message.kind}, loaded in {message.load_ms:.1f} ms)", link.slot)
        if link.slot in self._first_load:
            self._first_load.discard(link.slot)
            self._events.append(events.FirstLoad(link.slot, ok=True))

    def _misbehaved(self, link: Link, cause: str, now: float) -> None:
        if self.slots[link.slot].state in (SlotState.STARTING, SlotState.IDLE, SlotState.BUSY, SlotState.ENDING):
            self._step(link.slot, steps.Misbehaved(f"broke the protocol: {cause}"), now)

    def _print(self, link: Link, lines: list[str]) -> None:
        if lines:
            running = self.slots[link.slot].running
            job = running[0] if len(running) == 1 else None
            self._events.append(events.Printed(link.slot, job, lines))

    def _last_words(self, link: Link, now: float) -> None:
        """On a death, drain both pipes before judging: ``Done`` may be in one."""
        try:
            while not link.at_end and (messages := link.receive()):
                for message in messages:
                    self._from_worker(link, message, now)
        except WireError as error:
            self._say("warning", f"its last message was unreadable: {error}", link.slot)
        self._print(link, link.last_log())

    # --- the template's words -------------------------------------------------------------------------------------------

    def _from_template(self, message: wire.FromTemplate | Gone, now: float) -> None:
        if isinstance(message, Gone):
            self._template_gone(message, now)
            return
        if isinstance(message, wire.TemplateReady):
            self._template_is_ready(message, now)
            return
        link = self._links.get(message.slot)
        if link is None or link.generation != message.generation:
            return
        if isinstance(message, wire.Forked):
            link.pid = message.pid
            self._step(message.slot, steps.Forked(message.pid), now)
        elif isinstance(message, wire.ForkFailed):
            self._step(message.slot, steps.ForkFailed(message.error), now)
        elif isinstance(message, wire.Died):
            self._worker_died(link, describe_exit(message.status), now)
        else:
            self._step(message.slot, steps.Swept(), now)

    def _worker_died(self, link: Link, how: str, now: float) -> None:
        self._last_words(link, now)
        before = self.slots[link.slot]
        if link.load_failed is not None:
            how = f"could not load the handler: {link.load_failed.message}"
        if before.state is SlotState.ENDING and before.next is not Next.PARK and before.cause:
            how = before.cause
        self._first_load_failed(link.slot, how, link.load_failed)
        self._step(link.slot, steps.Died(how), now)
        after = self.slots[link.slot]
        if after.restarts > before.restarts:
            self._say("restart", f"worker (pid {link.pid}) {after.cause or how}; restarting", link.slot)

    def _first_load_failed(self, name: str, how: str, failed: wire.LoadFailed | None = None) -> None:
        """The first worker of this slot will not come into service; said once."""
        if name in self._first_load:
            self._first_load.discard(name)
            self._events.append(events.FirstLoad(name, ok=False, failed=failed, how=how))

    def _template_is_ready(self, message: wire.TemplateReady, now: float) -> None:
        self._template_ready = True
        self._template_failures = 0
        for module, why in message.skipped:
            self._say("warning", f"not preloaded: {module}: {why}")
        waiting, self._waiting_forks = self._waiting_forks, []
        for name in waiting:
            self._fork(name, now)

    def _template_gone(self, gone: Gone, now: float) -> None:
        self._loop.remove_reader(self._starter.fileno())
        self._template_up = self._template_ready = False
        for link in self._links.values():
            self._last_words(link, now)
        left = self._starter.sweep()
        pause = TEMPLATE_BACKOFF_S[min(self._template_failures, len(TEMPLATE_BACKOFF_S) - 1)]
        self._template_failures += 1
        self._template_retry = now + pause
        how = "ended" if gone.status is None else describe_exit(gone.status)
        self._say("warning", f"the template process {how}; starting another", left_behind=left)
        for name in self.slots:
            self._step(name, steps.TemplateGone(), now)
        if self._template_failures >= TEMPLATE_TRIES:
            for name in sorted(self._first_load):
                self._events.append(
                    events.FirstLoad(name, ok=False, how=f"was never forked: the template process {how}")
                )
            self._first_load.clear()

    def _start_template(self) -> None:
        self._template_retry = None
        self._starter.start()
        self._template_up = True
        self._loop.add_reader(self._starter.fileno(), self._hear_template)

    def _hear_template(self) -> None:
        self._template_spoke = True
        self._wake()

    # --- actions --------------------------------------------------------------------------------------------------------

    def _perform(self, name: str, action: steps.Action, now: float) -> None:
        link = self._links.get(name)
        if isinstance(action, steps.ForkWorker):
            if self._template_ready:
                self._fork(name, now)
            elif name not in self._waiting_forks:
                self._waiting_forks.append(name)
        elif isinstance(action, steps.Release):
            self._release(name, now)
        elif name in self._waiting_forks:
            self._waiting_forks.remove(name)
            self._step(name, steps.ForkFailed("ended before it was forked"), now)
        elif link is None:
            return
        elif isinstance(action, steps.TellCancel):
            self._send(link, wire.Cancel(action.job))
        elif isinstance(action, steps.TellExit):
            self._send(link, wire.Exit())
        elif isinstance(action, steps.SendSignal):
            self._starter.signal(name, link.generation, action.signum)
            self._mind_template()
        elif isinstance(action, steps.EndTree):
            self._starter.end_tree(name, link.generation)
            self._mind_template()
        elif isinstance(action, steps.Measure) and self._memory is not None:
            self._memory.measure(self.places[name], now)

    def _fork(self, name: str, now: float) -> None:
        slot, place = self.slots[name], self.places[name]
        if slot.state is not SlotState.STARTING:
            return
        if self._memory is not None and slot.has_gpu:
            self._memory.before_fork(place)
        try:
            pipes = self._starter.pipes()
        except OSError as error:
            self._step(name, steps.ForkFailed(str(error)), now)
            return
        self._drop_link(name)
        link = Link(name, slot.generation, pipes.connection, pipes.log, self._limit)
        self._links[name] = link
        worker_id = f"{name}-{slot.generation}"
        env = {**place.env, "SUPERVISE_WORKER_ID": worker_id, "RUNPOD_POD_ID": worker_id}
        self._starter.fork(name, slot.generation, env, pipes)
        self._mind_template()
        self._loop.add_reader(link.fd, self._readable, link, self._ready)
        self._loop.add_reader(link.log_fd, self._readable, link, self._printed)

    def _mind_template(self) -> None:
        """Write on when the template takes more than it did."""
        if self._starter.wants_write:
            self._loop.add_writer(self._starter.fileno(), self._write_to_template)

    def _write_to_template(self) -> None:
        self._starter.flush()
        if not self._starter.wants_write:
            self._loop.remove_writer(self._starter.fileno())

    def _release(self, name: str, now: float) -> None:
        self._drop_link(name)
        if self._memory is None or not self.slots[name].has_gpu:
            self._step(name, steps.Released(), now)
        else:
            self._memory.release(self.places[name], now)

    def _send(self, link: Link, message: wire.ToWorker) -> None:
        if not link.send(message):
            self._loop.add_writer(link.fd, self._write_on, link)

    def _write_on(self, link: Link) -> None:
        if link.flush():
            self._loop.remove_writer(link.fd)

    def _take(self, links: set[Link]) -> list[Link]:
        """Those of ``links`` that are still in use; ``links`` is empty then."""
        taken = [link for link in links if self._links.get(link.slot) is link]
        links.clear()
        return taken

    def _readable(self, link: Link, which: set[Link]) -> None:
        which.add(link)
        self._wake()

    def _drop_link(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is None:
            return
        self._loop.remove_reader(link.fd)
        self._loop.remove_writer(link.fd)
        self._loop.remove_reader(link.log_fd)
        link.close()
