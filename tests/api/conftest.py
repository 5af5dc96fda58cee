"""An engine that is told what happens, the real server over it on real sockets, and clients."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop

from supervisor.api.app import App
from supervisor.api.http import server
from supervisor.api.http.connection import Connection
from supervisor.api.http.server import Server, listen, listen_unix
from supervisor.config.resolve import make_settings
from supervisor.config.settings import Settings
from supervisor.engine.job_logs import LogText
from supervisor.engine.statistics import Statistics
from supervisor.engine.streams import READ_CHUNKS, ChunkLease, Chunks
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.views import JobCounts, Snapshot, Stats, WorkerView
from supervisor.store.paging import Page
from tests import described

T = TypeVar("T")

DEADLINE_S = 20.0
CREATED_MS = 1_700_000_000_000


class FakeEngine:
    """The engine's public face over a dict; ``auto`` ends each job at once with its input as output."""

    def __init__(self, settings: Settings, *, auto: bool = False) -> None:
        self.settings = settings
        self.auto = auto
        self.slots = self
        self.ready = True
        self.draining = False
        self.jobs: dict[str, Job] = {}
        self.submitted: list[JobRequest] = []
        self.newest_progress: dict[str, bytes] = {}
        self.streams = FakeStreams(self)
        self.logs = FakeLogs(self)
        self.overview = SimpleNamespace(statistics=Statistics())
        self.settled: list[str] = []
        self.refreshed: list[str] = []
        self.by_hand: list[str] = []
        self.abandoned: list[str] = []
        self.refuse: Exception | None = None
        self.waiting = 0
        self._changed = asyncio.get_running_loop().create_future()

    # --- the public face

    def submit(self, request: JobRequest) -> asyncio.Future[Job]:
        if self.refuse is not None:
            raise self.refuse
        self.submitted.append(request)
        job = self.jobs.get(request.id)
        if job is None:
            job = Job(len(self.jobs), request.id, JobStatus.IN_QUEUE, request.input, CREATED_MS)
            if self.auto:
                job = job.replace(
                    status=JobStatus.COMPLETED,
                    output=request.input,
                    started_ms=CREATED_MS + 5,
                    ended_ms=CREATED_MS + 12,
                    worker_id="gpu0-1",
                )
            self.jobs[job.id] = job
        return _now(job)

    def job(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    def progress(self, job_id: str) -> bytes | None:
        return self.newest_progress.get(job_id)

    async def wait(self, job_id: str, timeout: float) -> Job | None:
        if job_id in self.jobs:
            await self.soon(lambda: self.jobs[job_id].status.terminal, timeout)
        return self.jobs.get(job_id)

    def cancel(self, job_id: str) -> asyncio.Future[Job | None]:
        job = self.jobs.get(job_id)
        if job is not None and not job.status.terminal:
            self.jobs[job_id] = job = job.replace(status=JobStatus.CANCELLED, ended_ms=CREATED_MS + 9)
        return _now(job)

    def abandon(self, job_id: str) -> None:
        self.abandoned.append(job_id)
        self.notify()

    def retry(self, job_id: str) -> asyncio.Future[Job | None]:
        job = self.jobs.get(job_id)
        if job is not None and job.status not in (JobStatus.FAILED, JobStatus.TIMED_OUT):
            raise RequestError(409, f"job {job_id} is {job.status.value}")
        if job is not None:
            self.change(job_id, status=JobStatus.IN_QUEUE, output=None, error=None, retries=job.retries + 1)
        return _now(self.jobs.get(job_id))

    def purge(self) -> asyncio.Future[int]:
        queued = [job.id for job in self.jobs.values() if job.status is JobStatus.IN_QUEUE]
        for job_id in queued:
            self.change(job_id, status=JobStatus.CANCELLED, ended_ms=CREATED_MS + 9)
        return _now(len(queued))

    def requests(self, status: JobStatus | None, limit: int, after: str | None) -> Page:
        if after is not None and after not in self.jobs:
            raise RequestError(404, f"after: no job {after!r}")
        jobs = [job for job in reversed(self.jobs.values()) if status in (None, job.status)]
        if after is not None:
            jobs = jobs[1 + [job.id for job in jobs].index(after) :]
        return Page(jobs[:limit], jobs[limit - 1].id if len(jobs) > limit else None)

    async def pause(self, slot: str) -> None:
        self._check(slot)
        self.by_hand.append(f"pause {slot}")

    async def resume(self, slot: str) -> None:
        self._check(slot)
        self.by_hand.append(f"resume {slot}")

    @staticmethod
    def _check(slot: str) -> None:
        if slot != "gpu0":
            raise RequestError(404, f"no slot {slot!r}; there are: gpu0")

    async def refresh(self, slot: str) -> None:
        self._check(slot)
        if self.refreshed:
            raise RequestError(409, "slot gpu0 is ending: it has no worker to refresh now")
        self.refreshed.append(slot)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            at=CREATED_MS,
            version="0",
            endpoint_id=self.settings.endpoint_id,
            handler="echo.py",
            pid=1,
            url=None,
            draining=self.draining,
            jobs=JobCounts(completed=3, failed=1, in_progress=1, in_queue=2, retried=1),
            workers=(WorkerView("gpu0-1", "gpu0", (0,), "busy", 41, 1, 3, 0, 0, running=("a",)),),
            gpus=(),
            running=(),
            ended=(),
            log=(),
            stats=Stats(1.0, 6, 4, 0.5),
        )

    # --- what the tests do to it

    def change(self, job_id: str, **changes: Any) -> None:
        """Change a job, or put a new one there, and wake who waits."""
        job = self.jobs.get(job_id) or Job(0, job_id, JobStatus.IN_QUEUE, b"null", CREATED_MS)
        self.jobs[job_id] = job.replace(**changes)
        self.notify()

    def forget(self, job_id: str) -> None:
        del self.jobs[job_id]
        self.notify()

    def add_chunks(self, job_id: str, *chunks: bytes) -> None:
        self.streams.chunks.setdefault(job_id, []).extend(chunks)
        self.change(job_id, chunks=len(self.streams.chunks[job_id]))

    def print(self, job_id: str, text: bytes) -> None:
        self.logs.texts[job_id] = self.logs.texts.get(job_id, b"") + text
        self.notify()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; it is looked at whenever something changes here."""
        assert await self.soon(condition, DEADLINE_S), "it never happened"

    def notify(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def soon(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Whether ``condition`` came to hold."""
        self.waiting += 1
        self.notify()
        try:
            deadline = asyncio.get_running_loop().time() + timeout
            while not condition():
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return False
                await asyncio.wait((self._changed,), timeout=left)  # `wait_for` loses a cancel before Python 3.12
            return True
        finally:
            self.waiting -= 1
            self.notify()


