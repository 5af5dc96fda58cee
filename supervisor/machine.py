"""This machine's part of a supervisor: GPUs and their locks, folders, limits, the template, and the pool of slots over them.

In the supervisor's process. Errors of GPUs and locks are found here, before anything is served.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from supervisor.config.settings import Settings
from supervisor.gpu import cpu_share, locks, pinning
from supervisor.gpu.claim import claim_gpus
from supervisor.gpu.client import Reader
from supervisor.gpu.records import Gpu
from supervisor.host import file_limits, temporary
from supervisor.host.orphans import reap_orphans, sweep_marked, sweep_orphans
from supervisor.host.processes import set_subreaper
from supervisor.pool.interfaces import Place
from supervisor.pool.local import LocalPool
from supervisor.pool.release.watcher import GpuMemory
from supervisor.pool.slots.rules import Rules
from supervisor.pool.template.client import TemplateClient
from supervisor.pool.template.launch import fork_worker
from supervisor.pool.template.process import TemplateProcess
from supervisor.wire import messages as wire

LIST_GPUS_S = 30.0
"""How long listing the GPUs may take: without a persistence daemon the driver needs seconds to initialize each."""

FIRST_READING_S = 2.0
"""How long the start waits for the first reading of GPU memory before it starts workers."""

TEMPLATE_STOP_S = 5.0
"""How long the template may take to terminate all its processes."""

REAP_S = 5.0
"""Interval at which process 1 of a container reaps orphans."""


class Machine:
    """Resources of one supervisor, named ``run_id``, on this machine; acquired in order and released in reverse."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[str], None],
        *,
        own_process: bool = True,
    ) -> None:
        """Make a folder for this run; ``build_pool`` locks the GPUs.

        ``note`` gets messages for the user. ``own_process``: this process belongs to supervise, so it may become the parent of a
        dead template's orphans, and has no other children.
        """
        self.run_id = uuid.uuid4().hex
        self.holder = locks.this_process(self.run_id, settings.handler)
        self._settings = settings
        self._loop = loop
        self._note = note
        self._own_process = own_process
        self._pin_by = settings.pin_by
        self._children: list[Callable[[], Sequence[int]]] = []
        self._reader: Reader | None = None
        self._memory: GpuMemory | None = None
        if own_process:
            set_subreaper()
            file_limits.raise_limit()
        self._undo = ExitStack()
        self.tmp_root, folder_lock = temporary.make_run_folder(self.run_id)
        self._undo.callback(shutil.rmtree, self.tmp_root, ignore_errors=True)
        self._undo.callback(os.close, folder_lock)
        self._lock_fds: tuple[int, ...] = (folder_lock,)

    def build_pool(self, wake: Callable[[], None], held: Sequence[locks.Lock]) -> LocalPool:
        """Lock the settings' GPUs and build the pool of slots on them; it calls ``wake``. The locks ``held`` last as long as any
        worker, like the GPUs' own.

        Raises:
            UsageError: a GPU does not exist or is locked.
        """
        settings = self._settings
        if settings.gpus != "none" or settings.simulate_gpus:
            self._reader = Reader(settings.simulate_gpus)
            self._undo.callback(self._reader.close)
        gpus, gpu_locks = self._take_gpus()
        plans = pinning.plan_slots(gpus, settings.workers, settings.gpus_per_worker, settings.workers_per_gpu)
        file_limits.check_limit(len(plans))
        cpus = {}
        if settings.cpu_affinity == "auto":
            cpus = cpu_share.share_out({plan.name: plan.gpus for plan in plans}, os.sched_getaffinity(0))
        setup = self._setup(cpus)
        self._lock_fds += tuple(fd for lock in (*gpu_locks, *held) for fd in lock.fds)
        self._template = TemplateClient(lambda: TemplateProcess(setup, self._lock_fds), self._sweep, self._loop, wake)
        self._undo.callback(lambda: self._template.stop(TEMPLATE_STOP_S))
        if self._own_process and os.getpid() == 1:
            self._reap_orphans()
            self._undo.callback(lambda: self._next_reaping.cancel())  # noqa: PLW0108 - the handle is replaced each time
        places = [self._place(plan, len(plans), cpus.get(plan.name, ())) for plan in plans]
        if self._reader is not None and gpus:
            self._memory = GpuMemory(self._reader, settings.release_timeout, places, settings.refresh_above)
        # A worker itself reports a result that is too large: this is for one that does not.
        limit = max(settings.max_result, wire.MAX_PROGRESS) + wire.OVERHEAD
        launch = partial(fork_worker, self._template, self._loop, limit)
        return LocalPool(places, Rules.of(settings), self._template, self._memory, self._loop, wake, launch)

    def read_memory(self) -> None:
        """Wait briefly for a first reading of GPU memory, the baseline for the workers."""
        if self._memory is None or self._reader is None:
            return
        deadline = time.monotonic() + FIRST_READING_S
        poll = select.poll()
        poll.register(self._reader.fileno(), select.POLLIN)
        self._memory.prepare(time.monotonic())  # requests a reading
        while not self._memory.samples and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._memory.prepare(time.monotonic())

    def spare(self, children: Callable[[], Sequence[int]]) -> None:
        """Exclude the processes of ``children``, the program's own, from sweeps of orphans."""
        self._children.append(children)

    def resume_template(self) -> None:
        """Resume the template if it was stopped by a signal: it has to report the workers' exits."""
        self._template.resume()

    def disown(self) -> None:
        """Release the locks in a process forked by the embedding program, where they would outlive this supervisor.

        Their descriptors are pointed at ``/dev/null`` rather than closed, so that a later close hits no other file.
        """
        devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in self._lock_fds:
            os.dup2(devnull, fd, inheritable=False)
        os.close(devnull)

    def close(self) -> None:
        """Stop the template and all its processes, then release GPUs, locks and folder; once. May block for some seconds."""
        self._undo.close()

    # --- GPUs -----------------------------------------------------------------------------------------------------------

    def _take_gpus(self) -> tuple[list[Gpu], list[locks.Lock]]:
        """Lock the GPUs of ``--gpus`` that no other supervisor holds; return them with their locks."""
        if self._reader is None:
            return [], []
        waits = f"waiting for the NVIDIA driver, which does not respond yet; {LIST_GPUS_S:g} s at most"
        listing = self._reader.list_gpus(LIST_GPUS_S, lambda: self._note(waits))
        if not listing.complete:
            self._pin_by = "uuid"  # CUDA may number the others differently than NVML
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus, held = claim_gpus(self._settings, listing, visible, self.holder, self._note)
        for lock in held:
            self._undo.callback(lock.close)
        return gpus, held

    # --- slots ----------------------------------------------------------------------------------------------------------

    def _setup(self, cpus: dict[str, tuple[int, ...]]) -> wire.Setup:
        """Make the template's setup message; ``cpus`` by slot."""
        settings = self._settings
        kept = temporary.check_private_tmp(settings.spec) if settings.private_tmp else ()
        return wire.Setup(
            version=wire.VERSION,
            run_id=self.run_id,
            handler=settings.spec,
            preload=settings.preload,
            tmp_root=str(self.tmp_root),
            preload_timeout=settings.preload_timeout,
            max_result=settings.max_result,
            limits=wire.Limits(settings.max_processes, settings.private_tmp, kept, cpus),
        )

    def _place(self, plan: pinning.SlotPlan, slots: int, cpus: Sequence[int]) -> Place:
        """Make the place of one of ``slots`` slots, with its workers' environment; they are pinned to ``cpus``."""
        env: dict[str, str | None] = {
            "RUNPOD_ENDPOINT_ID": self._settings.endpoint_id,
            "SUPERVISE_SLOT": plan.name,
            "SUPERVISE_SLOT_INDEX": str(plan.index),
        }
        threads = cpu_share.threads(os.sched_getaffinity(0), slots, cpus)
        if threads is not None and "OMP_NUM_THREADS" not in os.environ:
            env["OMP_NUM_THREADS"] = str(threads)
        pinned, by_uuid = (env | pinning.environment(plan.gpus, by) for by in (self._pin_by, "uuid"))
        return Place(plan.name, plan.index, plan.gpus, pinned, by_uuid)

    # --- orphans --------------------------------------------------------------------------------------------------------

    def _reap_orphans(self) -> None:
        """Reap orphans periodically: SIGCHLD belongs to the loop (uvloop)."""
        template = self._template.pid
        reap_orphans(self._known_children() | ({template} if template is not None else set()))
        self._next_reaping = self._loop.call_later(REAP_S, self._reap_orphans)

    def _sweep(self) -> int:
        """Kill a dead template's orphans: all unknown children or, in a user's program, processes with this run's mark."""
        return sweep_orphans(self._known_children()) if self._own_process else sweep_marked(self.run_id)

    def _known_children(self) -> set[int]:
        known = {pid for children in self._children for pid in children()}
        if self._reader is not None:
            known |= self._reader.pids
        return known
