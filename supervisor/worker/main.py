"""The worker process, from the template's fork to its exit by ``os._exit``: loads the handler and serves it.

The handler's code runs in the main thread, with one event loop from before its import until the end. The loop watches the
supervisor's pipe; a plain function is called from within it and blocks it meanwhile, as in RunPod's own worker.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from supervisor import serverless
from supervisor.wire import messages as wire
from supervisor.worker import blame, output, runpod
from supervisor.worker.channel import SupervisorPipe
from supervisor.worker.encode import encode
from supervisor.worker.load import Config, check, load, raised
from supervisor.worker.run import Runner

EXIT_BROKEN = 70
"""Exit code after a fault of this program (EX_SOFTWARE of sysexits.h)."""

EXIT_LOAD_FAILED = 71
"""Exit code after ``wire.LoadFailed``: the handler cannot be served."""

EXIT_INTERRUPTED = 130
"""Exit code after a KeyboardInterrupt outside a job, as in shells."""


class WorkerStart(msgspec.Struct, frozen=True):
    """Arguments of a new worker. ``conn_fd`` is its end of the pipe; ``forked_at`` is a ``time.monotonic()``, seconds."""

    slot: str
    generation: int
    conn_fd: int
    setup: wire.Setup
    forked_at: float


def prepare() -> Callable[[WorkerStart], NoReturn]:
    """Do the set-up that is the same for every worker; return the function that runs the worker once it has an assignment.

    Called in the forked child's main thread, with default signal dispositions. Between the two calls the caller sets
    descriptors 1 and 2 and the environment.
    """
    streams = output.rebuild()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Touches the memory that it writes to, which is shared with the template: copying those pages takes longer than running.
    loop.run_until_complete(asyncio.sleep(0))
    return functools.partial(_enter, streams, loop)


def _enter(streams: output.StandardStreams, loop: asyncio.AbstractEventLoop, start: WorkerStart) -> NoReturn:
    worker = Worker(start, streams, loop)
    serverless.attach(worker)
    worker.load()


class Worker:
    """This worker process; implements ``supervisor.serverless``."""

    def __init__(self, start: WorkerStart, streams: output.StandardStreams, loop: asyncio.AbstractEventLoop) -> None:
        """Own the pipe; ``streams`` are those of ``output.rebuild``, now redirected to the log."""
        self.pid = os.getpid()
        self._start = start
        self._streams = streams
        self._log = output.file_behind(streams.out)
        self._pipe = SupervisorPipe(start.conn_fd)
        self._loop = loop
        self._checks: list[Callable[[], object]] = []
        self._kept: object = None
        self._serving = False

    def load(self) -> NoReturn:
        """Run the handler's code and serve the function that it defines."""
        runpod.install()
        loaded = load(self._start.setup.handler)
        if isinstance(loaded, wire.LoadFailed):
            self._fail_load(loaded)
        kept = self._kept if isinstance(self._kept, dict) else {}
        self._serve({**kept, "handler": loaded})

    def start(self, config: object) -> None:
        """Serve ``config``. If the command line names a function, it replaces the handler in ``config``."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start() must be called in the main thread")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("start() cannot be called inside a running event loop: it runs one of its own")
        if self._serving:
            raise RuntimeError("start() was called before: this worker serves already")
        if self._start.setup.handler.kind == "function":
            self._kept = config
        else:
            self._serve(config)

    def progress(self, job: Any, value: object) -> None:
        """Report progress of ``job``; see ``serverless.progress_update``."""
        encoded = encode(value, "progress")
        if len(encoded) > wire.MAX_PROGRESS:
            what = f"a progress value of {len(encoded)} bytes was dropped: the maximum is {wire.MAX_PROGRESS}"
            self._pipe.warn(f"job {job['id']}: {what}")
            return
        self._pipe.progress(job["id"], encoded)

    def current_job(self) -> str | None:
        """Return the id of the caller's job; see ``serverless.current_job``."""
        return output.JOB.get()

    def add_fitness_check(self, check: Callable[[], object]) -> None:
        """Run ``check`` before the first job."""
        self._checks.append(check)

    def _serve(self, given: object) -> NoReturn:
        config = check(given)
        if isinstance(config, wire.LoadFailed):
            self._fail_load(config)
        self._serving = True
        if config.unknown:
            self._pipe.warn(f"unknown keys in the config are ignored: {', '.join(config.unknown)}")
        loop = self._current_loop()
        failed = loop.run_until_complete(self._check_fitness()) if self._checks else None
        if failed is not None:
            self._fail_load(failed)
        self._run_loop(loop, config)

    def _run_loop(self, loop: asyncio.AbstractEventLoop, config: Config) -> NoReturn:
        worker_id = f"{self._start.slot}-{self._start.generation}"
        runner = Runner(config, self._pipe, worker_id, self._start.setup.max_result)
        took_ms = (time.monotonic() - self._start.forked_at) * 1000
        mark = output.mark_prints(self._streams, self._log) if config.concurrency_modifier is not None else ""
        self._pipe.send(wire.Ready(self.pid, runner.kind, runner.capacity, config.refresh_worker, took_ms, mark))
        loop.add_reader(self._pipe.fileno(), self._read, runner)
        try:
            while True:  # the handler may stop the loop, but not the worker
                loop.run_forever()
        except SystemExit as ended:  # raised in a task that the handler started
            output.exit_as(ended)
        except KeyboardInterrupt:
            output.exit_process(EXIT_INTERRUPTED)

    def _read(self, runner: Runner) -> None:
        try:
            for message in self._pipe.receive():
                if isinstance(message, wire.Run):
                    runner.run(message)
                elif isinstance(message, wire.Cancel):
                    runner.cancel(message.job)
                else:
                    output.exit_process(0)
        except Exception:  # noqa: BLE001 - asyncio would print it and go on, with a job that never ends
            traceback.print_exc()
            output.exit_process(EXIT_BROKEN)

    def _current_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop to serve on: the current one, since the handler's objects may be bound to it, else ours.

        The handler's code may have called ``asyncio.run``, which leaves no current loop, or closed the loop.
        """
        try:
            current = asyncio.get_event_loop()
        except RuntimeError:
            current = self._loop
        loop = next((loop for loop in (current, self._loop) if not loop.is_closed()), None) or asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop

    async def _check_fitness(self) -> wire.LoadFailed | None:
        name = ""
        try:
            for one in self._checks:
                name = getattr(one, "__name__", repr(one))
                answer = one()
                if inspect.isawaitable(answer):
                    await answer
        except BaseException as error:  # noqa: BLE001 - user code, sys.exit included
            return raised("fitness", f"the fitness check {name} raised: {blame.one_line(error)}", error)
        return None

    def _fail_load(self, why: wire.LoadFailed) -> NoReturn:
        self._pipe.send(why)
        output.exit_process(EXIT_LOAD_FAILED)