def _now(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class FakeStreams:
    """The chunks of all jobs."""

    def __init__(self, engine: FakeEngine) -> None:
        self.chunks: dict[str, list[bytes]] = {}
        self.reads: list[tuple[int, int]] = []
        self._taken: dict[str, int] = {}
        self._engine = engine

    async def take(self, job_id: str, timeout: float) -> ChunkLease | None:
        if job_id not in self._engine.jobs:
            return None
        await self._until(job_id, lambda: self._taken.get(job_id, 0), timeout)
        first, chunks = self._taken.get(job_id, 0), self.chunks.get(job_id, [])
        self._taken[job_id] = len(chunks)
        look = self._look(self._engine.jobs[job_id], first)
        return ChunkLease(look, lambda sent: self._settle(job_id, first, sent))

    async def read(self, job_id: str, start: int, timeout: float) -> Chunks | None:
        if job_id not in self._engine.jobs:
            return None
        await self._until(job_id, lambda: start, timeout)
        if job_id not in self._engine.jobs:
            return None
        return self._look(self._engine.jobs[job_id], start)

    def following(self, chunks: Chunks) -> Chunks:
        return self._look(chunks.job, chunks.end)

    def _look(self, job: Job, start: int) -> Chunks:
        known = self._engine.jobs.get(job.id)
        there = self.chunks.get(job.id, []) if known is not None and known.retries == job.retries else []
        values = there[start : min(start + READ_CHUNKS, job.chunks)]
        self.reads.append((start, len(values)))
        return Chunks(job, start, values)

    async def _until(self, job_id: str, first: Callable[[], int], timeout: float) -> None:
        jobs, chunks = self._engine.jobs, self.chunks.setdefault(job_id, [])
        await self._engine.soon(
            lambda: len(chunks) > first() or job_id not in jobs or jobs[job_id].status.terminal, timeout
        )

    def _settle(self, job_id: str, first: int, sent: bool) -> None:
        self._engine.settled.append("confirmed" if sent else "released")
        if not sent:
            self._taken[job_id] = first
        self._engine.notify()


class FakeLogs:
    """What all jobs printed; one look takes ``PIECE`` bytes."""

    PIECE = 64 * 1024

    def __init__(self, engine: FakeEngine) -> None:
        self.texts: dict[str, bytes] = {}
        self._engine = engine

    def read(self, job_id: str, start: int = 0) -> LogText | None:
        if job_id not in self._engine.jobs:
            return None
        return LogText(self._engine.jobs[job_id], start, self.texts.get(job_id, b"")[start : start + self.PIECE])

    async def follow(self, job_id: str, start: int, timeout: float) -> LogText | None:
        jobs, texts = self._engine.jobs, self.texts
        if job_id in jobs:
            await self._engine.soon(
                lambda: len(texts.get(job_id, b"")) > start or jobs[job_id].status.terminal, timeout
            )
        return self.read(job_id, start)


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        body = self.json
        assert list(body) == ["error"]
        assert isinstance(body["error"], str)
        return str(body["error"])


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Connections(set[Connection]):
    """Those of a server, which calls ``on_change`` when one comes or goes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._on_change = on_change

    def add(self, connection: Connection) -> None:
        super().add(connection)
        self._on_change()

    def discard(self, connection: Connection) -> None:
        super().discard(connection)
        self._on_change()


class Clock:
    """A connection's loop but for its time, which passes when a test says so."""

    class Timer:
        def __init__(self, when: float, callback: Callable[[], object]) -> None:
            self.when = when
            self.callback = callback
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[Clock.Timer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[..., object], *given: Any) -> Timer:
        self._timers.append(self.Timer(self._now + delay, lambda: callback(*given)))
        return self._timers[-1]

    def go_on(self, seconds: float) -> None:
        """Let ``seconds`` pass; to be called in the loop."""
        until = self._now + seconds
        while due := [timer for timer in self._timers if timer.when <= until and not timer.cancelled]:
            first = min(due, key=lambda timer: timer.when)
            self._timers.remove(first)
            self._now = max(self._now, first.when)
            first.callback()
        self._now = until


class CheckedApp(App):
    """The application, and in ``faults`` what was not as described in its answers."""

    def __init__(self, engine: FakeEngine, log: Callable[[str], None], *, private: bool) -> None:
        super().__init__(engine, log, private=private)  # type: ignore[arg-type]  # a fake
        self.faults: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent: list[Any] = []

        async def record(message: Any) -> None:
            sent.append(message)
            await send(message)

        try:
            await super().__call__(scope, receive, record)
        finally:
            if sent:
                self._check(scope, *sent)

    def _check(self, scope: Any, start: Any, *parts: Any) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        whole = bool(parts) and not parts[-1].get("more_body")
        body = b"".join(part["body"] for part in parts) if whole else None
        if scope["method"] == "HEAD":
            body = b""  # uvicorn sends none
        fault = described.fault(scope["method"], scope["path"], start["status"], headers, body)
        if fault is not None:
            self.faults.append(fault)


class Site:
    """The real server over a fake engine, in a thread of its own."""

    def __init__(self, *, auto: bool = False, unix: Path | None = None, **options: Any) -> None:
        self.settings = make_settings("echo:handler", endpoint_id="echo", store="unused.db", **options)
        self.logged: list[str] = []
        self.unix = unix
        self._ready = threading.Event()
        self._auto = auto
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.engine = FakeEngine(self.settings, auto=self._auto)
        sockets = [listen_unix(self.unix)] if self.unix is not None else listen(self.settings.host, 0)
        self.port = 0 if self.unix is not None else sockets[0].getsockname()[1]
        self.app = CheckedApp(self.engine, self.logged.append, private=self.unix is not None)
        self.server = Server(self.app, sockets)
        self.server._state.connections = Connections(self.engine.notify)
        await self.server.start()
        self._ready.set()
        await self._over.wait()

    def close(self) -> None:
        self.do(self.server.stop(0.1))
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        assert not self.app.faults, self.app.faults

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(2 * DEADLINE_S)  # `until` says more

    def call(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call ``function`` in the server's loop."""

        async def work() -> T:
            return function(*args, **keywords)

        return self.do(work())

    def until(self, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; it is looked at whenever something changes in the engine, or a connection comes or goes."""
        self.do(self.engine.until(condition))

    def until_heard(self, count: int) -> None:
        """Until ``count`` bytes of their newest requests have come from those who are connected."""
        deadline = time.monotonic() + DEADLINE_S
        while self.call(lambda: sum(each._request_bytes for each in self.server._state.connections)) < count:
            assert time.monotonic() < deadline, "it never came"

    def connect(self) -> http.client.HTTPConnection:
        if self.unix is not None:
            return UnixConnection(self.unix)
        return http.client.HTTPConnection(self.settings.host, self.port, timeout=DEADLINE_S)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; ``body`` is bytes, or what becomes JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, data, headers or {})
            return self.read(connection)
        finally:
            connection.close()

    @staticmethod
    def read(connection: http.client.HTTPConnection) -> Answer:
        """The answer to what was asked on ``connection``."""
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        assert len(headers) == len(response.getheaders()), f"a name stands twice: {response.getheaders()}"
        return Answer(response.status, headers, response.read())

    @staticmethod
    def read_to_end(sock: socket.socket) -> bytes:
        """What the server sends until it closes."""
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        return b"".join(parts)

    @staticmethod
    def read_up_to(sock: socket.socket, text: bytes) -> bytes:
        """What the server sends until ``text`` was in it."""
        came = b""
        while text not in came:
            part = sock.recv(65536)
            assert part, f"{text!r} never came: {came!r}"
            came += part
        return came

    def raw(self, data: bytes = b"") -> socket.socket:
        """A bare connection on which ``data`` was sent."""
        sock = socket.create_connection((self.settings.host, self.port), timeout=DEADLINE_S)
        sock.sendall(data)
        return sock


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    """Makes servers, and stops them after the test."""
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def own_host() -> str:
    """A loopback address of this process alone: nobody else takes a port that a test has left."""
    return str(ipaddress.IPv4Address(0x7F01_0000 + os.getpid()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the connections of all servers that are made from then on."""
    made = Clock()

    class Timed(Connection):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.loop: Any = made

    monkeypatch.setattr(server, "Connection", Timed)
    return made


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A server with default settings."""
    return make_site()
