"""Delivers the webhooks of the store's outbox: what is due, to whom there is room for, in threads; in the supervisor's loop.

What came of a try is written before the next one is thought of, so a supervisor that is killed tries again what it had under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from supervisor.config.kinds import webhook_key
from supervisor.config.settings import Settings
from supervisor.errors import StoreError
from supervisor.notice import Notice, Task, TaskFailed, WebhookGivenUp, WebhooksLost
from supervisor.store.outbox import Outbox, Webhook
from supervisor.store.writes import DropWebhook, PutOffWebhook, Write
from supervisor.webhooks.connection import Resolve, WebhookConnection
from supervisor.webhooks.signature import headers

TRIES = 128
"""Tries at once, each in a thread of its own."""

TRIES_PER_RECEIVER = 8
"""Of them to one receiver that answered the last one."""

TRIES_PER_STRANGER = 4
"""To one that did not, or was never tried; all of these together get half: however many hang, there is room for the others."""

KNOWN_RECEIVERS = 1000
"""Those that answered that are remembered, the last ones."""

BODY_BYTES = 256 * 2**20
"""Bytes of bodies in memory from which no further try is begun."""

READ_BYTES = 2**20
"""Bytes of bodies from which no more is read in one look: others have the loop in between."""

READ_AGAIN_S = 10.0
"""When the outbox is read again after that failed, or a thread could not be started."""

CLOSE_S = 2.0
"""How long tries that are under way may take at the end."""

THREAD = "webhook to"
"""How the name of a try's thread begins."""

LOGGERS = ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry")
"""They write whole URLs, also as warnings, which Python shows by itself: those of our threads stay out of every log."""


class DeliveryEngine(Protocol):
    """What is needed of the engine."""

    settings: Settings
    outbox: Outbox
    on_webhook: Callable[[], None] | None

    def write(self, write: Write) -> asyncio.Future[None]:
        """Write something; done once it is on disk."""

    def notify(self, notice: Notice) -> None:
        """Give notice of something."""


class _Try:
    """One try. It keeps its place until its thread has ended and what came of it is on disk (``written``)."""

    def __init__(self, webhook: Webhook, line: WebhookConnection, size: int) -> None:
        self.webhook = webhook
        self.line = line
        self.size = size
        self.written = False
        self.task: asyncio.Task[None]


