"""A store with its outbox, an engine that only writes to it, and receivers on loopback that behave as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import requests  # noqa: F401 - the first import takes longer than the short tries here may

from supervisor.config.resolve import make_settings
from supervisor.notice import Level, Notice
from supervisor.protocol import event_lines
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.store.writes import AddWebhook, Write
from supervisor.webhooks.delivery import Webhooks

T = TypeVar("T")

DEADLINE_S = 25.0
"""How long anything that must happen may take on a busy machine."""

Behaviour = Callable[["Receiver", socket.socket], object]


class Posted(msgspec.Struct, frozen=True):
    """A request as it came; header names in lower case."""

    at: float
    target: str
    headers: dict[str, str]
    body: bytes


class Does:
    """What receivers may do with a request."""

    @staticmethod
    def answer(status: int, *lines: str, body: bytes = b"thanks") -> Behaviour:
        """Answers so."""
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *lines, ""))
        return lambda _, sock: sock.sendall(head.encode() + body)

    @staticmethod
    def send(text: bytes) -> Behaviour:
        """Answers with just these bytes."""
        return lambda _, sock: sock.sendall(text)

    @staticmethod
    def hang(receiver: Receiver, _: socket.socket) -> None:
        """Does not answer while the test lasts."""
        receiver.over.wait(DEADLINE_S)

    @staticmethod
    def reset(_: Receiver, sock: socket.socket) -> None:
        """Breaks the connection."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @staticmethod
    def drip(text: bytes) -> Behaviour:
        """Answers a byte at a time, for ever; none of them late."""

        def behave(receiver: Receiver, sock: socket.socket) -> None:
            sock.sendall(text)
            while not receiver.over.wait(0.01):
                sock.sendall(b"x")

        return behave

    @staticmethod
    def flood(head: bytes, piece: bytes = b"x" * 65_536) -> Behaviour:
        """Answers without an end, as fast as it is read; ``flooded`` counts the bytes."""

        def behave(receiver: Receiver, sock: socket.socket) -> None:
            sock.sendall(head)
            while not receiver.over.is_set():
                receiver.flooded += sock.send(piece)

        return behave


class Receiver:
    """Takes connections one by one, each in a thread; behaves as its list says, the last word again and again."""

    def __init__(self, *behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.behaviours = list(behaviours)
        self.posts: list[Posted] = []
        self.connections = 0
        self.flooded = 0
        self.over = threading.Event()
        self._tls = tls
        self._came: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.name = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def next(self) -> Posted:
        """The next request that comes."""
        return self._came.get(timeout=DEADLINE_S)

    def _accept(self) -> None:
        while True:
            sock, _ = self._socket.accept()
            if self.over.is_set():
                sock.close()
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            if self._tls is not None:
                sock = stack.enter_context(self._tls.wrap_socket(sock, server_side=True))
            posted = self._read(stack.enter_context(sock.makefile("rb")))
            with self._lock:
                self.posts.append(posted)
                behave = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
            self._came.put(posted)
            behave(self, sock)

    @staticmethod
    def _read(stream: Any) -> Posted:
        first = stream.readline().decode()
        if not first:
            raise EOFError
        headers = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} stands twice"
            headers[name.lower()] = value
        body = stream.read(int(headers.get("content-length", 0)))
        assert first.startswith("POST ")
        return Posted(time.monotonic(), first.split()[1], headers, body)

    def close(self) -> None:
        if self.over.is_set():
            return  # its port may be another's by now
        self.over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._socket.close()


class Office:
    """The engine as webhooks see it, over a real store, and the webhooks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: Store, resolve: Any, **options: object) -> None:
        given = {"webhook_delay": 0.05, "webhook_timeout": 20.0, **options}
        self.settings = make_settings("test:handler", **given)
        self.store = store
        self.outbox = store.outbox
        self.on_webhook: Callable[[], None] | None = None
        self.warnings: list[str] = []
        self.writes: list[Write] = []
        self.loop = loop
        self.at_once = asyncio.Event()
        self._changed = asyncio.Event()
        self.webhooks = Webhooks(self, loop, resolve)

    # --- the engine

    def write(self, write: Write) -> asyncio.Future[None]:
        self.writes.append(write)
        self.store.commit([write], _raise)
        written = self.loop.create_future()
        self.loop.call_soon(written.set_result, None)
        self.loop.call_soon(self.loop.call_soon, self._changed.set)
        return written

    def notify(self, notice: Notice) -> None:
        assert notice.level is Level.WARNING
        self.warnings.append(event_lines.line(notice))
        self._changed.set()

    # --- the test

    def add(self, url: str, webhook_id: str = "msg_1", body: bytes = b'{"id":"job-1"}', due_ms: int = 0) -> None:
        """A job has ended."""
        self.store.commit([AddWebhook(webhook_id, "job-1", url, due_ms, body)], _raise)
        if self.on_webhook is not None:
            self.on_webhook()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, DEADLINE_S))

    def until(self, reached: Callable[[], object]) -> None:
        """Run the loop until ``reached()``; looked at after each write and warning."""

        async def wait() -> None:
            while not reached():
                self._changed.clear()
                await self._changed.wait()

        self.run(wait())

    def next(self, receiver: Receiver) -> Posted:
        """The next request that ``receiver`` gets."""

        async def wait() -> Posted:
            return await self.loop.run_in_executor(None, receiver.next)

        return self.run(wait())

    def deliver(self, url: str, **given: Any) -> None:
        """Start, with one webhook, and go on until it is delivered or given up."""
        self.webhooks.start()
        self.add(url, **given)
        self.until(lambda: self.webhooks.delivered or self.webhooks.failed)

    def close(self) -> None:
        self.at_once.set()
        self.run(self.webhooks.close(self.at_once))
        for thread in threading.enumerate():
            if thread.name.startswith("webhook to "):
                thread.join(DEADLINE_S)
                assert not thread.is_alive()
        self.run(asyncio.sleep(0))


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(MEMORY) as store:
        yield store


@pytest.fixture
def does() -> type[Does]:
    """What receivers may do."""
    return Does


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    """``make_receiver(*behaviours)``: what it does with its first request, its second, …"""
    receivers: list[Receiver] = []

    def make(*behaviours: Behaviour, **options: Any) -> Receiver:
        receivers.append(Receiver(*behaviours, **options))
        return receivers[-1]

    yield make
    for receiver in receivers:
        receiver.close()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a library might read is this test's own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_office(
    loop: asyncio.AbstractEventLoop, store: Store, make_receiver: object, own_environment: None
) -> Iterator[Callable[..., Office]]:
    """``make_office(**options)``: webhooks that have not started, over the test's store. Closed before the receivers are."""
    offices: list[Office] = []

    def make(*, resolve: Any = socket.getaddrinfo, **options: object) -> Office:
        offices.append(Office(loop, store, resolve, **options))
        return offices[-1]

    yield make
    for office in offices:
        office.close()
