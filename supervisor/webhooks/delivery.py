"""Delivers the webhooks of the store's outbox when due, in threads, within limits per receiver; in the supervisor's loop.

The result of a try is written before the next one starts, so tries under way when the supervisor is killed are repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from supervisor.config.kinds import webhook_key
from supervisor.config.settings import Settings
from supervisor.errors import StoreError
from supervisor.notice import Notice, Task, TaskFailed, WebhookGivenUp, WebhooksLost
from supervisor.store.outbox import Outbox, Webhook
from supervisor.store.writes import DropWebhook, PutOffWebhook, Write
from supervisor.waiting import Condition
from supervisor.webhooks.connection import Resolve, WebhookConnection
from supervisor.webhooks.signature import headers

TRIES = 128
"""Maximum number of concurrent tries, each in its own thread."""

TRIES_PER_RECEIVER = 8
"""Maximum for a receiver that answered the last try."""

TRIES_PER_UNKNOWN = 4
"""Maximum for one that did not, or was never tried; all of these share half of ``TRIES``, so they cannot block the others."""

KNOWN_RECEIVERS = 1000
"""Number of receivers remembered to have answered, the most recent ones."""

BODY_BYTES = 256 * 2**20
"""Bytes of bodies in memory above which no further try starts."""

READ_BYTES = 2**20
"""Bytes of bodies read in one pass; then the loop runs other callbacks."""

READ_AGAIN_S = 10.0
"""Seconds until the next pass after an error of the outbox or of starting a thread."""

CLOSE_S = 2.0
"""Seconds that tries under way get at the end."""

THREAD = "webhook to"
"""Prefix of the names of the threads."""

LOGGERS = ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry")
"""They log whole URLs, even as warnings, which Python prints by default: records of our threads are dropped."""


class DeliveryEngine(Protocol):
    """The part of the engine that delivery uses."""

    settings: Settings
    outbox: Outbox
    on_webhook: Callable[[], None] | None

    def write(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done once it is on disk."""

    def notify(self, notice: Notice) -> None:
        """Publish ``notice``."""


class _Try:
    """One try. It counts towards the limits until its thread has ended and its result is on disk (``written``)."""

    def __init__(self, webhook: Webhook, connection: WebhookConnection, size: int) -> None:
        self.webhook = webhook
        self.connection = connection
        self.size = size
        self.written = False
        self.task: asyncio.Task[None]


