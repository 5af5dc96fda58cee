"""Who may ask: API keys, and without keys the `Host` and `Origin` rules that keep foreign web pages out; in the supervisor.

Without a key the only clients are programs of this machine, and its browsers are among them: a page from anywhere can make a
browser post to a loopback address (hence the `Origin` rule), or point a name of its own there (hence the `Host` rule).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from supervisor.config.settings import is_loopback
from supervisor.errors import RequestError

Headers = Mapping[bytes, bytes]

_ALLOW_METHODS = b"GET, POST"
_ALLOW_HEADERS = (b"authorization", b"content-type", b"idempotency-key", b"last-event-id")
_HEADER_NAMES = re.compile(rb"[\w.!#$%&'+^`|~-]{1,64}(?: ?, ?[\w.!#$%&'+^`|~-]{1,64}){0,63}")
"""Names as RFC 9110, section 5.6.2, has them, but none with a star: `*` alone would mean any."""

_EXPOSE_HEADERS = b"allow, retry-after, www-authenticate, x-request-id, x-should-retry"
_PREFLIGHT_AGE_S = b"600"


class Guard:
    """Decides about one request by its headers; raises ``RequestError`` or lets it pass."""

    def __init__(self, keys: tuple[str, ...], allow_origin: tuple[str, ...] = (), *, any_host: bool = False) -> None:
        """``keys``: who shows one may pass; none: all of this machine may. ``allow_origin``: origins of web pages that may, too.

        ``any_host`` drops the `Host` rule (``--no-auth``: clients reach this server by names that it does not know).
        """
        self._keys = tuple(_digest(key.encode()) for key in keys if key)
        self._origins = frozenset(origin.lower().encode() for origin in allow_origin)
        self._any_host = any_host
        self._is_loopback_host = functools.lru_cache(64)(_is_loopback_host)

    def check(self, headers: Headers) -> None:
        """Let the request pass.

        Raises:
            RequestError: 401 without a right key; 403 for a foreign `Host` or `Origin` where there are no keys.
        """
        if self._keys:
            if not self._has_key(headers.get(b"authorization", b"")):
                raise RequestError(401, "missing or invalid API key: send Authorization: Bearer KEY")
            return
        host = headers.get(b"host", b"")
        if not self._any_host and not self._is_loopback_host(host):
            raise RequestError(
                403, f"Host {_shown(host)} is not this machine's loopback; other names need a key (--api-key)"
            )
        origin = headers.get(b"origin")
        if origin is not None and not self._is_allowed(headers) and not _same_origin(origin, host):
            raise RequestError(403, f"Origin {_shown(origin)} is not allowed; see --allow-origin")

    def cors(self, headers: Headers) -> dict[bytes, bytes]:
        """The headers of every answer that let a page of an allowed origin, and no other, read it (Fetch, section 3.2.3).

        Without credentials, in Fetch's sense: there are no cookies here, and a page shows a key by itself.
        """
        if not self._origins:
            return {}
        made = {b"vary": b"origin"}  # also where there was none: a cache must not give this answer to a page
        if self._is_allowed(headers):
            made[b"access-control-allow-origin"] = headers[b"origin"]
            made[b"access-control-expose-headers"] = _EXPOSE_HEADERS
        return made

    def preflight(self, headers: Headers) -> dict[bytes, bytes] | None:
        """The headers that answer, beside those of ``cors``, what a browser asks before a page's request.

        ``None``: it is no such question, or the page may not ask.
        """
        if not self._is_allowed(headers) or b"access-control-request-method" not in headers:
            return None
        made = {
            b"access-control-allow-methods": _ALLOW_METHODS,
            b"access-control-allow-headers": b", ".join((*_ALLOW_HEADERS, *_asked_for(headers))),
            b"access-control-max-age": _PREFLIGHT_AGE_S,
        }
        if headers.get(b"access-control-request-private-network") == b"true":
            made[b"access-control-allow-private-network"] = b"true"
        return made

    def _is_allowed(self, headers: Headers) -> bool:
        return headers.get(b"origin", b"").lower() in self._origins

    def _has_key(self, authorization: bytes) -> bool:
        scheme, _, rest = authorization.partition(b" ")
        shown = _digest(rest.strip() if scheme.lower() == b"bearer" else authorization.strip())
        right = False
        for key in self._keys:  # all of them, so that the time says nothing about which one matched
            right |= hmac.compare_digest(key, shown)
        return right


def _asked_for(headers: Headers) -> list[bytes]:
    """The other headers that a page wants to send: clients have some of their own (`x-stainless-lang`), which change nothing."""
    names = headers.get(b"access-control-request-headers", b"").lower()
    if not _HEADER_NAMES.fullmatch(names):
        return []
    return [name for each in names.split(b",") if (name := each.strip()) not in _ALLOW_HEADERS]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _authority(text: str, default_port: int) -> tuple[str, int] | None:
    """Host and port of ``HOST[:PORT]``; ``None`` if it is none."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != text or "@" in text:
        return None
    return parts.hostname, default_port if port is None else port


def _is_loopback_host(host: bytes) -> bool:
    found = _authority(host.decode("latin-1"), 80)
    return found is not None and is_loopback(found[0])


def _same_origin(origin: bytes, host: bytes) -> bool:
    scheme, _, rest = origin.decode("latin-1").partition("://")
    default_port = {"http": 80, "https": 443}.get(scheme.lower())
    if default_port is None:
        return False
    page = _authority(rest, default_port)
    return page is not None and page == _authority(host.decode("latin-1"), default_port)


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
