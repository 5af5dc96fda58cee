"""One client's connection to a house: kept alive, opened again when it breaks, every answer put into the journal."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping

from tests.chaos.journal import NO_ANSWER, NOT_SENT, Exchange, Journal, exchange

ANSWER_S = 40.0
"""How long an answer may take that the client waits for; the longest `wait` that clients ask for is much shorter."""


class Talk:
    """A connection for one thread."""

    def __init__(self, journal: Journal, name: str, port: Callable[[], int]) -> None:
        """Talk to whoever listens on ``port()`` (0: nobody does now)."""
        self._journal = journal
        self._name = name
        self._port = port
        self._connection: http.client.HTTPConnection | None = None
        self._connected_to = 0

    def ask(
        self,
        ticket: str,
        op: str,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = ANSWER_S,
    ) -> tuple[Exchange, bytes]:
        """One request, and the whole body of its answer (empty without one)."""
        data = None if body is None else json.dumps(body).encode()
        sent = time.monotonic()
        code, answer, note = NO_ANSWER, b"", ""
        try:
            connection = self._open(timeout)
        except OSError as error:
            code, note = NOT_SENT, str(error)
        else:
            try:
                connection.request(method, path, data, dict(headers or {}))
                response = connection.getresponse()
                answer = response.read()
                code = response.status
            except (OSError, http.client.HTTPException) as error:
                answer, note = b"", f"{type(error).__name__}: {error}"
                self.close()
        done = exchange(ticket, self._name, op, path, sent, code, answer, note)
        self._journal.exchanges.append(done)
        return done, answer

    def leave(self, ticket: str, op: str, method: str, path: str, body: object = None) -> None:
        """Send a request and hang up."""
        data = None if body is None else json.dumps(body).encode()
        sent = time.monotonic()
        code = NOT_SENT
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = self._open(ANSWER_S)
            code = NO_ANSWER
            connection.request(method, path, data)
        self.close()
        self._journal.exchanges.append(exchange(ticket, self._name, op, path, sent, code, b"", "left"))

    def events(
        self, ticket: str, path: str, last_id: int | None, give_up: Callable[[], bool]
    ) -> Iterator[tuple[str, int, str]]:
        """The server-sent events of ``path``: name, id (-1: none) and data of each, until ``end``, a break, or ``give_up``."""
        headers = {"Accept": "text/event-stream", **({} if last_id is None else {"Last-Event-ID": str(last_id)})}
        sent = time.monotonic()
        code, note = NOT_SENT, ""
        data: list[str]
        connection = http.client.HTTPConnection("127.0.0.1", self._port() or 1, timeout=ANSWER_S)
        try:
            connection.connect()
            code = NO_ANSWER
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            code = response.status
            name, number, data = "", -1, []
            while not give_up() and (raw := response.readline()):
                line = raw.decode().rstrip("\n")
                if not line:
                    if data:
                        yield name, number, "\n".join(data)
                    name, number, data = "", -1, []
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("data: "):
                    data.append(line[6:])
        except (OSError, http.client.HTTPException) as error:
            note = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
            self._journal.exchanges.append(exchange(ticket, self._name, "events", path, sent, code, b"", note))

    def close(self) -> None:
        """Hang up; the next request opens a connection again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        port = self._port()
        if not port:
            raise ConnectionRefusedError("nobody listens")
        if self._connection is None or self._connected_to != port or self._connection.sock is None:
            self.close()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
            connection.connect()
            self._connection, self._connected_to = connection, port
        self._connection.sock.settimeout(timeout)
        return self._connection