class Webhooks:
    """Delivers webhooks; call its methods in the loop's thread. ``delivered`` and ``failed`` count since the start."""

    def __init__(
        self, engine: DeliveryEngine, loop: asyncio.AbstractEventLoop, resolve: Resolve = socket.getaddrinfo
    ) -> None:
        """Deliver the engine's outbox, from ``start`` on; ``resolve`` resolves host names."""
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
        self._answering: dict[str, None] = {}  # the most recent one is the last key
        self._read = 0
        self._closed = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._changed = Condition(loop, loop.time)

    @property
    def pending(self) -> int:
        """Number of webhooks that wait for a try or are under way."""
        return self._engine.outbox.count()

    def start(self) -> None:
        """Deliver webhooks from now on."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_from_other_threads)
        self._engine.on_webhook = self._wake
        self._wake()

    async def finish(self, timeout: float, at_once: asyncio.Event) -> None:
        """Deliver all that is left of an outbox that ends with the program, and report what could not be.

        Takes ``timeout`` seconds at most, or until ``at_once`` is set.
        """
        await self._changed.until(
            lambda: not self._under_way() and not self._engine.outbox.receivers(), timeout, at_once
        )
        left = self.pending
        if left:
            self._engine.notify(WebhooksLost(left))

    async def close(self, at_once: asyncio.Event) -> None:
        """Start no more tries, and give those under way ``CLOSE_S``, or until ``at_once`` is set.

        Those left stay in the outbox as if they had not been tried.
        """
        self._closed = True
        self._engine.on_webhook = None
        if self._timer is not None:
            self._timer.cancel()
        await self._changed.until(lambda: not self._under_way(), CLOSE_S, at_once)
        for each in self._tries:
            each.connection.cut()
            each.task.cancel()
        await asyncio.gather(*(each.task for each in self._tries), return_exceptions=True)

    def _under_way(self) -> bool:
        return not all(each.written for each in self._tries)

    # --- what is due ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Schedule a pass; several calls share one."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        """Start the tries that are due and within the limits, and schedule the next pass."""
        self._scheduled = False
        self._changed.notify()
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            wait = self._begin_all()
        except (StoreError, RuntimeError) as error:  # RuntimeError: no more threads
            self._engine.notify(TaskFailed(Task.DELIVER_WEBHOOKS, str(error)))
            wait = READ_AGAIN_S
        if wait is not None:
            self._timer = self._loop.call_later(wait, self._wake)

    def _begin_all(self) -> float | None:
        """Start tries; return the seconds until the next is due, or None."""
        now_ms = _wall_ms()
        self._read = 0
        receivers = self._engine.outbox.receivers()
        waits = [wait for name, _ in receivers if (wait := self._begin(name, now_ms)) is not None]
        return min(waits, default=None)

    def _begin(self, receiver: str, now_ms: int) -> float | None:
        """Start tries at ``receiver``; return the seconds until the next is due, None if it must wait for one to end."""
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
        """Return how many more tries at ``receiver`` may start now."""
        room = TRIES - len(self._tries)
        if receiver in self._answering:
            return min(room, TRIES_PER_RECEIVER - under_way)
        unknown = sum(each.webhook.receiver not in self._answering for each in self._tries)
        return min(room, TRIES_PER_UNKNOWN - under_way, TRIES // 2 - unknown)

    # --- one try --------------------------------------------------------------------------------------------------------

    def _try(self, webhook: Webhook) -> None:
        body = self._engine.outbox.body(webhook.id)
        if body is None:
            return
        self._read += len(body)
        connection = WebhookConnection(self._timeout, deny_private=self._deny_private, resolve=self._resolve)
        ended: asyncio.Future[str | None] = self._loop.create_future()
        name = f"{THREAD} {webhook.receiver}"
        threading.Thread(target=self._post, args=(webhook, body, connection, ended), name=name, daemon=True).start()
        begun = _Try(webhook, connection, len(body))
        self._tries.add(begun)
        begun.task = self._loop.create_task(self._follow(begun, ended))

    def _post(
        self, webhook: Webhook, body: bytes, connection: WebhookConnection, ended: asyncio.Future[str | None]
    ) -> None:
        """Run a try in its thread; set ``ended`` to None, or to the reason why there is no response."""
        why: str | None = None
        try:
            from supervisor.webhooks.post import post  # noqa: PLC0415 - `requests` is large, and most programs post nothing

            why = post(connection, webhook.url, body, headers(webhook.id, body, int(time.time()), self._key))
        except Exception as error:  # noqa: BLE001 - a traceback would show the URL, and the thread ends here
            why = f"a fault of this program ({type(error).__name__})"
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(ended.set_result, why)

    async def _follow(self, begun: _Try, ended: asyncio.Future[str | None]) -> None:
        """Write the result of a try once its thread has ended or its time is over; nothing if cancelled before."""
        receiver = begun.webhook.receiver
        await asyncio.wait([ended], timeout=self._timeout)
        status = begun.connection.status  # read before cutting: a truncated header could pass for a response
        begun.connection.cut()
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
        await asyncio.wait([ended])  # the thread may be resolving a name, which cannot be interrupted
        self._tries.discard(begun)
        self._wake()

    def _remember(self, receiver: str) -> None:
        """Note that ``receiver`` answers, or rejects at once, which costs as little."""
        self._answering.pop(receiver, None)
        self._answering[receiver] = None
        if len(self._answering) > KNOWN_RECEIVERS:
            del self._answering[next(iter(self._answering))]

    async def _write(self, webhook: Webhook, failure: str | None) -> None:
        """Write the result of a try, which is final; ``failure`` says why it failed, None if it did not."""
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


def _from_other_threads(record: logging.LogRecord) -> bool:
    return not str(record.threadName).startswith(THREAD)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
