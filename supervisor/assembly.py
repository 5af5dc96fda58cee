"""Puts one supervisor together from its settings: GPUs, locks, store, template, pool and engine; everything but HTTP and screens.

In the supervisor's process. What can be wrong with a GPU, a lock or the store is found here, before anything is served.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from supervisor.config.settings import Settings
from supervisor.engine import scaling
from supervisor.engine.engine import Engine
from supervisor.errors import HandlerError, StartError, SuperviseError
from supervisor.gpu import cpu_share, locks, pinning
from supervisor.gpu.claim import claim_gpus
from supervisor.gpu.client import Reader
from supervisor.gpu.records import Gpu
from supervisor.host import file_limits, temporary
from supervisor.host.orphans import reap_orphans, sweep_marked, sweep_orphans
from supervisor.host.processes import set_subreaper
from supervisor.pool import events
from supervisor.pool.interfaces import Place
from supervisor.pool.pool import Pool
from supervisor.pool.release.watcher import GpuMemory
from supervisor.pool.slots.rules import Rules
from supervisor.pool.template.client import TemplateClient
from supervisor.pool.template.process import TemplateProcess
from supervisor.protocol.responses import status_body
from supervisor.protocol.wording import of_worker
from supervisor.reload import SourceFiles, Watch
from supervisor.store import owner, place
from supervisor.store.opening import TEMPORARY
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.wire import messages as wire

LIST_GPUS_S = 30.0
"""How long the list of GPUs may take: without a persistence daemon the driver needs seconds for each to wake up."""

FIRST_READING_S = 2.0
"""How long the start waits to learn what is in use before the first workers come."""

TEMPLATE_STOP_S = 5.0
"""How long the template may take to end everything below it."""

REAP_S = 5.0
"""How long process 1 of a container lets the orphans that come to it lie."""


class Assembly:
    """One supervisor. Made in order, undone in reverse by ``close``."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[str], None] | None = None,
        *,
        own_process: bool = True,
        temporary: bool = False,
    ) -> None:
        """Take the GPUs and the store that ``settings`` name; ``start`` starts workers.

        ``note`` is told what a person should know of what was found, as it is found. ``own_process``: this process belongs to
        supervise, so it may inherit what a dead template leaves, and has no other children than ours. ``temporary``: the queue
        ends with the supervisor, and the settings' store is not used.

        Raises:
            UsageError: a GPU is not there or held, the store is in use, cannot be used or holds another handler's jobs.
        """
        self.notes: list[str] = []
        self._tell = note
        self._pin_by = settings.pin_by
        self.run_id = uuid.uuid4().hex
        self._temporary = temporary
        self._own_process = own_process
        self._settings = settings
        self._loop = loop
        self._undo = ExitStack()
        self._children: list[Callable[[], Sequence[int]]] = []
        if own_process:
            set_subreaper()
            file_limits.raise_limit()
        try:
            self._build()
        except BaseException:
            self._undo.close()
            raise

    def _build(self) -> None:
        settings = self._settings
        holder = locks.this_process(self.run_id, settings.handler)
        self.tmp_root, folder_lock = temporary.make_run_folder(self.run_id)
        self._undo.callback(shutil.rmtree, self.tmp_root, ignore_errors=True)
        self._undo.callback(os.close, folder_lock)
        store_locks, taken_over = self._open_store(holder)  # before the GPUs: whose jobs it holds may forbid this start
        self._reader = self._make_reader()
        gpus, gpu_locks = self._take_gpus(holder)
        self._plans = pinning.plan_slots(gpus, settings.workers, settings.gpus_per_worker, settings.workers_per_gpu)
        scaling.bounds(settings, len(self._plans))
        file_limits.check_limit(len(self._plans))
        limits = self._limits()
        held = [*gpu_locks, *store_locks]
        self._lock_fds = (folder_lock, *(fd for lock in held for fd in lock.fds))
        self.engine = Engine(settings, self.store, self._secrets, self._loop, status_body)
        self._template = self._make_template(limits)
        self._undo.callback(lambda: self._template.stop(TEMPLATE_STOP_S))
        if self._own_process and os.getpid() == 1:
            self._reap_orphans()
            self._undo.callback(self._stop_reaping)
        places = self._make_places(limits.cpus)
        self._memory = None
        if self._reader is not None and gpus:
            self._memory = GpuMemory(self._reader, settings.release_timeout, places, settings.refresh_above)
        self.engine.attach(self._make_pool(places))
        self._undo.callback(self.engine.close)
        if taken_over is not None:  # said only now: a start that was refused has taken nothing over
            self._note(taken_over, first=True)

    def start(self) -> None:
        """Start the workers and take up the store's jobs.

        Raises:
            StoreError: the store cannot be written.
        """
        if self._memory is not None and self._reader is not None:
            self._first_reading(self._memory, self._reader)
        if self._settings.reload:
            self._watch_sources()
        if not self._temporary:
            owner.claim(self.store, self._settings.spec)
        self.engine.start()

    def _watch_sources(self) -> None:
        engine = self.engine

        def changed(names: tuple[str, ...]) -> None:
            if not engine.draining:
                engine.reload(names)

        watch = Watch(SourceFiles(self._settings.spec), self._loop, engine.notify, changed)
        watch.start()
        self._undo.callback(watch.close)

    def spare(self, children: Callable[[], Sequence[int]]) -> None:
        """Let a sweep of orphans spare the processes that ``children`` names: they are this program's own."""
        self._children.append(children)

    def resume_template(self) -> None:
        """Let the template go on if somebody has stopped it: it has to report the workers' ends."""
        self._template.resume()

    def disown(self) -> None:
        """In a process that the program has forked: let go of the locks, which would outlive this supervisor there. Their
        descriptors stay taken, by nothing, so that whoever closes them in the end closes nothing else."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in self._lock_fds:
            os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def close(self) -> None:
        """End the template and all below it, then let go of store, GPUs and locks. May block for some seconds."""
        self._undo.close()

    def _note(self, text: str, *, first: bool = False) -> None:
        """Tell a person ``text``. The screen keeps the last of all, so one that matters less comes ``first``."""
        self.notes.insert(0 if first else len(self.notes), text)
        if self._tell is not None:
            self._tell(text)

    # --- parts ----------------------------------------------------------------------------------------------------------

    def _make_reader(self) -> Reader | None:
        if self._settings.gpus == "none" and not self._settings.simulate_gpus:
            return None
        reader = Reader(self._settings.simulate_gpus)
        self._undo.callback(reader.close)
        return reader

    def _take_gpus(self, holder: locks.Holder) -> tuple[list[Gpu], list[locks.Lock]]:
        """Those that ``--gpus`` means and no other supervisor holds, with their locks."""
        if self._reader is None:
            return [], []
        waits = f"waiting for the NVIDIA driver, which does not answer yet; {LIST_GPUS_S:g} s at most"
        listing = self._reader.list_gpus(LIST_GPUS_S, lambda: self._note(waits))
        if not listing.complete:
            self._pin_by = "uuid"  # CUDA may number the others differently than NVML
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus, held = claim_gpus(self._settings, listing, visible, holder, self._note)
        for lock in held:
            self._undo.callback(lock.close)
        return gpus, held

    def _open_store(self, holder: locks.Holder) -> tuple[list[locks.Lock], str | None]:
        """The store and its secrets, with the lock on it, which one that nobody else can see does not need; whose it was, if
        another handler's."""
        if self._temporary:
            self.store = self._undo.enter_context(Store.open(TEMPORARY))
            self._secrets = SecretFiles(self.tmp_root / "secrets")
            return [], None
        path = place.settle(self._settings.store)
        if path != self._settings.store:
            self._note(f"{self._settings.store} is a link: the job store is {path}")
        lock = locks.lock_store(path, holder)
        self._undo.callback(lock.close)
        store = Store.open(
            path,
            durability="full" if self._settings.durability == "full" else "normal",
            deliver=self._loop.call_soon_threadsafe,
            note=self._note,
        )
        self.store = self._undo.enter_context(store)
        taken_over = owner.check(store, self._settings)
        self._secrets = SecretFiles(Path(f"{path}.secrets"))
        return [lock], taken_over

    def _limits(self) -> wire.Limits:
        """What each worker may have of the machine."""
        settings = self._settings
        cpus = {}
        if settings.cpu_affinity == "auto":
            cpus = cpu_share.share_out({plan.name: plan.gpus for plan in self._plans}, os.sched_getaffinity(0))
        kept = temporary.check_private_tmp(settings.spec) if settings.private_tmp else ()
        return wire.Limits(settings.max_processes, settings.private_tmp, kept, cpus)

    def _make_template(self, limits: wire.Limits) -> TemplateClient:
        settings = self._settings
        setup = wire.Setup(
            version=wire.VERSION,
            run_id=self.run_id,
            handler=settings.spec,
            preload=settings.preload,
            tmp_root=str(self.tmp_root),
            preload_timeout=settings.preload_timeout,
            max_result=settings.max_result,
            limits=limits,
        )
        return TemplateClient(lambda: TemplateProcess(setup, self._lock_fds), self._sweep, self._loop, self.engine.wake)

    def _make_places(self, cpus: Mapping[str, Sequence[int]]) -> list[Place]:
        return [
            Place(
                plan.name,
                plan.index,
                plan.gpus,
                self._environment(plan, self._pin_by, cpus.get(plan.name, ())),
                env_by_uuid=self._environment(plan, "uuid", cpus.get(plan.name, ())),
            )
            for plan in self._plans
        ]

    def _make_pool(self, places: Sequence[Place]) -> Pool:
        settings = self._settings
        rules = Rules(
            grace=settings.grace,
            start_timeout=settings.start_timeout,
            refresh_worker=settings.refresh_worker,
            refresh_after_jobs=settings.refresh_after_jobs,
            refresh_above=settings.refresh_above,
            refresh_on_oom=settings.refresh_on_oom,
        )
        # A worker says itself that a result is too long: this is for one that does not.
        limit = max(settings.max_result, wire.MAX_PROGRESS) + wire.OVERHEAD
        return Pool(places, rules, self._template, self._memory, self._loop, self.engine.wake, limit)

    def _environment(self, plan: pinning.SlotPlan, pin_by: str, cpus: Sequence[int]) -> dict[str, str | None]:
        """What the workers of a slot, which are pinned to ``cpus``, find in their environment besides the generation's own."""
        share: dict[str, str | None] = {}
        threads = cpu_share.threads(os.sched_getaffinity(0), len(self._plans), cpus)
        if threads is not None and "OMP_NUM_THREADS" not in os.environ:
            share["OMP_NUM_THREADS"] = str(threads)
        return {
            **share,
            **pinning.environment(plan.gpus, pin_by),
            "RUNPOD_ENDPOINT_ID": self._settings.endpoint_id,
            "SUPERVISE_SLOT": plan.name,
            "SUPERVISE_SLOT_INDEX": str(plan.index),
        }

    def _reap_orphans(self) -> None:
        """By the clock: SIGCHLD is the loop's own (uvloop)."""
        template = self._template.pid
        reap_orphans(self._known_children() | ({template} if template is not None else set()))
        self._next_reaping = self._loop.call_later(REAP_S, self._reap_orphans)

    def _stop_reaping(self) -> None:
        self._next_reaping.cancel()

    def _sweep(self) -> int:
        """End what a dead template left: all children but ours, or, in a user's program, what bears this run's mark."""
        return sweep_orphans(self._known_children()) if self._own_process else sweep_marked(self.run_id)

    def _known_children(self) -> set[int]:
        known = {pid for children in self._children for pid in children()}
        if self._reader is not None:
            known |= self._reader.pids
        return known

    @staticmethod
    def _first_reading(memory: GpuMemory, reader: Reader) -> None:
        """Wait a moment for what is in use now: workers that come are measured against it."""
        deadline = time.monotonic() + FIRST_READING_S
        memory.prepare(time.monotonic())  # asks
        while not memory.samples and (left := deadline - time.monotonic()) > 0:
            select.select([reader.fileno()], [], [], left)
            memory.prepare(time.monotonic())


def start_failure(settings: Settings, first: events.FirstLoad) -> SuperviseError:
    """Why no worker came into service, for the user."""
    failed = first.failed
    if failed is None:
        assert first.end is not None  # else a worker is ready
        return StartError(f"no worker could start: the worker in slot {first.slot} {of_worker(first.end)}")
    text = f"{settings.handler}: {failed.message}"
    if failed.traceback:
        text = f"{failed.traceback.rstrip()}\n{text}"
    return HandlerError(text)
