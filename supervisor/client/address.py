"""The address of a supervisor, parsed from a URL, and connections to it, over TCP or a Unix socket; in a client's process."""

from __future__ import annotations

import http.client
import re
import socket
import urllib.parse

import msgspec

from supervisor.errors import UsageError


class Address(msgspec.Struct, frozen=True):
    """The address of a supervisor: ``socket`` (a path), or ``host`` and ``port``; ``prefix`` precedes every path."""

    text: str
    host: str
    port: int
    socket: str | None = None
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse ``url``: ``http(s)://HOST[:PORT]`` with or without ``/v2/ENDPOINT``, or ``unix:///PATH``.

        Raises:
            UsageError: it is none of these.
        """
        text = url.strip()
        if "://" not in text:
            text = f"http://{text}"
        try:
            parts = urllib.parse.urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL: {error}") from error
        if parts.scheme == "unix":
            path = urllib.parse.unquote(parts.netloc + parts.path)
            if not path.startswith("/"):
                raise UsageError(f"{url!r} names no socket: write unix:///path/of.sock")
            return cls(text, "localhost", 0, socket=path)
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(f"{url!r} is no URL of a supervisor: write http://HOST:PORT or unix:///path/of.sock")
        tls = parts.scheme == "https"
        prefix = urllib.parse.quote(re.sub(r"/v2$", "", parts.path.rstrip("/")), safe="/%:@")
        return cls(text, host, port or (443 if tls else 80), tls=tls, prefix=prefix)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection, not yet open."""
        if self.socket is not None:
            return _UnixConnection(self.socket, timeout)
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; its ``Host`` is ``localhost``."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
