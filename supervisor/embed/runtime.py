"""The thread in which an embedded supervisor lives with its loop, and the only way into it; in the user's process.

No signal is touched and no HTTP is served. What the user's threads ask for runs in the loop's thread, which alone owns the
engine, in the order in which they asked.
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
from supervisor.embed.job import Job
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
"""How long one look for stream chunks lasts; then comes the next."""

LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
"""What logging calls them."""

T = TypeVar("T")


class EngineThread:
    """The thread with the loop, and the only way into it."""

    def __init__(self, settings: Settings, *, temporary: bool) -> None:
        """A ``temporary`` queue ends with it."""
        self._settings = settings
        self._temporary = temporary
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop
        self._engine: Engine
        self._thread: threading.Thread | None = None
        self._assembly: Assembly | None = None
        self._started: Future[None] = Future()
        self._unsettled: set[Job] = set()  # whoever takes one out settles it; adding and taking are atomic
        self._closing = False  # takes no more jobs
        self._ended = False  # the loop is gone
        # The loop's own:
        self._waited: dict[str, list[Job]] = {}
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
        """End it all and wait for that; as ``Supervisor.close``."""
        if self._thread is None or self._pid != os.getpid():
            return
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot close the supervisor: it runs in its thread")
        self._closing = True
        self._post(functools.partial(self._leave, drain))
        try:
            self._thread.join()
        except BaseException:  # Ctrl-C: it waits no longer, and leaves nothing behind all the same
            self._post(functools.partial(self._leave, False))
            self._thread.join()
            raise
        atexit.unregister(self.close)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def submit(self, request: JobRequest, job: Job) -> None:
        """Hand ``job`` over."""
        self._check_running()
        if self._closing:
            raise RuntimeError("the supervisor takes no more jobs: it is closed or being closed")
        self._unsettled.add(job)
        self._post(functools.partial(self._take, request, job))
        if self._ended:
            self._abandon()

    def cancel(self, job: Job) -> bool:
        """Cancel ``job``, and wait for that to be on disk: whether it is cancelled."""
        if threading.current_thread() is not self._thread:
            self.wait_for(lambda: self._engine.cancel(job.id))
            return job.cancelled()

        def behind_submission() -> None:
            with contextlib.suppress(RequestError):
                _leave_unheard(self._engine.cancel(job.id))

        self._post(behind_submission)
        return True

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``; as ``Supervisor.refresh``. In a callback only a wrong name is refused."""
        if threading.current_thread() is self._thread:
            _leave_unheard(self._engine.slots.refresh(slot))
        else:
            self.wait_for(lambda: self._engine.slots.refresh(slot))

    def withdraw(self, given_up: Iterable[Job]) -> None:
        """Cancel those that are still queued; does not wait."""
        waiting = [job for job in given_up if not job.done()]
        if waiting:
            self._post(functools.partial(self._withdraw, waiting))

    def call(self, ask: Callable[[Engine], T]) -> T:
        """What ``ask`` gives in the loop's thread."""

        async def answer() -> T:
            return ask(self._engine)

        if threading.current_thread() is self._thread:
            return ask(self._engine)
        return self.wait_for(answer)

    def wait_for(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What ``ask`` gives in the loop's thread, waited for in this one."""

        async def answer() -> T:
            return await ask()

        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot wait for the supervisor: it runs in its thread")
        self._check_running()
        answering: Coroutine[Any, Any, T] = answer()
        try:
            future = asyncio.run_coroutine_threadsafe(answering, self._loop)
        except RuntimeError:
            answering.close()
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
        """Have the loop call it; nothing once it is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    # --- the loop's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.run_until_complete(self._serve(loop))
        except BaseException as error:  # noqa: BLE001 - the thread's last: it is raised where the user waits
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
            engine.observe(self._heard)
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

    def _take(self, request: JobRequest, job: Job) -> None:
        try:
            job.accepted = self._engine.submit(request)
        except RequestError as error:
            self._settle(job, job.refuse, error)
        else:
            job.accepted.add_done_callback(functools.partial(self._accepted, job))

    def _accepted(self, job: Job, accepted: asyncio.Future[jobs.Job]) -> None:
        """A job that may have been refused, or known and ended before."""
        if accepted.cancelled():
            return
        error = accepted.exception()
        if error is not None:
            self._settle(job, job.refuse, error)
            return
        now = self._engine.job(job.id) or accepted.result()
        if now.status.terminal:
            self._settle(job, job.settle, now)
        else:
            self._waited.setdefault(job.id, []).append(job)

    def _heard(self, happening: Happening) -> None:
        """An observer of the engine."""
        if isinstance(happening, jobs.Job):
            for job in self._waited.pop(happening.id, ()):
                self._settle(job, job.settle, happening)
        elif isinstance(happening, events.Printed):
            for line in happening.lines:
                OUTPUT.info("%s: %s", happening.slot, line, extra={"slot": happening.slot, "job": happening.job})
        elif isinstance(happening, Notice):
            LOG.log(LEVELS[happening.level], "%s", event_lines.line(happening))

    def _settle(self, job: Job, tell: Callable[[T], None], what: T) -> None:
        """Tell ``job`` its end. Its callbacks are user code: an Exception is logged by the future, the rest here."""
        self._unsettled.discard(job)
        try:
            tell(what)
        except BaseException:
            LOG.exception("a callback of a job raised")
        self._look_whether_done()

    def _withdraw(self, given_up: list[Job]) -> None:
        for job in given_up:
            known = self._engine.job(job.id)
            if known is None or known.status is JobStatus.IN_QUEUE:
                self._engine.abandon(job.id)

    async def take_chunks(self, job: Job) -> list[bytes]:
        """The next chunks of a job, empty at its end; waits for them."""
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
        self._look_whether_done()

    def _look_whether_done(self) -> None:
        if self._draining and not self._unsettled:
            self._stop.set()

    def _loop_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault in the loop itself: what is on disk is right, so it stops rather than go on half-way."""
        error = context.get("exception")
        LOG.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
        if isinstance(error, Exception):
            self._failure = self._failure or error
            self._closing = True
            self._broken.set()
            self._stop.set()

    def _abandon(self) -> None:
        """Nobody runs these any more."""
        why: JobCause = SupervisorClosed(kept=not self._temporary)
        if self._failure is not None:
            why = SupervisorFailed(repr(self._failure))
        with contextlib.suppress(KeyError):  # it is empty
            while True:
                job = self._unsettled.pop()
                self._settle(job, job.settle, jobs.Job(0, job.id, JobStatus.CANCELLED, b"null", 0, cause=why))


def _leave_unheard(asked: asyncio.Future[Any]) -> None:
    """In a callback nothing can be waited for: a refusal of what was ``asked`` is nobody's to hear, and no fault of the loop."""
    asked.add_done_callback(lambda asked: asked.cancelled() or asked.exception())


def _forked(thread: weakref.ref[EngineThread]) -> None:
    """In a child of the user's program: nothing of the supervisor is the child's."""
    alive = thread()
    if alive is not None and alive._assembly is not None:
        alive._assembly.machine.disown()


async def _cancel_others() -> None:
    """End the loop's other tasks: who waits for one is told."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
