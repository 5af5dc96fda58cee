"""The API as a raw ASGI application: routing, authorization and error responses; in the supervisor's loop."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from supervisor.api import events
from supervisor.api.auth import Guard
from supervisor.api.call import Call, ClientDisconnected, Receive, Reply, Scope, Send, Waits
from supervisor.api.docs.openapi import FORBIDDEN, UNAUTHORIZED, Json, document
from supervisor.api.docs.page import page
from supervisor.api.metrics import Deliveries
from supervisor.api.openai import errors
from supervisor.api.operations import ROUTES
from supervisor.api.routes import Match, Router
from supervisor.errors import RequestError, StoreError
from supervisor.protocol.answers import Error
from supervisor.protocol.responses import encode

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine

NO_CONTENT, BAD_REQUEST, UNAVAILABLE = 204, 400, 503

RETRY_AFTER_S = 5
"""Default `Retry-After` of a 503."""

LINGER_S = 2.0
LINGER_BYTES = 64 * 1024 * 1024
"""How long, and how many bytes, a client may go on sending a rejected body: closing at once would lose the response."""


class App:
    """The ASGI application over ``engine``. ``waits`` ends the long waits when the server stops."""

    def __init__(
        self,
        engine: Engine,
        log: Callable[[str], None],
        deliveries: Deliveries | None = None,
        *,
        private: bool = False,
    ) -> None:
        """Serve ``engine``; ``log`` gets the tracebacks of unexpected errors, ``deliveries`` feeds the webhook metrics.

        ``private``: only the owner can open the socket, so keys, `Host` and `Origin` are not checked.
        """
        settings = engine.settings
        self.engine = engine
        self.deliveries = deliveries
        self.waits = Waits()
        self._log = log
        self._max_body = settings.max_body
        self._router = Router(ROUTES, settings.endpoint_id)
        self._guard = None if private else Guard(settings.api_key, settings.allow_origin, any_host=settings.no_auth)

    @cached_property
    def document(self) -> Json:
        """The OpenAPI document."""
        settings = self.engine.settings
        guard = None if self._guard is None else UNAUTHORIZED if any(settings.api_key) else FORBIDDEN
        return document(ROUTES, settings.endpoint_id, guard)

    @cached_property
    def docs(self) -> Reply:
        """The documentation page."""
        return page(self.document, self.engine.snapshot().url or f"http://127.0.0.1:{self.engine.settings.port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        call = Call(self, scope, receive)
        try:
            reply = await self._reply(call, scope["path"])
        except ClientDisconnected:
            return
        try:
            await self._send(call, reply, send)
        finally:
            call.close()

    async def _reply(self, call: Call, path: str) -> Reply:
        try:
            match = self._router.find(path)
            route = match.routes.get(call.method) if match is not None else None
            if self._guard is not None and (route is None or not route.open):
                preflight = self._guard.preflight(call.headers) if call.method == "OPTIONS" else None
                if preflight is not None:
                    return Reply(b"", NO_CONTENT, preflight)
                self._guard.check(call.headers)
            if route is None or match is None:
                return self._no_route(call, path, match)
            call.param = match.param
            return await route.handler(call)
        except RequestError as error:
            return _refusal(error, path)
        except StoreError as error:
            return _refusal(RequestError(503, str(error)), path)
        except ClientDisconnected:
            raise
        except Exception:  # noqa: BLE001 - the outermost handler: one request's bug must not stop the server
            self._log(f"{call.method} {repr(path[:200])[1:-1]} failed\n{traceback.format_exc()}")
            return _refusal(RequestError(500, "internal error; the supervisor's log has the details"), path)

    def _no_route(self, call: Call, path: str, match: Match | None) -> Reply:
        if match is None:
            return _refusal(RequestError(404, self._router.why_not(path)), path)
        if call.method == "OPTIONS":
            return Reply(b"", NO_CONTENT, {b"allow": match.allow})
        refusal = _refusal(RequestError(405, f"{call.method} {path[:80]}: only {match.allow.decode()}"), path)
        return msgspec.structs.replace(refusal, headers={**refusal.headers, b"allow": match.allow})

    async def _send(self, call: Call, reply: Reply, send: Send) -> None:
        lingers = reply.status >= BAD_REQUEST and call.may_exceed(self._max_body)
        headers = self._headers(call, reply, lingers=lingers)
        await send({"type": "http.response.start", "status": reply.status, "headers": list(headers.items())})
        if lingers:
            await send({"type": "http.response.body", "body": reply.body, "more_body": True})
            await call.discard(LINGER_S, LINGER_BYTES)
            await send({"type": "http.response.body", "body": b""})
        elif reply.parts is not None:
            await self._send_parts(call, reply.parts, reply, send)
        elif reply.sent is None:
            await send({"type": "http.response.body", "body": reply.body})
        else:
            await _send_watched(call, reply.body, reply.sent, send)

    def _headers(self, call: Call, reply: Reply, *, lingers: bool) -> dict[bytes, bytes]:
        """Return all headers of the response but the date, each once: browsers reject a response with a duplicate."""
        headers = dict(reply.headers)
        if self._guard is not None:
            headers.update(self._guard.cors(call.headers))
        if reply.status != NO_CONTENT:
            headers[b"content-type"] = reply.content_type
            if reply.parts is None:
                headers[b"content-length"] = b"%d" % len(reply.body)
        if lingers:
            headers[b"connection"] = b"close"
        return headers

    async def _send_parts(self, call: Call, parts: AsyncGenerator[bytes, None], reply: Reply, send: Send) -> None:
        """Send ``parts`` as they come.

        Unless the body is completed, uvicorn closes the connection, so that no client takes the parts for the whole; an event
        stream may end anywhere.
        """
        whole, endless = False, reply.content_type == events.CONTENT_TYPE
        try:
            if await call.while_connected(_send_each(parts, send)):
                whole = reply.sent is None or await _is_delivered(call, send)
        except (ClientDisconnected, RequestError):  # too late to report it
            pass
        except Exception:  # noqa: BLE001 - as in _reply
            self._log(f"{call.method} {call.param}: the answer broke off\n{traceback.format_exc()}")
            endless = False
        finally:
            await parts.aclose()
            if reply.sent is not None:
                reply.sent(whole)
        if (whole or endless) and not call.is_disconnected():
            await send({"type": "http.response.body", "body": b""})


async def _send_each(parts: AsyncGenerator[bytes, None], send: Send) -> None:
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)  # yield to other tasks, also where nothing makes this one wait


async def _send_watched(call: Call, body: bytes, sent: Callable[[bool], None], send: Send) -> None:
    """Send ``body``, and pass to ``sent`` whether the client was still connected."""
    delivered = False
    try:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        delivered = await _is_delivered(call, send)
        if delivered:
            await send({"type": "http.response.body", "body": b""})
    finally:
        sent(delivered)


async def _is_delivered(call: Call, send: Send) -> bool:
    """Return whether the client was connected for what was sent, as far as a server can know without an acknowledgement."""
    # An empty part waits until the transport has sent nearly all of the previous one, or has failed to. The protocol learns of a
    # failure in the next iteration of the loop, and tasks that wait for it in the one after that.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return not call.is_disconnected()


def _refusal(error: RequestError, path: str) -> Reply:
    headers: dict[bytes, bytes] = {}
    if error.status == UNAUTHORIZED:
        headers[b"www-authenticate"] = b'Bearer realm="supervise"'
    retry_after = RETRY_AFTER_S if error.retry_after is None and error.status == UNAVAILABLE else error.retry_after
    if retry_after is not None:
        headers[b"retry-after"] = b"%d" % retry_after
    openai = errors.speaks_openai(path)
    body = errors.of_refusal(error).body if openai else encode(Error(str(error)))
    return Reply(body, error.status, headers)
