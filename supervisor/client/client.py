"""Client of a running supervisor's API, over TCP or a Unix socket; for `supervise top` and the client commands.

Built on ``http.client``: it supports Unix sockets in five lines, and keeps the process small (measured against an empty
interpreter: +8 MiB and 30 ms; ``requests``: +19 MiB and 100 ms). Every call opens its own connection, so a ``Client`` may be used
from several threads, and survives a restart of the supervisor. Proxy variables of the environment are ignored.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import msgspec

from supervisor.client.address import Address
from supervisor.errors import ClientError, RefusedError, UnreachableError, UsageError
from supervisor.job import JobStatus
from supervisor.protocol.answers import Accepted, Error, JobAnswer, SlotOrder
from supervisor.protocol.sse import EventParser, ServerSentEvent
from supervisor.protocol.views import Snapshot, WorkerView

DEFAULT_URL = "http://127.0.0.1:8900"
"""Where `supervise HANDLER` listens by default."""

PATIENCE_S = 60.0
"""Seconds that following a job goes on while its supervisor is away: it may be restarting, with the job on its disk."""

RETRY_S = 0.5
"""Seconds between two attempts to reconnect."""

SILENCE_S = 45.0
"""Seconds a stream may be silent: the supervisor sends something every 15 s."""

_AWAY = (502, 503, 504)
_PAGE = 1000
_PIECE = 64 * 1024

T = TypeVar("T")


class JobView(JobAnswer, frozen=True, kw_only=True):
    """A job as ``/status`` shows it; ``text`` is the supervisor's whole JSON, including fields unknown here."""

    text: msgspec.Raw = msgspec.Raw()


class _Page(msgspec.Struct, frozen=True):
    """The response of ``/requests``."""

    requests: tuple[msgspec.Raw, ...]
    next: str | None


