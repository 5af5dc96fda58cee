"""Downloads with SSRF protection: only from public addresses, unless ``RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS`` is ``true``, and at
most ``RUNPOD_MAX_DOWNLOAD_BYTES`` (5 GiB); wherever the handler's code runs.

The rules and variables are those of runpod 1.12 (its documentation: "Download input files, SSRF protection").
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

_ALLOW_PRIVATE = "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"
_MAX_BYTES = "RUNPOD_MAX_DOWNLOAD_BYTES"
_MOST_BYTES = 5 * 1024**3
_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PIECE = 1024 * 1024
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT; older Pythons call it public
_HEADERS = {"User-Agent": "supervise (in place of runpod-python)"}


class SSRFError(ValueError):
    """A URL that must not be fetched. Not a ``requests`` error: it is neither retried nor treated as a failed download."""


@contextlib.contextmanager
def get(url: str, timeout: float) -> Iterator[Any]:
    """Yield a successful ``requests.Response`` for ``url``, its body not read yet. Follows redirects, and checks each of them.

    Raises:
        SSRFError: ``url``, or a redirect, must not be fetched.
        requests.RequestException: the request failed.
    """
    with _session() as session:
        hop = url
        for _ in range(_MOST_REDIRECTS + 1):
            _check_url(hop)
            response = session.get(hop, headers=_HEADERS, stream=True, timeout=timeout, allow_redirects=False)
            if response.status_code not in _REDIRECTS:
                with response:
                    response.raise_for_status()
                    yield response
                return
            response.close()
            target = response.headers.get("Location")
            if not target:
                raise SSRFError(f"redirect without Location header: {hop}")
            hop = urljoin(hop, target)
        raise SSRFError(f"exceeded maximum redirects ({_MOST_REDIRECTS}): {url}")


def save(response: Any, path: Path) -> None:
    """Write the body to ``path``.

    Raises:
        SSRFError: the body is larger than allowed.
        requests.RequestException: the download failed.
    """
    most = _most_bytes()
    with path.open("wb") as file:
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > most:
            raise SSRFError(f"download exceeds size cap: {declared} > {most} bytes")
        for piece in response.iter_content(_PIECE):
            if file.tell() + len(piece) > most:
                raise SSRFError(f"download exceeds size cap: >{most} bytes")
            file.write(piece)


def _private_allowed() -> bool:
    return os.environ.get(_ALLOW_PRIVATE, "").strip().lower() in ("1", "true", "yes")


def _most_bytes() -> int:
    try:
        return max(0, int(os.environ.get(_MAX_BYTES, ""))) or _MOST_BYTES
    except ValueError:
        return _MOST_BYTES


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise SSRFError(f"blocked URL scheme {parts.scheme!r}: {url}")
    if not parts.hostname:
        raise SSRFError(f"URL has no host: {url}")
    if not _private_allowed():
        _check_no_proxy(url)
    try:
        found = socket.getaddrinfo(
            parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM
        )
    except socket.gaierror as error:
        raise SSRFError(f"could not resolve host {parts.hostname!r}: {error}") from error
    for *_, address in found:
        _check_address(parts.hostname, str(address[0]))


def _check_no_proxy(url: str) -> None:
    """Raise if a proxy would be used: it resolves the name itself, so its connections cannot be checked."""
    from requests.utils import get_environ_proxies, select_proxy  # noqa: PLC0415 - requests may be missing

    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    if proxy:
        why = f"IP pinning cannot be enforced via a proxy; set {_ALLOW_PRIVATE}=true to allow it"
        raise SSRFError(f"refusing to fetch {url} through proxy {proxy}: {why}")


def _check_address(host: str, address: str) -> None:
    if not _private_allowed() and not _is_public(address):
        raise SSRFError(f"host {host!r} resolves to non-public address {address}")


def _is_public(text: str) -> bool:
    try:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4 and address in _SHARED:
        return False
    return bool(address.is_global and not address.is_multicast and not address.is_reserved)


def _session() -> Any:
    """Create a ``requests.Session`` that checks each connection's address: a name may resolve differently the second time."""
    import requests  # noqa: PLC0415 - requests may be missing
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    def checked(kind: Any) -> Any:
        class CheckedConnection(kind.ConnectionCls):  # type: ignore[misc]  # of urllib3 1 or 2
            def _new_conn(self) -> Any:
                connected = super()._new_conn()
                try:
                    _check_address(self.host, connected.getpeername()[0])
                except BaseException:
                    connected.close()
                    raise
                return connected

        return type(kind.__name__, (kind,), {"ConnectionCls": CheckedConnection})

    class CheckingAdapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options)
            kinds = self.poolmanager.pool_classes_by_scheme
            self.poolmanager.pool_classes_by_scheme = {scheme: checked(kind) for scheme, kind in kinds.items()}

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, CheckingAdapter())
    return session
