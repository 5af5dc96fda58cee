"""One try at a webhook: a POST by ``requests``, in a thread of the supervisor.

Of the environment, proxies and certificate authorities count, as operators expect; ``.netrc`` does not, since it would give
credentials to whoever is named in a job. Nothing is kept from one try to the next: no cookies, no connections that may have gone
stale.
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
"""Bytes of an answer that are read, so that a receiver can finish an ordinary one; nothing is done with them."""


def post(line: WebhookConnection, url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
    """Post ``body`` to ``url`` and leave the answer's status in ``line``; what is wrong when there is none.

    That has no more of ``url`` in it than its host.
    """
    try:
        request = requests.Request("POST", url, data=body, headers=dict(headers)).prepare()
        with contextlib.closing(_Adapter(line)) as adapter, requests.Session() as session:
            options: dict[str, Any] = {**session.merge_environment_settings(request.url, {}, True, None, None)}
            if line.deny_private or is_loopback(urlsplit(url).hostname or ""):
                options["proxies"] = {}  # behind a proxy nobody sees the address, and a proxy's loopback is not ours
            _send(adapter, request, line, options)
    except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        return explain(error)
    finally:
        line.close()
    return None


def _send(
    adapter: HTTPAdapter, request: requests.PreparedRequest, line: WebhookConnection, options: dict[str, Any]
) -> None:
    # By the adapter: a session reads the whole body of a redirect, also of one that it is told not to follow.
    response = adapter.send(request, **{**options, "stream": True, "timeout": (line.left, line.left)})
    line.status = response.status_code
    with contextlib.suppress(HTTPError, http.client.HTTPException, OSError, ValueError):  # the status is what counts
        response.raw.read(ENOUGH, decode_content=False)
    response.close()


# --- connections that can be cut -----------------------------------------------------------------------------------------


class _Adapter(HTTPAdapter):
    """Has all connections made by one ``line``. (``urllib3`` has no public seam for that; ``_new_conn`` is the usual one.)"""

    def __init__(self, line: WebhookConnection) -> None:
        self._line = line
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._line)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # those have connections of their own
            manager.pool_classes_by_scheme = _pools(self._line)
        return manager


def _pools(line: WebhookConnection) -> dict[str, Any]:
    def on_line(kind: Callable[..., Any]) -> Callable[..., Any]:
        """Makes connections of this ``kind``, by ``line``."""

        def make(*args: Any, **options: Any) -> Any:
            connection = kind(*args, **options)
            connection._new_conn = lambda: line.connect(connection._dns_host, connection.port)
            return connection

        return make

    def pool_of(kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **options: Any) -> Any:
            pool = kind(*args, **options)
            pool.ConnectionCls = on_line(pool.ConnectionCls)
            return pool

        return make

    return {"http": pool_of(HTTPConnectionPool), "https": pool_of(HTTPSConnectionPool)}


# --- what went wrong -----------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """Why there is no answer, in words without the URL; the libraries' own messages have it in them."""
    causes = list(_causes(error))
    prefix = "its proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    for cause in reversed(causes):  # the first of them says most
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
"""What is looked for, the first before the others."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, what led to it, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
