"""Runs the application on sockets inside the supervisor's loop: listening, accepting, and a stop that lets answers finish.

Uvicorn's protocol does the HTTP. Its ``Server`` is not used: it takes the process's signals, and stops by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import stat
from email.utils import formatdate
from pathlib import Path

from uvicorn.config import Config
from uvicorn.server import ServerState

from supervisor.api.app import App
from supervisor.api.http import connection_limit
from supervisor.api.http.connection import KEEP_ALIVE_S, Connection
from supervisor.api.http.connection_limit import ConnectionLimiter
from supervisor.errors import UsageError

BACKLOG = 2048
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
FLUSH_S = 1.0
"""Seconds that responses cut short, and bytes still buffered, get before their connections are closed."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets listening on every address of ``host``; port 0 picks a free one, the same for all.

    Raises:
        UsageError: the port is taken or not allowed, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name can be so, such as one with an empty part
        why = error.strerror or error if isinstance(error, OSError) else "no host can have this name"
        raise UsageError(f"--host {host}: {why}") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            same = sockets[0].getsockname()[1] if sockets else port
            sockets.append(socket.create_server((address[0], same, *address[2:]), family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
        except OSError as error:  # noqa: PERF203 - two addresses at most
            if error.errno in _NOT_HERE and (sockets or address != found[-1][4]):
                continue  # such as ::1 of localhost, where IPv6 is off
            for sock in sockets:
                sock.close()
            if error.errno == errno.EADDRINUSE and sockets and not port:
                return listen(host, port)  # it was free on the first address only; the next may be on all
            raise UsageError(_why_not(host, port, error)) from error
    return sockets


def listen_unix(path: Path) -> socket.socket:
    """Return a Unix socket listening at ``path``, open to this user only; replaces a stale one.

    Raises:
        UsageError: the path is too long, or nothing can be created there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                path.unlink()
        os.fchmod(sock.fileno(), 0o600)  # bind gives the file the socket's own mode (unix_bind_bsd in the kernel)
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


def url_of(host: str, sockets: list[socket.socket]) -> str:
    """Return ``http://HOST:PORT`` for the result of ``listen(host, …)``."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sockets[0].getsockname()[1]}"


class Server:
    """Serves one application on some sockets, which it owns from then on."""

    def __init__(self, app: App, sockets: list[socket.socket], most: int = connection_limit.MOST) -> None:
        """Prepare to serve ``app`` from ``start`` on, to ``most`` clients at once (``connection_limit.MOST`` at most)."""
        self._app = app
        self._sockets = sockets
        self._most = most
        self._servers: list[asyncio.AbstractServer] = []
        self._state = ServerState()
        self._clock: asyncio.Task[None] | None = None
        self._all_gone: asyncio.Future[None] | None = None
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",  # uvicorn must not write to the terminal; the application logs what matters
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )

    async def start(self) -> None:
        """Accept requests from now on."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._set_date()
        self._clock = loop.create_task(self._tick())
        connection = functools.partial(Connection, self._config, self._state, ConnectionLimiter(self._most), self._lost)
        for sock in self._sockets:
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(connection, sock=sock, backlog=BACKLOG))

    async def stop(self, timeout: float) -> None:
        """Stop accepting, and let running responses finish for at most ``timeout`` seconds; then close all connections.

        Requests that wait for a job answer with its current state, as no job will end any more.
        """
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        self._app.waits.end()
        await self._answered(timeout)
        for connection in list(self._state.connections):
            if isinstance(connection, Connection) and connection.reading:
                connection.transport.close()
        await self._answered(FLUSH_S)
        for connection in list(self._state.connections):
            connection.transport.close()
        await self._gone(FLUSH_S)
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await self._answered(FLUSH_S)
        if self._clock is not None:
            self._clock.cancel()

    async def _answered(self, timeout: float) -> None:
        """Wait until no request is being answered. A finished one may start the next of the same connection."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._state.tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(set(self._state.tasks), timeout=left)

    async def _gone(self, timeout: float) -> None:
        if self._state.connections:
            self._all_gone = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._all_gone,), timeout=timeout)

    def _lost(self) -> None:
        if self._all_gone is not None and not self._state.connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._set_date()

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]


def _why_not(host: str, port: int, error: OSError) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {place}: {_listener(port)} listens there; choose another --port, or 0 for any free one"
        )
    why = os.strerror(error.errno) if error.errno else error
    return f"cannot listen on {place}: {why}"


def _listener(port: int) -> str:
    """Name the process that listens on ``port``, as far as this user may know."""
    import psutil  # noqa: PLC0415 - only a start that fails pays for it

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {process.pid})"
    return "another program"