class Webhooks:
    """All methods belong to the thread of the event loop. ``delivered`` and ``failed`` count since the start."""

    def __init__(
        self, engine: DeliveryEngine, loop: asyncio.AbstractEventLoop, resolve: Resolve = socket.getaddrinfo
    ) -> None:
        """Deliver what waits in the engine's outbox, from ``start`` on; ``resolve`` looks names up."""
        settings = engine.settings
        self.delivered = 0
        self.failed = 0
        self._engine = engine
        self._loop = loop
        self._resolve = resolve
        self._retries = settings.webhook_retries
        self._delay_ms = int(settings.webhook_delay * 1000)
        self._timeout = settings.webhook_timeout
        self._deny_private = settings.webhook_deny_private
        self._key = webhook_key(settings.webhook_secret) if settings.webhook_secret is not None else None
        self._tries: set[_Try] = set()
        self._answering: dict[str, None] = {}  # the last one is the last key
        self._read = 0
        self._closed = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._changed: asyncio.Future[None] = loop.create_future()

    @property
    def pending(self) -> int:
        """How many wait for a try or are under way."""
        return self._engine.outbox.count()

    def start(self) -> None:
        """Deliver what waits, and from now on what comes."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_is_not_ours)
        self._engine.on_webhook = self._wake
        self._wake()

    async def finish(self, patience: float, at_once: asyncio.Event) -> None:
        """Go on until nothing waits any more, for ``patience`` seconds at most or until ``at_once``: for an outbox that may end
        with the program. What is left is told."""
        await self._until(lambda: not self._under_way() and not self._engine.outbox.receivers(), patience, at_once)
        left = self.pending
        if left:
            self._engine.notify(WebhooksLost(left))

    async def close(self, at_once: asyncio.Event) -> None:
        """Begin no more, and give those under way ``CLOSE_S``, or until ``at_once``. What is left stays in the outbox as if it
        had not been tried."""
        self._closed = True
        self._engine.on_webhook = None
        if self._timer is not None:
            self._timer.cancel()
        await self._until(lambda: not self._under_way(), CLOSE_S, at_once)
        for each in self._tries:
            each.line.cut()
            each.task.cancel()
        await asyncio.gather(*(each.task for each in self._tries), return_exceptions=True)

    def _under_way(self) -> bool:
        return not all(each.written for each in self._tries)

    async def _until(self, reached: Callable[[], bool], patience: float, at_once: asyncio.Event) -> None:
        until = self._loop.time() + patience
        hurry = asyncio.ensure_future(at_once.wait())
        try:
            while not reached() and not at_once.is_set() and (left := until - self._loop.time()) > 0:
                self._changed = self._loop.create_future()
                waits: set[asyncio.Future[Any]] = {self._changed, hurry}
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()

    # --- what is due ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Look soon; several calls share one look."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Begin what is due and has room, and come again when more will be."""
        self._scheduled = False
        if not self._changed.done():
            self._changed.set_result(None)
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            wait = self._begin_all()
        except (StoreError, RuntimeError) as error:  # the latter: no more threads
            self._engine.notify(TaskFailed(Task.DELIVER_WEBHOOKS, str(error)))
            wait = READ_AGAIN_S
        if wait is not None:
            self._timer = self._loop.call_later(wait, self._wake)

    def _begin_all(self) -> float | None:
        """Begin tries; in how many seconds the next is due."""
        now_ms = _wall_ms()
        self._read = 0
        receivers = self._engine.outbox.receivers()
        waits = [wait for name, _ in receivers if (wait := self._begin(name, now_ms)) is not None]
        return min(waits, default=None)

    def _begin(self, receiver: str, now_ms: int) -> float | None:
        """Begin tries at ``receiver``; in how many seconds the next is due, ``None``: when one of them has ended."""
        under_way = [each for each in self._tries if each.webhook.receiver == receiver]
        room = self._room(receiver, len(under_way))
        if room <= 0:
            return None
        busy = {each.webhook.id for each in under_way if not each.written}
        for webhook in self._engine.outbox.waiting(receiver, room + len(busy)):
            if webhook.id in busy:
                continue
            wait_ms = webhook.due_ms - now_ms
            if 0 < wait_ms <= self._delay_ms:  # more than that: the clock was set back
                return wait_ms / 1000
            if sum(each.size for each in self._tries) >= BODY_BYTES:
                return None
            if self._read >= READ_BYTES:
                return 0.0
            self._try(webhook)
        return None

    def _room(self, receiver: str, under_way: int) -> int:
        """How many more tries there may be at ``receiver`` now."""
        room = TRIES - len(self._tries)
        if receiver in self._answering:
            return min(room, TRIES_PER_RECEIVER - under_way)
        strangers = sum(each.webhook.receiver not in self._answering for each in self._tries)
        return min(room, TRIES_PER_STRANGER - under_way, TRIES // 2 - strangers)

    # --- one try --------------------------------------------------------------------------------------------------------

    def _try(self, webhook: Webhook) -> None:
        body = self._engine.outbox.body(webhook.id)
        if body is None:
            return
        self._read += len(body)
        line = WebhookConnection(self._timeout, deny_private=self._deny_private, resolve=self._resolve)
        ended: asyncio.Future[str | None] = self._loop.create_future()
        name = f"{THREAD} {webhook.receiver}"
        threading.Thread(target=self._post, args=(webhook, body, line, ended), name=name, daemon=True).start()
        begun = _Try(webhook, line, len(body))
        self._tries.add(begun)
        begun.task = self._loop.create_task(self._follow(begun, ended))

    def _post(self, webhook: Webhook, body: bytes, line: WebhookConnection, ended: asyncio.Future[str | None]) -> None:
        """The thread of a try; ``ended`` is to have what was wrong when there is no answer."""
        why: str | None = None
        try:
            from supervisor.webhooks.post import post  # noqa: PLC0415 - `requests` is large, and most programs post nothing

            why = post(line, webhook.url, body, headers(webhook.id, body, int(time.time()), self._key))
        except Exception as error:  # noqa: BLE001 - a traceback would show the URL, and this is a thread's last
            why = f"a fault of this program ({type(error).__name__})"
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(ended.set_result, why)

    async def _follow(self, begun: _Try, ended: asyncio.Future[str | None]) -> None:
        """Write what came of a try once its thread has ended, or its time is over; cancelled before, it was none."""
        receiver = begun.webhook.receiver
        await asyncio.wait([ended], timeout=self._timeout)
        status = begun.line.status  # before it is cut: half a head would pass for an answer
        begun.line.cut()
        if ended.done():
            self._remember(receiver)
            why = ended.result()
        else:
            why = f"no answer within {self._timeout:g} s"
            if status is None:
                self._answering.pop(receiver, None)
        await self._write(begun.webhook, None if status == 200 else _reason(status, why))
        begun.written = True
        self._wake()
        await asyncio.wait([ended])  # the thread may wait for a name to be resolved, which nothing can end
        self._tries.discard(begun)
        self._wake()

    def _remember(self, receiver: str) -> None:
        """It answers, or refuses at once, which costs as little."""
        self._answering.pop(receiver, None)
        self._answering[receiver] = None
        if len(self._answering) > KNOWN_RECEIVERS:
            del self._answering[next(iter(self._answering))]

    async def _write(self, webhook: Webhook, failure: str | None) -> None:
        """Write that a try is over, ``failure``: in vain. Nothing can change that any more."""
        tries = webhook.tries + 1
        again = failure is not None and tries <= self._retries
        write: Write = PutOffWebhook(webhook.id, _wall_ms() + self._delay_ms) if again else DropWebhook(webhook.id)
        await self._engine.write(write)
        if failure is None:
            self.delivered += 1
        elif not again:
            self.failed += 1
            self._engine.notify(WebhookGivenUp(webhook.job, webhook.receiver, tries, failure))


def _reason(status: int | None, why: str | None) -> str:
    if status is None:
        return why or "no answer"
    return f"{status} (redirects are not followed)" if 300 <= status < 400 else str(status)


def _is_not_ours(record: logging.LogRecord) -> bool:
    return not str(record.threadName).startswith(THREAD)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
