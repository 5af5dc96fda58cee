"""The thread that runs an embedded supervisor's event loop, and the only access to it; in the user's process.

It handles no signals and serves no HTTP. The loop's thread alone owns the engine, and runs the requests of the user's threads in
the order in which they were made.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import uvloop

from supervisor import job as jobs
from supervisor.assembly import Assembly, start_failure
from supervisor.cause import JobCause, SupervisorClosed, SupervisorFailed
from supervisor.config.settings import Settings
from supervisor.embed.job import JobFuture
from supervisor.engine.engine import Engine, Happening
from supervisor.errors import RequestError
from supervisor.job import JobRequest, JobStatus
from supervisor.notice import Level, Notice
from supervisor.pool import events
from supervisor.protocol import event_lines
from supervisor.store import summary
from supervisor.webhooks.delivery import Webhooks

LOG = logging.getLogger("supervisor")
OUTPUT = logging.getLogger("supervisor.output")

STREAM_WAIT_S = 3600.0
"""Seconds one wait for stream chunks lasts before the next."""

LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
"""Levels of the ``logging`` module."""

T = TypeVar("T")


class EngineThread:
    """Runs the engine's event loop in a thread, and calls into it from other threads."""

    def __init__(self, settings: Settings, *, temporary: bool) -> None:
        """Prepare the thread; a ``temporary`` queue is deleted when it ends."""
        self._settings = settings
        self._temporary = temporary
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop
        self._engine: Engine
        self._thread: threading.Thread | None = None
        self._assembly: Assembly | None = None
        self._started: Future[None] = Future()
        # The thread that removes one settles it; adding and removing are atomic.
        self._unsettled: set[JobFuture] = set()
        self._closing = False  # accepts no more jobs
        self._ended = False  # the loop has stopped
        # Used only in the loop's thread:
        self._waited: dict[str, list[JobFuture]] = {}
        self._draining = False
        self._failure: BaseException | None = None

    # --- any thread -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread and wait for the first worker; as ``Supervisor.start``."""
        if self._thread is not None:
            raise RuntimeError("this supervisor was started before; make another")
        if "SUPERVISE_WORKER_ID" in os.environ:
            raise RuntimeError(
                "a worker must not start a supervisor: is the handler in the file that does, without `if __name__ == '__main__'`?"
            )
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._broken = asyncio.Event()
        name = f"supervise {self._settings.endpoint_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        atexit.register(self.close, drain=False)
        os.register_at_fork(after_in_child=functools.partial(_forked, weakref.ref(self)))
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self.close(drain=False)
            raise

    def close(self, *, drain: bool) -> None:
        """Stop the engine and wait for its thread; as ``Supervisor.close``."""
        if self._thread is None or self._pid != os.getpid():
            return
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot close the supervisor: it runs in its thread")
        self._closing = True
        self._post(functools.partial(self._leave, drain))
        try:
            self._thread.join()
        except BaseException:  # Ctrl-C: stop at once, but still leave nothing behind
            self._post(functools.partial(self._leave, False))
            self._thread.join()
            raise
        atexit.unregister(self.close)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def submit(self, request: JobRequest, job: JobFuture) -> None:
        """Hand ``job`` to the engine."""
        self._check_running()
        if self._closing:
            raise RuntimeError("the supervisor accepts no more jobs: it is closed or being closed")
        self._unsettled.add(job)
        self._post(functools.partial(self._submit, request, job))
        if self._ended:
            self._abandon()

    def cancel(self, job: JobFuture) -> bool:
        """Cancel ``job`` and wait until that is on disk; return whether it is cancelled."""
        if threading.current_thread() is not self._thread:
            self.wait_for(lambda: self._engine.cancel(job.id))
            return job.cancelled()

        def after_submission() -> None:
            with contextlib.suppress(RequestError):
                _ignore_result(self._engine.cancel(job.id))

        self._post(after_submission)
        return True

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``; as ``Supervisor.refresh``. In a callback only an unknown slot is an error."""
        if threading.current_thread() is self._thread:
            _ignore_result(self._engine.slots.refresh(slot))
        else:
            self.wait_for(lambda: self._engine.slots.refresh(slot))

    def withdraw(self, abandoned: Iterable[JobFuture]) -> None:
        """Cancel those of ``abandoned`` that are still queued, without waiting."""
        waiting = [job for job in abandoned if not job.done()]
        if waiting:
            self._post(functools.partial(self._withdraw, waiting))

    def call(self, function: Callable[[Engine], T]) -> T:
        """Call ``function`` in the loop's thread and return its result."""

        async def call() -> T:
            return function(self._engine)

        if threading.current_thread() is self._thread:
            return function(self._engine)
        return self.wait_for(call)

    def wait_for(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await the result of ``function`` in the loop's thread, and return it in this one."""

        async def call() -> T:
            return await function()

        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot wait for the supervisor: it runs in its thread")
        self._check_running()
        coroutine: Coroutine[Any, Any, T] = call()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise RuntimeError("the supervisor is closed") from None
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the supervisor was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def _check_running(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"this supervisor belongs to process {self._pid}, which forked this one")
        if self._thread is None:
            raise RuntimeError("the supervisor was not started: use it in a `with` block, or call start()")
        if self._ended:
            raise RuntimeError("the supervisor is closed")

    def _post(self, call: Callable[[], None]) -> None:
        """Schedule ``call`` in the loop, unless that is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    # --- the loop's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.run_until_complete(self._serve(loop))
        except BaseException as error:  # noqa: BLE001 - raised again where the user waits
            self._failure = error
        finally:
            self._ended = True
            self._abandon()
            loop.close()
            if not self._started.done():
                failure, self._failure = self._failure, None
                self._started.set_exception(failure or RuntimeError("the supervisor was closed while it started"))

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(self._loop_failed)
        assembly = self._assembly = Assembly(self._settings, loop, own_process=False, temporary=self._temporary)
        engine = assembly.engine
        self._engine = engine
        try:
            for note in assembly.notes:
                LOG.info(note)
            if not self._temporary:
                LOG.info(summary.at_start(assembly.store.path, assembly.store.counts()))
            engine.observe(self._handle)
            assembly.start()
            webhooks = Webhooks(engine, loop)
            webhooks.start()
            stop = asyncio.ensure_future(self._stop.wait())
            waits: set[asyncio.Future[Any]] = {stop, engine.first_load}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if engine.first_load.done():
                first = engine.first_load.result()
                if not first.ok:
                    raise start_failure(self._settings, first)
                self._started.set_result(None)
            await stop
            timeout = 0.0 if self._at_once.is_set() else self._settings.drain_timeout
            drain = asyncio.ensure_future(engine.drain(timeout, self._at_once))
            broken = asyncio.ensure_future(self._broken.wait())
            await asyncio.wait([drain, broken], return_when=asyncio.FIRST_COMPLETED)
            if drain.done():
                drain.result()
                if self._temporary:
                    await webhooks.finish(self._settings.webhook_timeout, self._at_once)
            await webhooks.close(self._at_once)
        finally:
            await _cancel_others()
            left = None if self._temporary else summary.at_end(assembly.store.path, assembly.store.counts())
            if left is not None:
                LOG.info(left)
            self._assembly = None
            assembly.close()

    def _submit(self, request: JobRequest, job: JobFuture) -> None:
        try:
            job.accepted = self._engine.submit(request)
        except RequestError as error:
            self._settle(job, job.reject, error)
        else:
            job.accepted.add_done_callback(functools.partial(self._accepted, job))

    def _accepted(self, job: JobFuture, accepted: asyncio.Future[jobs.Job]) -> None:
        """Register ``job`` to be settled at its end, or settle it if it was rejected or had ended before."""
        if accepted.cancelled():
            return
        error = accepted.exception()
        if error is not None:
            self._settle(job, job.reject, error)
            return
        now = self._engine.job(job.id) or accepted.result()
        if now.status.terminal:
            self._settle(job, job.settle, now)
        else:
            self._waited.setdefault(job.id, []).append(job)

    def _handle(self, happening: Happening) -> None:
        """Handle an event of the engine."""
        if isinstance(happening, jobs.Job):
            for job in self._waited.pop(happening.id, ()):
                self._settle(job, job.settle, happening)
        elif isinstance(happening, events.Printed):
            for line in happening.lines:
                OUTPUT.info("%s: %s", happening.slot, line, extra={"slot": happening.slot, "job": happening.job})
        elif isinstance(happening, Notice):
            LOG.log(LEVELS[happening.level], "%s", event_lines.line(happening))

    def _settle(self, job: JobFuture, settle: Callable[[T], None], result: T) -> None:
        """Settle ``job``. Its callbacks are user code: the future logs an Exception, and we log any other."""
        self._unsettled.discard(job)
        try:
            settle(result)
        except BaseException:
            LOG.exception("a callback of a job raised")
        self._stop_if_drained()

    def _withdraw(self, abandoned: list[JobFuture]) -> None:
        for job in abandoned:
            known = self._engine.job(job.id)
            if known is None or known.status is JobStatus.IN_QUEUE:
                self._engine.abandon(job.id)

    async def take_chunks(self, job: JobFuture) -> list[bytes]:
        """Wait for the next chunks of a job and return them; none at its end."""
        if job.accepted is not None:
            await asyncio.shield(job.accepted)
        while True:
            lease = await self._engine.streams.take(job.id, STREAM_WAIT_S, one_look=True)
            if lease is None:
                return []
            lease.confirm()
            if lease.chunks.values or lease.job.status.terminal:
                return lease.chunks.values

    def _leave(self, drain: bool) -> None:
        self._draining = True
        if not drain:
            self._at_once.set()
            self._stop.set()
        self._stop_if_drained()

    def _stop_if_drained(self) -> None:
        if self._draining and not self._unsettled:
            self._stop.set()

    def _loop_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error in the loop itself and stop: the state on disk is consistent, that in memory may not be."""
        error = context.get("exception")
        LOG.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
        if isinstance(error, Exception):
            self._failure = self._failure or error
            self._closing = True
            self._broken.set()
            self._stop.set()

    def _abandon(self) -> None:
        """Settle the jobs that no engine will run any more."""
        why: JobCause = SupervisorClosed(kept=not self._temporary)
        if self._failure is not None:
            why = SupervisorFailed(repr(self._failure))
        with contextlib.suppress(KeyError):  # it is empty
            while True:
                job = self._unsettled.pop()
                self._settle(job, job.settle, jobs.Job(0, job.id, JobStatus.CANCELLED, b"null", 0, cause=why))


def _ignore_result(future: asyncio.Future[Any]) -> None:
    """Drop the result of ``future``: a callback cannot wait for it, and an error is no fault of the loop."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def _forked(thread: weakref.ref[EngineThread]) -> None:
    """Disown the supervisor's resources in a child that the user's program has forked."""
    alive = thread()
    if alive is not None and alive._assembly is not None:
        alive._assembly.machine.disown()


async def _cancel_others() -> None:
    """Cancel the loop's other tasks, so that threads waiting for one get an error."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
