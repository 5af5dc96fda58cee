"""Serves a handler: the engine with its HTTP server, its screen or its lines, and its signals; the supervisor's process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec
import uvloop

from supervisor.api.app import App
from supervisor.api.http.server import Server, listen, listen_unix, url_of
from supervisor.assembly import Assembly, start_failure
from supervisor.cli.serving.event_log import Lines
from supervisor.cli.serving.events import News
from supervisor.cli.serving.screen import Screen
from supervisor.cli.serving.shutdown import Ending, serving
from supervisor.cli.serving.systemd import Service
from supervisor.config.settings import Settings
from supervisor.errors import RequestError, SuperviseError, UsageError
from supervisor.host import file_limits, files
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import job_request, new_id
from supervisor.protocol.responses import status_body
from supervisor.store import summary
from supervisor.webhooks.delivery import Webhooks

SERVER_STOP_S = 2.0
"""How long answers that are being sent may take at the end."""

CANCEL_S = 2.0
"""How long an interrupted test job may take to be recorded as cancelled."""

LINES_CLOSE_S = 2.0
"""How long a slow reader of stderr may delay the end."""


def serve(settings: Settings) -> int:
    """Serve until a signal ends it, or run ``--test-input``; returns the exit code.

    Raises:
        UsageError, StartError, StoreError: it could not be served; the message is for the user.
    """
    file_limits.check_start()
    with event_loop() as loop:
        return run_to_end(loop, _Serving(settings, loop).run())


def run_to_end(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, int]) -> int:
    """What ``work`` gives, run in ``loop``."""
    try:
        return loop.run_until_complete(work)
    finally:
        work.close()  # a loop that the system lets not run has not begun it


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of this process, for the length of the block."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class _Serving:
    """One run of the program."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._service = Service()
        self._ending = Ending(loop)
        self._assembly: Assembly
        self._webhooks: Webhooks
        self._lines: Lines
        self._news: News

    async def run(self) -> int:
        """From the first check to the last process."""
        settings = self._settings
        one = settings.test_input is not None
        sockets = [] if one else listen(settings.host, settings.port)
        with contextlib.ExitStack() as undo:
            for sock in sockets:
                undo.callback(sock.close)  # once more does nothing
            self._lines = Lines(sys.stderr, settings.log_format)
            undo.callback(self._lines.close, LINES_CLOSE_S)
            self._news = News(self._lines)
            undo.callback(self._news.close)
            self._assembly = Assembly(settings, self._loop, self._note, temporary=one)
            undo.callback(self._assembly.close)
            self._webhooks = Webhooks(self._assembly.engine, self._loop)
            self._assembly.engine.observe(self._news.tell)
            self._ending.watch(lambda text: self._news.event("error", text), self._reload)
            if one:
                return await self._run_one()
            most = file_limits.for_clients(len(self._assembly.engine.pool.slots))
            return await self._serve(url_of(settings.host, sockets), Server(self._app(), sockets, most))

    def _note(self, text: str) -> None:
        self._news.event("note", text)

    # --- serving --------------------------------------------------------------------------------------------------------

    def _app(self, *, private: bool = False) -> App:
        engine, log = self._assembly.engine, lambda text: self._news.event("error", text)
        return App(engine, log, self._webhooks, private=private)

    async def _serve(self, url: str, server: Server) -> int:
        engine = self._assembly.engine
        engine.overview.url = url
        engine.overview.notice = self._assembly.notes[-1] if self._assembly.notes else None
        servers = [server]
        self._tell_store()
        self._assembly.start()
        self._webhooks.start()
        await server.start()
        with serving():
            return await self._until_served(url, servers)

    async def _until_served(self, url: str, servers: list[Server]) -> int:
        self._news.event("listening", f"listening on {url}", url=url)
        self._service.ready(f"listening on {url}", self._loop)
        screen = await self._show_screen(servers) if self._settings.dashboard else None
        try:
            failure = await self._until_stopped()
            if failure is None:
                self._news.event("draining", "draining: no new jobs; Ctrl-C again to stop at once")
                self._service.stopping("draining: running jobs may end")
                self._assembly.machine.resume_template()
                await self._drain(self._settings.drain_timeout)
        finally:
            await self._webhooks.close(self._ending.at_once)
            for each in reversed(servers):
                await each.stop(0.0 if self._ending.at_once.is_set() else SERVER_STOP_S)
            if screen is not None:
                await screen.close()
                self._news.resume()
        self._tell_end("stopped" if failure is None else None)
        if failure is not None:
            raise failure
        return 130 if self._ending.at_once.is_set() else 0

    def _tell_store(self) -> None:
        """Say what the store holds."""
        store = self._assembly.store
        counts = store.counts()
        self._news.event("store", summary.at_start(store.path, counts), store=str(store.path), **summary.fields(counts))

    def _tell_end(self, stopped: str | None) -> None:
        """Say ``stopped``, and what is left in the store for the next start, if anything."""
        store = self._assembly.store
        counts = store.counts()
        parts = [part for part in (stopped, summary.at_end(store.path, counts)) if part is not None]
        if parts:
            left = summary.unfinished(counts)
            self._news.event(stopped or "left", "; ".join(parts), store=str(store.path), left=left)

    async def _show_screen(self, servers: list[Server]) -> Screen | None:
        """Start the dashboard as a child on a private socket; the lines are silent until it ends. ``None``: there can be none."""
        folder = self._assembly.machine.tmp_root  # the template removes it, also after a `kill -9` of this process
        path = folder / "top.sock"
        try:
            files.own_folder(folder)
            server = Server(self._app(private=True), [listen_unix(path)])
            servers.append(server)
            await server.start()
            screen = Screen(path, self._loop, self._news.resume)
            self._assembly.machine.spare(screen.pids)
            screen.start()
        except (UsageError, OSError) as error:  # such as a TMPDIR whose path is too long for a socket, or that is full
            self._news.event("warning", f"no dashboard: {error}")
            return None
        self._news.pause()
        return screen

    async def _drain(self, timeout: float) -> None:
        """End the workers in good order, which a broken engine cannot."""
        drained = asyncio.ensure_future(self._assembly.engine.drain(timeout, self._ending.at_once))
        await asyncio.wait({drained, self._ending.broken}, return_when=asyncio.FIRST_COMPLETED)
        if self._ending.broken.done():
            drained.cancel()
            self._ending.check()
        await drained

    async def _until_stopped(self) -> SuperviseError | None:
        """Until a signal comes (``None``) or no worker could start (the error that says so); raises what broke the engine."""
        ending = self._ending
        first = await ending.first(asyncio.shield(self._assembly.engine.first_load), ending.stop)
        if first is not None and not first.ok:
            return start_failure(self._settings, first)
        if first is not None:
            await ending.first(ending.stop.wait(), ending.stop)
        ending.check()
        return None

    # --- one test job ---------------------------------------------------------------------------------------------------

    async def _run_one(self) -> int:
        """Run ``--test-input`` and print the job's status body; exit code 1 when it did not complete."""
        request = _test_request(self._settings.test_input or "null")
        self._assembly.start()
        self._webhooks.start()
        with serving():
            job = await self._run_to_end(request)
        if job is None:
            return 130 if self._ending.at_once.is_set() else 1
        self._lines.flush(LINES_CLOSE_S)
        sys.stdout.write(status_body(job).decode() + "\n")
        sys.stdout.flush()
        return 0 if job.status is JobStatus.COMPLETED else 1

    async def _run_to_end(self, request: JobRequest) -> Job | None:
        """The job as it ended; ``None`` when a signal came first. Raises why no worker could start."""
        engine = self._assembly.engine
        ended = asyncio.ensure_future(self._ended(request))
        stopped = asyncio.ensure_future(self._until_stopped())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():  # it is of no use to the next start
            ended.cancel()
            await asyncio.wait({engine.cancel(request.id)}, timeout=CANCEL_S)
        failure = stopped.result() if stopped.done() else None
        stopped.cancel()
        await asyncio.wait({stopped})  # it has something to undo, which it cannot when the loop is closed
        if failure is not None:
            raise failure
        await self._drain(0.0)
        await self._webhooks.finish(self._settings.webhook_timeout, self._ending.at_once)
        await self._webhooks.close(self._ending.at_once)
        return None if ended.cancelled() else ended.result()

    async def _ended(self, request: JobRequest) -> Job | None:
        engine = self._assembly.engine
        job = await engine.submit(request)
        return await engine.wait(job.id, float("inf"))

    # --- signals --------------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        self._service.reloading()
        self._assembly.engine.reload()
        self._service.tell("READY=1")


def _test_request(text: str) -> JobRequest:
    """``--test-input`` as a job: a request body if it is an object with ``input``, as RunPod's own option takes it, else the
    input itself."""
    body = text.encode()
    given = msgspec.json.decode(body)
    if isinstance(given, dict) and "input" in given:
        try:
            return job_request(body)
        except RequestError as error:
            raise UsageError(f"--test-input: {error}") from error
    return JobRequest(id=new_id(), input=body, generated=True)