class Client:
    """Client of a running supervisor."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 5.0) -> None:
        """Connect to ``url``; each wait for the supervisor lasts ``timeout`` seconds at most.

        Raises:
            UsageError: ``url`` or ``api_key`` is invalid.
        """
        self.address = Address.parse(url)
        self.timeout = timeout
        self._headers = {"Accept": "application/json", "Connection": "close", "User-Agent": "supervise"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise UsageError("an API key is printable ASCII text")
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def url(self) -> str:
        """The given URL."""
        return self.address.text

    def snapshot(self) -> Snapshot:
        """Get the current state, all that the dashboard shows."""
        return self.request("GET", "/snapshot", Snapshot)

    def cancel(self, job: str) -> Accepted:
        """Cancel ``job`` and return its state (unchanged if it had ended)."""
        return self.request("POST", f"/cancel/{_quote(job)}", Accepted)

    def retry(self, job: str) -> Accepted:
        """Retry ``job``, which failed or timed out."""
        return self.request("POST", f"/retry/{_quote(job)}", Accepted)

    def submit(self, body: bytes, idempotency_key: str | None = None) -> Accepted:
        """Submit the request body ``body`` (JSON). The same ``idempotency_key`` twice means the same job.

        Raises:
            UsageError: the key cannot be sent.
        """
        if idempotency_key is None:
            return self.request("POST", "/run", Accepted, body)
        if not (idempotency_key.isascii() and idempotency_key.isprintable()):
            raise UsageError("an idempotency key is printable ASCII text")
        return self.request("POST", "/run", Accepted, body, {"Idempotency-Key": idempotency_key})

    def job(self, job: str) -> JobView:
        """Get the current status of ``job``."""
        return self._job(f"/status/{_quote(job)}")

    def jobs(self, status: JobStatus | None = None, limit: int | None = None) -> Iterator[JobView]:
        """Yield the jobs (in state ``status``), newest first, ``limit`` at most; fetches a page at a time."""
        left, after = limit, ""
        while left is None or left > 0:
            fields = {"status": status.value if status else "", "limit": min(left or _PAGE, _PAGE), "after": after}
            path = f"/requests?{urllib.parse.urlencode(fields)}"
            page = self.request("GET", path, _Page)
            yield from (self._viewed(path, text) for text in page.requests)
            if page.next is None:
                return
            left, after = None if left is None else left - len(page.requests), page.next

    def watch(self, job: str, every_s: float = 30.0) -> Iterator[JobView]:
        """Yield the status of ``job`` now, every ``every_s`` seconds (from 1 on), and at once when it ends.

        If the supervisor goes away meanwhile, wait for it for up to ``PATIENCE_S`` seconds.
        """
        path = f"/status-sync/{_quote(job)}?wait={every_s * 1000:.0f}"
        patient = self._with_timeout(every_s + self.timeout)
        view = self.job(job)
        yield view
        while not view.status.terminal:
            requested_at = time.monotonic()
            view = patient._with_retries(lambda: patient._job(path))
            yield view
            if not view.status.terminal and time.monotonic() < requested_at + RETRY_S:
                time.sleep(RETRY_S)  # a supervisor that is about to stop answers at once

    def chunks(self, job: str) -> Iterator[bytes]:
        """Yield the stream chunks of ``job``, each ``{"output": …}``, from the first one on, as they come, until it ends."""
        return (event.data for event in self.events(f"/stream/{_quote(job)}"))

    def log(self, job: str) -> Iterator[bytes]:
        """Yield the lines that ``job`` has printed."""
        with self.open("GET", f"/logs/{_quote(job)}") as response:
            while True:
                with self._translated_errors():
                    line = response.readline()
                if not line:
                    return
                yield line

    def follow_log(self, job: str) -> Iterator[bytes]:
        """Yield the output of ``job``, past and future, some lines at a time, until it ends."""
        return (event.data + b"\n" for event in self.events(f"/logs/{_quote(job)}?follow=1"))

    def workers(self) -> tuple[WorkerView, ...]:
        """Get the slots and their workers."""
        return self.request("GET", "/workers", tuple[WorkerView, ...])

    def order(self, slot: str, what: str) -> SlotOrder:
        """Send the command ``what`` (refresh, pause, resume) to ``slot``; watch the slot's state for completion."""
        return self.request("POST", f"/workers/{_quote(slot)}/{what}", SlotOrder)

    def events(self, path: str) -> Iterator[ServerSentEvent]:
        """Yield the server-sent events of ``path`` until the one named ``end``.

        After a broken connection, reconnect and resume after the last event, for up to ``PATIENCE_S`` seconds.

        Raises:
            ClientError: the first attempt failed, the time is over, or the supervisor refuses to go on.
        """
        reader = self._with_timeout(SILENCE_S)
        last: str | None = None
        until: float | None = None
        connected = False
        while True:
            try:
                for event in reader._read_events(path, last):
                    if event is None:
                        connected, until = True, None
                    elif event.name == "end":
                        return
                    else:
                        last = event.id or last
                        yield event
                broken = ClientError(f"{self.url}{path} broke off")
            except ClientError as error:
                broken = error
            now = time.monotonic()
            until = until or now + PATIENCE_S
            if not connected or now >= until or not _is_temporary(broken):
                raise broken
            time.sleep(RETRY_S)

    # --- requests -------------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send ``body`` (JSON text), once only, and return the response decoded as ``answer``.

        Raises what ``open`` raises, and ``ClientError`` for a response of another type.
        """
        with self.open(method, path, body, headers) as response, self._translated_errors():
            data = response.read()
        return self._decoded(path, data, answer)

    def _job(self, path: str) -> JobView:
        return self._viewed(path, self.request("GET", path, msgspec.Raw))

    def _viewed(self, path: str, text: msgspec.Raw) -> JobView:
        return msgspec.structs.replace(self._decoded(path, text, JobView), text=text)

    def _decoded(self, path: str, data: bytes | msgspec.Raw, answer: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=answer)
        except msgspec.MsgspecError as error:
            raise ClientError(
                f"{self.url}{path} answered something unexpected ({error}); is it a supervisor, and of this version?"
            ) from error

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yield the response, whose body is unread, if its status is below 300.

        ``headers`` override the common ones.

        Raises:
            UnreachableError: no process listens there.
            RefusedError: the supervisor returned an error.
            ClientError: it did not respond in time, or is no supervisor.
        """
        headers = {**self._headers, **({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        connection = self.address.connect(self.timeout)
        response: http.client.HTTPResponse | None = None
        try:
            with self._translated_errors():
                connection.request(method, self.address.prefix + path, body, headers)
                response = connection.getresponse()
                refusal = response.read() if response.status >= 300 else None
            if refusal is not None:
                raise self._refused(path, response.status, refusal)
            yield response
        finally:
            if response is not None:
                response.close()  # it owns the socket by now, as each response ends its connection
            connection.close()

    def _read_events(self, path: str, last: str | None) -> Iterator[ServerSentEvent | None]:
        """Yield the events of one connection, and None whenever data arrived, if only a ping."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        with self.open("GET", path, headers=headers) as response:
            parser = EventParser()
            while True:
                with self._translated_errors():
                    data = response.read1(_PIECE)
                if not data:
                    return
                yield None
                yield from parser.feed(data)

    def _with_timeout(self, timeout: float) -> Client:
        other = copy.copy(self)
        other.timeout = timeout
        return other

    def _with_retries(self, request: Callable[[], T]) -> T:
        """Return the result of ``request``, retried while the supervisor is away."""
        until = time.monotonic() + self.timeout + PATIENCE_S
        while True:
            try:
                return request()
            except ClientError as error:
                if time.monotonic() >= until or not _is_temporary(error):
                    raise
            time.sleep(RETRY_S)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors of the connection into ``ClientError`` with a readable message."""
        try:
            yield
        except TimeoutError as error:
            raise ClientError(
                f"the supervisor at {self.url} did not answer within {self.timeout:g} s; it may be stopped or very busy"
            ) from error
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise UnreachableError(
                f"no supervisor answers at {self.url}; start one with: supervise HANDLER"
                " (or name another with --url or SUPERVISE_URL)"
            ) from error
        except (OSError, UnicodeError) as error:
            raise ClientError(f"cannot talk to {self.url}: {error}") from error
        except http.client.HTTPException as error:
            raise ClientError(
                f"what answers at {self.url} does not speak HTTP as a supervisor does ({type(error).__name__})"
            ) from error

    def _refused(self, path: str, status: int, body: bytes) -> RefusedError:
        try:
            message = msgspec.json.decode(body, type=Error).error
        except msgspec.MsgspecError:
            message = ""
        if status == 401:
            text = f"{self.url} requires a valid API key (--api-key or SUPERVISE_API_KEY)"
            return RefusedError(status, text)
        if status == 404 and not message:
            return RefusedError(status, f"{self.url} knows no {path}; is it a supervisor, and of this version?")
        reason = message or http.client.responses.get(status, "an error")
        return RefusedError(status, f"{self.url} refused {path}: {reason} (HTTP {status})")


def _is_temporary(error: ClientError) -> bool:
    """Return whether the supervisor may soon respond again: it is unreachable, or stopping."""
    return not isinstance(error, RefusedError) or error.status in _AWAY


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")
