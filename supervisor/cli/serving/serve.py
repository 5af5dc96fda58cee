"""Serves a handler, with HTTP server and dashboard, or runs one test job; in the supervisor's process."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import msgspec

from supervisor.api.app import App
from supervisor.api.http.server import Server, listen, listen_unix, url_of
from supervisor.cli.serving.run import LINES_CLOSE_S, ProgramRun
from supervisor.cli.serving.screen import Screen
from supervisor.cli.serving.shutdown import cancel, serving
from supervisor.cli.serving.systemd import Service
from supervisor.errors import HandlerError, RequestError, StartError, UsageError
from supervisor.host import file_limits, files
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import job_request, new_id
from supervisor.protocol.responses import status_body
from supervisor.store import summary

SERVER_STOP_S = 2.0
"""Seconds that responses in flight may take at shutdown."""

CANCEL_S = 2.0
"""Seconds that an interrupted test job may take to be recorded as cancelled."""


class Serving(ProgramRun):
    """A run that serves until a signal stops it."""

    async def run(self, undo: contextlib.ExitStack) -> int:
        """Listen, serve, drain."""
        self._service = Service()
        settings = self.settings
        sockets = listen(settings.host, settings.port)
        for sock in sockets:
            undo.callback(sock.close)  # harmless if the server has closed it
        self.open(undo)
        most = file_limits.for_clients(len(self.assembly.engine.pool.slots))
        return await self._serve(url_of(settings.host, sockets), Server(self._app(), sockets, most))

    def reload(self) -> None:
        """Handle SIGHUP, and notify the service manager."""
        self._service.reloading()
        super().reload()
        self._service.notify("READY=1")

    def _app(self, *, private: bool = False) -> App:
        engine, log = self.assembly.engine, lambda text: self.events.event("error", text)
        return App(engine, log, self.webhooks, private=private)

    async def _serve(self, url: str, server: Server) -> int:
        store, overview = self.assembly.store, self.assembly.engine.overview
        overview.url = url
        overview.notice = self.assembly.notes[-1] if self.assembly.notes else None
        counts = store.counts()
        self.events.event(
            "store", summary.at_start(store.path, counts), store=str(store.path), **summary.fields(counts)
        )
        self.assembly.start()
        self.webhooks.start()
        await server.start()
        with serving():
            try:
                await self._serve_until_drained(url, [server])
            except (HandlerError, StartError):
                self._log_end(None)
                raise
            self._log_end("stopped")
        return 130 if self.shutdown.at_once.is_set() else 0

    async def _serve_until_drained(self, url: str, servers: list[Server]) -> None:
        self.events.event("listening", f"listening on {url}", url=url)
        self._service.ready(f"listening on {url}", self.loop)
        screen = await self._show_screen(servers) if self.settings.dashboard else None
        try:
            await self.wait_stopped()
            self.events.event("draining", "draining: no new jobs; Ctrl-C again to stop at once")
            self._service.stopping("draining: waiting for running jobs")
            self.assembly.machine.resume_template()
            await self.drain(self.settings.drain_timeout)
        finally:
            await self.webhooks.close(self.shutdown.at_once)
            for each in reversed(servers):
                await each.stop(0.0 if self.shutdown.at_once.is_set() else SERVER_STOP_S)
            if screen is not None:
                await screen.close()
                self.events.resume()

    def _log_end(self, stopped: str | None) -> None:
        """Log ``stopped``, and which unfinished jobs the store keeps for the next start, if any."""
        store = self.assembly.store
        counts = store.counts()
        parts = [part for part in (stopped, summary.at_end(store.path, counts)) if part is not None]
        if parts:
            left = summary.unfinished(counts)
            self.events.event(stopped or "left", "; ".join(parts), store=str(store.path), left=left)

    async def _show_screen(self, servers: list[Server]) -> Screen | None:
        """Start the dashboard on a private socket and pause the event lines until it exits; return None if it cannot start."""
        folder = self.assembly.machine.tmp_root  # removed by the template, also after a `kill -9` of this process
        path = folder / "top.sock"
        try:
            files.own_folder(folder)
            server = Server(self._app(private=True), [listen_unix(path)])
            servers.append(server)
            await server.start()
            screen = Screen(path, self.loop, self.events.resume)
            self.assembly.machine.spare(screen.pids)
            screen.start()
        except (UsageError, OSError) as error:  # such as a full TMPDIR, or one whose path is too long for a socket
            self.events.event("warning", f"no dashboard: {error}")
            return None
        self.events.pause()
        return screen


class TestJob(ProgramRun):
    """``--test-input``: runs one job and prints its status body; exit code 1 if it did not complete."""

    async def run(self, undo: contextlib.ExitStack) -> int:
        """Run the job."""
        self.open(undo, temporary=True)
        request = _test_request(self.settings.test_input or "null")
        self.assembly.start()
        self.webhooks.start()
        with serving():
            job = await self._run_to_end(request)
        if job is None:
            return 130 if self.shutdown.at_once.is_set() else 1
        self.lines.flush(LINES_CLOSE_S)
        sys.stdout.write(status_body(job).decode() + "\n")
        sys.stdout.flush()
        return 0 if job.status is JobStatus.COMPLETED else 1

    async def _run_to_end(self, request: JobRequest) -> Job | None:
        """Run the job and return it once ended; None if a signal came first. Raises if no worker could start."""
        ended = asyncio.ensure_future(self._ended(request))
        stopped = asyncio.ensure_future(self.wait_stopped())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            ended.cancel()
            await asyncio.wait({self.assembly.engine.cancel(request.id)}, timeout=CANCEL_S)
        await cancel([stopped])
        await self.drain(0.0)
        await self.webhooks.finish(self.settings.webhook_timeout, self.shutdown.at_once)
        await self.webhooks.close(self.shutdown.at_once)
        return None if ended.cancelled() else ended.result()

    async def _ended(self, request: JobRequest) -> Job | None:
        engine = self.assembly.engine
        job = await engine.submit(request)
        return await engine.wait(job.id, float("inf"))


def _test_request(text: str) -> JobRequest:
    """Parse ``--test-input``: a request body if it is an object with ``input``, as for RunPod's own option, else the input."""
    body = text.encode()
    given = msgspec.json.decode(body)
    if isinstance(given, dict) and "input" in given:
        try:
            return job_request(body)
        except RequestError as error:
            raise UsageError(f"--test-input: {error}") from error
    return JobRequest(id=new_id(), input=body, generated=True)
