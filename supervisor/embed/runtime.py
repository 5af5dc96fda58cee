"""The thread in which an embedded supervisor lives with its loop, and the only way into it; in the user's process.

No signal is touched and no HTTP is served. The user's threads hand submissions over in a deque and wake the loop once for all
that it has not seen yet; everything else they ask for runs in the loop's thread, which alone owns the engine.
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
from collections import deque
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
        """Serve what ``settings`` say; a ``temporary`` queue ends with it."""
        self._settings = settings
        self._temporary = temporary
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._assembly: Assembly | None = None
        self._started: Future[None] = Future()
        self._submissions: deque[tuple[JobRequest, Job]] = deque()
        self._woken = False
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
        """Hand ``job`` over: the loop is woken once for all that it has not looked at yet."""
        self._check_open()
        self._submissions.append((request, job))
        if not self._woken:
            try:
                self._woken = True
                self._post(self._take)
            except BaseException:
                self._woken = False
                raise
        if self._ended:
            self._abandon()

    def cancel(self, job: Job) -> bool:
        """Cancel ``job``, and wait for that to be on disk: whether it is cancelled."""
        if threading.current_thread() is self._thread:
            self._take()  # it may be submitted just now
            self._engine.cancel(job.id).add_done_callback(_leave_unheard)
            return True
        self.wait_for(lambda: self._engine.cancel(job.id))
        return job.cancelled()

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``; as ``Supervisor.refresh``. In a callback nothing can be waited for, nor refused."""
        if threading.current_thread() is self._thread:
            self._engine.slots.refresh(slot).add_done_callback(_leave_unheard)
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
        assert self._loop is not None
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

    def _check_open(self) -> None:
        self._check_running()
        if self._closing:
            raise RuntimeError("the supervisor takes no more jobs: it is closed or being closed")

    def _check_running(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"this supervisor belongs to process {self._pid}, which forked this one")
        if self._thread is None:
            raise RuntimeError("the supervisor was not started: use it in a `with` block, or call start()")
        if self._ended:
            raise RuntimeError("the supervisor is closed")

    def _post(self, call: Callable[[], None]) -> None:
        """Have the loop call it; nothing once it is closed."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    # --- the loop's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
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
            ends: set[asyncio.Future[Any]] = {drain, asyncio.ensure_future(self._broken.wait())}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
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

    def _take(self) -> None:
        self._woken = False  # before looking: what comes from here on wakes again
        for _ in range(len(self._submissions)):
            request, job = self._submissions.popleft()
            try:
                accepted = job.accepted = self._engine.submit(request)
            except RequestError as error:
                self._guard(job.refuse, error)
                continue
            self._waited.setdefault(job.id, []).append(job)
            accepted.add_done_callback(functools.partial(self._accepted, job))
        if self._draining:
            self._look_whether_done()

    def _accepted(self, job: Job, accepted: asyncio.Future[jobs.Job]) -> None:
        """A job that may have been refused, or known and ended before."""
        if accepted.cancelled():
            return
        error = accepted.exception()
        if job.done() or (error is None and not accepted.result().status.terminal):
            return
        if error is None:
            for waiting in self._waited.pop(job.id, ()):
                self._guard(waiting.settle, accepted.result())
        else:
            self._wait_no_more(job)
            self._guard(job.refuse, error)
        self._look_whether_done()

    def _wait_no_more(self, job: Job) -> None:
        """Another may wait for the same id."""
        others = [other for other in self._waited.pop(job.id, ()) if other is not job]
        if others:
            self._waited[job.id] = others

    def _heard(self, happening: Happening) -> None:
        """An observer of the engine."""
        if isinstance(happening, jobs.Job):
            for job in self._waited.pop(happening.id, ()):
                self._guard(job.settle, happening)
            if self._draining:
                self._look_whether_done()
        elif isinstance(happening, events.Printed):
            for line in happening.lines:
                OUTPUT.info("%s: %s", happening.slot, line, extra={"slot": happening.slot, "job": happening.job})
        elif isinstance(happening, Notice):
            LOG.log(LEVELS[happening.level], "%s", event_lines.line(happening))

    @staticmethod
    def _guard(tell: Callable[[T], None], what: T) -> None:
        """Tell a job its end. Its callbacks are user code: an Exception is logged by the future, the rest here."""
        try:
            tell(what)
        except BaseException:
            LOG.exception("a callback of a job raised")

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
        if self._draining and not self._waited and not self._submissions:
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
        waiting = [job for same in self._waited.values() for job in same]
        self._waited.clear()
        while self._submissions:
            with contextlib.suppress(IndexError):  # another thread does the same
                waiting.append(self._submissions.popleft()[1])
        why: JobCause = SupervisorClosed(kept=not self._temporary)
        if self._failure is not None:
            why = SupervisorFailed(repr(self._failure))
        for job in waiting:
            self._guard(job.settle, jobs.Job(0, job.id, JobStatus.CANCELLED, b"null", 0, cause=why))

    def forked(self) -> None:
        """In a child of the user's program: nothing here is the child's."""
        if self._assembly is not None:
            self._assembly.machine.disown()


def _leave_unheard(asked: asyncio.Future[Any]) -> None:
    """Nobody waits for what was ``asked``: its refusal is nobody's to hear, and no fault of the loop."""
    if not asked.cancelled():
        asked.exception()


def _forked(thread: weakref.ref[EngineThread]) -> None:
    alive = thread()
    if alive is not None:
        alive.forked()


async def _cancel_others() -> None:
    """End the loop's other tasks: who waits for one is told."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
