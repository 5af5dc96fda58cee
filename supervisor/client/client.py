"""The API from the other side: asks a running supervisor, over TCP or a Unix socket; for `supervise top` and the client commands.

Built on ``http.client``: it brings a Unix socket in five lines, and the screen's process stays small (measured beside an
empty interpreter: +8 MiB and 30 ms; ``requests``: +19 MiB and 100 ms). Every call opens a connection of its own, so one
``Client`` may be used from several threads, and a supervisor that restarts is simply found again. Proxy variables of the
environment are not read.
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
"""Where `supervise HANDLER` listens when nothing else was said."""

PATIENCE_S = 60.0
"""How long following a job goes on while its supervisor is away: the job is on its disk, and it may be starting anew."""

RETRY_S = 0.5
"""The pause between two attempts to find it again."""

SILENCE_S = 45.0
"""How long a stream may say nothing at all: the supervisor sends something every 15 s."""

_AWAY = (502, 503, 504)
_PAGE = 1000
_PIECE = 64 * 1024

T = TypeVar("T")


class JobView(JobAnswer, frozen=True, kw_only=True):
    """A job as ``/status`` shows it; ``text`` is all of it, as the supervisor wrote it, new fields too."""

    text: msgspec.Raw = msgspec.Raw()


class _Page(msgspec.Struct, frozen=True):
    """The answer of ``/requests``."""

    requests: tuple[msgspec.Raw, ...]
    next: str | None


class Client:
    """A running supervisor."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 5.0) -> None:
        """Talk to the supervisor at ``url``; each wait for it lasts ``timeout`` seconds at most.

        Raises:
            UsageError: ``url`` is none, or ``api_key`` cannot be one.
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
        """The URL as it was given."""
        return self.address.text

    def snapshot(self) -> Snapshot:
        """Everything a screen shows, now."""
        return self.ask("GET", "/snapshot", Snapshot)

    def cancel(self, job: str) -> Accepted:
        """Cancel ``job``; its state then (that of a job already ended stays)."""
        return self.ask("POST", f"/cancel/{_quote(job)}", Accepted)

    def retry(self, job: str) -> Accepted:
        """Queue ``job``, which failed or timed out, once more."""
        return self.ask("POST", f"/retry/{_quote(job)}", Accepted)

    def submit(self, body: bytes, idempotency_key: str | None = None) -> Accepted:
        """Submit the request body ``body`` (JSON). The same ``idempotency_key`` twice means the same job.

        Raises:
            UsageError: that key cannot be sent.
        """
        if idempotency_key is None:
            return self.ask("POST", "/run", Accepted, body)
        if not (idempotency_key.isascii() and idempotency_key.isprintable()):
            raise UsageError("an idempotency key is printable ASCII text")
        return self.ask("POST", "/run", Accepted, body, {"Idempotency-Key": idempotency_key})

    def job(self, job: str) -> JobView:
        """``job`` as it is now."""
        return self._job(f"/status/{_quote(job)}")

    def jobs(self, status: JobStatus | None = None, limit: int | None = None) -> Iterator[JobView]:
        """The jobs (in state ``status``), newest first, ``limit`` of them at most; asked for a page at a time."""
        left, after = limit, ""
        while left is None or left > 0:
            fields = {"status": status.value if status else "", "limit": min(left or _PAGE, _PAGE), "after": after}
            path = f"/requests?{urllib.parse.urlencode(fields)}"
            page = self.ask("GET", path, _Page)
            yield from (self._viewed(path, text) for text in page.requests)
            if page.next is None:
                return
            left, after = None if left is None else left - len(page.requests), page.next

    def watch(self, job: str, every_s: float = 30.0) -> Iterator[JobView]:
        """``job`` as it is now, then each ``every_s`` seconds (from 1 on), and at last as it ended, at once when it ends.

        A supervisor that goes away meanwhile is waited for, ``PATIENCE_S`` seconds at most.
        """
        path = f"/status-sync/{_quote(job)}?wait={every_s * 1000:.0f}"
        patient = self._with_timeout(every_s + self.timeout)
        view = self.job(job)
        yield view
        while not view.status.terminal:
            asked_at = time.monotonic()
            view = patient._patiently(lambda: patient._job(path))
            yield view
            if not view.status.terminal and time.monotonic() < asked_at + RETRY_S:
                time.sleep(RETRY_S)  # a supervisor that is about to end lets nobody wait

    def chunks(self, job: str) -> Iterator[bytes]:
        """The stream chunks of ``job`` from the first one on, ``{"output": …}`` each, as they come, until it has ended."""
        return (event.data for event in self.events(f"/stream/{_quote(job)}"))

    def log(self, job: str) -> Iterator[bytes]:
        """What ``job`` has printed, by lines."""
        with self.open("GET", f"/logs/{_quote(job)}") as response:
            while True:
                with self._talking():
                    line = response.readline()
                if not line:
                    return
                yield line

    def follow_log(self, job: str) -> Iterator[bytes]:
        """What ``job`` has printed and prints, some lines at a time, until it has ended."""
        return (event.data + b"\n" for event in self.events(f"/logs/{_quote(job)}?follow=1"))

    def workers(self) -> tuple[WorkerView, ...]:
        """The slots."""
        return self.ask("GET", "/workers", tuple[WorkerView, ...])

    def order(self, slot: str, what: str) -> SlotOrder:
        """Begin ``what`` (refresh, pause, resume) in ``slot``; its state says when that is done."""
        return self.ask("POST", f"/workers/{_quote(slot)}/{what}", SlotOrder)

    def events(self, path: str) -> Iterator[ServerSentEvent]:
        """The server-sent events of ``path`` until the one named ``end``.

        A connection that breaks is opened anew behind the last event; that is tried for ``PATIENCE_S`` seconds.

        Raises:
            ClientError: the first attempt failed, that time is over, or the supervisor refuses to go on.
        """
        listener = self._with_timeout(SILENCE_S)
        last: str | None = None
        until: float | None = None
        heard = False
        while True:
            try:
                for event in listener._heard(path, last):
                    if event is None:
                        heard, until = True, None
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
            if not heard or now >= until or not _may_come_back(broken):
                raise broken
            time.sleep(RETRY_S)

    # --- how it asks ----------------------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """What comes back for ``body`` (JSON text), decoded as ``answer``. It is never sent twice.

        Raises what ``open`` raises, and ``ClientError`` for an answer of another shape.
        """
        with self.open(method, path, body, headers) as response, self._talking():
            data = response.read()
        return self._decoded(path, data, answer)

    def _job(self, path: str) -> JobView:
        return self._viewed(path, self.ask("GET", path, msgspec.Raw))

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
        """The answer with a status below 300, its body still to be read. ``headers`` go before those of every request.

        Raises:
            UnreachableError: nobody listens there.
            RefusedError: it answered with an error.
            ClientError: it did not answer in time, or is no supervisor.
        """
        headers = {**self._headers, **({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        connection = self.address.connect(self.timeout)
        response: http.client.HTTPResponse | None = None
        try:
            with self._talking():
                connection.request(method, self.address.prefix + path, body, headers)
                response = connection.getresponse()
                refusal = response.read() if response.status >= 300 else None
            if refusal is not None:
                raise self._refused(path, response.status, refusal)
            yield response
        finally:
            if response is not None:
                response.close()  # the socket is its own by now: each answer ends its connection
            connection.close()

    def _heard(self, path: str, last: str | None) -> Iterator[ServerSentEvent | None]:
        """The events of one connection; ``None`` whenever something came, if only a sign of life."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        with self.open("GET", path, headers=headers) as response:
            parser = EventParser()
            while True:
                with self._talking():
                    data = response.read1(_PIECE)
                if not data:
                    return
                yield None
                yield from parser.feed(data)

    def _with_timeout(self, timeout: float) -> Client:
        other = copy.copy(self)
        other.timeout = timeout
        return other

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What ``ask`` gives; asked again while the supervisor is away."""
        until = time.monotonic() + self.timeout + PATIENCE_S
        while True:
            try:
                return ask()
            except ClientError as error:
                if time.monotonic() >= until or not _may_come_back(error):
                    raise
            time.sleep(RETRY_S)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """What goes wrong on the wire, in words."""
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
            said = msgspec.json.decode(body, type=Error).error
        except msgspec.MsgspecError:
            said = ""
        if status == 401:
            text = f"{self.url} wants a key: give the right one with --api-key or SUPERVISE_API_KEY"
            return RefusedError(status, text)
        if status == 404 and not said:
            return RefusedError(status, f"{self.url} knows no {path}; is it a supervisor, and of this version?")
        reason = said or http.client.responses.get(status, "an error")
        return RefusedError(status, f"{self.url} refused {path}: {reason} (HTTP {status})")


def _may_come_back(error: ClientError) -> bool:
    """Whether the supervisor may be there in a moment: it is away, or goes."""
    return not isinstance(error, RefusedError) or error.status in _AWAY


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")
