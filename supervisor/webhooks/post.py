"""One try at a webhook: a POST by ``requests``, in a thread of the supervisor.

The environment's proxies and certificate authorities apply, as operators expect; ``.netrc`` does not, since it would send
credentials to any host named in a job. Tries share no cookies, and no connections, which may have gone stale.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from supervisor.config.settings import is_loopback
from supervisor.webhooks.connection import PrivateAddressError, WebhookConnection

ENOUGH = 65_536
"""Bytes of a response that are read and dropped, so that a receiver can finish sending an ordinary one."""


def post(connection: WebhookConnection, url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
    """Post ``body`` to ``url`` and store the response's status in ``connection``; return the reason if there is none.

    The reason contains no more of ``url`` than its host.
    """
    try:
        request = requests.Request("POST", url, data=body, headers=dict(headers)).prepare()
        with contextlib.closing(_Adapter(connection)) as adapter, requests.Session() as session:
            options: dict[str, Any] = {**session.merge_environment_settings(request.url, {}, True, None, None)}
            if connection.deny_private or is_loopback(urlsplit(url).hostname or ""):
                options["proxies"] = {}  # a proxy would hide the address, and its loopback is not ours
            _send(adapter, request, connection, options)
    except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        return explain(error)
    finally:
        connection.close()
    return None


def _send(
    adapter: HTTPAdapter, request: requests.PreparedRequest, connection: WebhookConnection, options: dict[str, Any]
) -> None:
    # Sent by the adapter: a session reads the whole body of a redirect, even of one that it must not follow.
    response = adapter.send(request, **{**options, "stream": True, "timeout": (connection.left, connection.left)})
    connection.status = response.status_code
    with contextlib.suppress(HTTPError, http.client.HTTPException, OSError, ValueError):  # only the status counts
        response.raw.read(ENOUGH, decode_content=False)
    response.close()


# --- connections that can be cut -----------------------------------------------------------------------------------------


class _Adapter(HTTPAdapter):
    """Opens all connections through one ``WebhookConnection``, by the usual ``_new_conn``: ``urllib3`` has no public hook."""

    def __init__(self, connection: WebhookConnection) -> None:
        self._connection = connection
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._connection)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # those have connections of their own
            manager.pool_classes_by_scheme = _pools(self._connection)
        return manager


def _pools(connection: WebhookConnection) -> dict[str, Any]:
    def opening(kind: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the connection class ``kind`` to open its sockets by ``connection``."""

        def make(*args: Any, **options: Any) -> Any:
            opened = kind(*args, **options)
            opened._new_conn = lambda: connection.connect(opened._dns_host, opened.port)
            return opened

        return make

    def pool_of(kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **options: Any) -> Any:
            pool = kind(*args, **options)
            pool.ConnectionCls = opening(pool.ConnectionCls)
            return pool

        return make

    return {"http": pool_of(HTTPConnectionPool), "https": pool_of(HTTPSConnectionPool)}


# --- what went wrong -----------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """Explain why there is no response, without the URL, which the libraries' own messages contain."""
    causes = list(_causes(error))
    prefix = "its proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    for cause in reversed(causes):  # the root cause is the most specific
        if (words := _words(cause)) is not None:
            return prefix + words
    if any(isinstance(cause, ValueError) for cause in causes):
        return f"{prefix}the URL cannot be used"
    return f"{prefix}{type(causes[-1]).__name__}"


def _words(cause: BaseException) -> str | None:
    for kind, words in _WORDS.items():
        if isinstance(cause, kind):
            return words.format(cause)
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or 'no answer'}"
    if isinstance(cause, http.client.HTTPException):
        return f"its answer is not HTTP ({type(cause).__name__})"
    return cause.strerror if isinstance(cause, OSError) and cause.errno is not None else None


_WORDS = {
    PrivateAddressError: "{0}",
    ssl.SSLCertVerificationError: "its certificate is not valid: {0.verify_message}",
    socket.gaierror: "its name cannot be resolved: {0.strerror}",
    http.client.RemoteDisconnected: "it closed the connection without an answer",
    TimeoutError: "no answer in time",
}
"""Messages by exception class; the first that matches is used."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and the chain of its causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
