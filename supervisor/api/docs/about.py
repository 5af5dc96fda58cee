"""What the server tells about itself: `/openapi.json`, `/docs` and `/metrics`; in the supervisor.

The first two are made when they are first asked for, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from supervisor.api import metrics
from supervisor.api.call import Call, Reply
from supervisor.api.docs import page
from supervisor.api.docs.openapi import Access, Json, document
from supervisor.api.routes import Route

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine

_HTML = b"text/html; charset=utf-8"
_METHODS = ("GET", "HEAD")


class About:
    """``routes``: those that it was given, and its own three."""

    def __init__(
        self,
        routes: Sequence[Route],
        engine: Engine,
        deliveries: metrics.Deliveries | None = None,
        *,
        guarded: bool = True,
    ) -> None:
        """Describe ``routes``. ``guarded``: clients have to show a key, or come from this machine."""
        own = (
            Route(_METHODS, "/metrics", self.metrics, "Metrics for Prometheus", root_only=True),
            Route(_METHODS, "/openapi.json", self.openapi, "This API, described for programs", root_only=True),
            Route(_METHODS, "/docs", self.docs, "This API, described for people", root_only=True),
        )
        self.routes = (*routes, *own)
        self._engine = engine
        self._deliveries = deliveries
        self._access = Access(keys=guarded and any(engine.settings.api_key), guarded=guarded)

    async def metrics(self, call: Call) -> Reply:  # noqa: ARG002 - every operation takes the call
        """GET /metrics."""
        engine = self._engine
        body = metrics.body(
            engine.snapshot(),
            engine.overview.statistics.totals(),
            ready=engine.ready,
            deliveries=self._deliveries,
            process=metrics.Process.now(),
        )
        return Reply(body, content_type=metrics.CONTENT_TYPE)

    async def openapi(self, call: Call) -> Reply:  # noqa: ARG002 - as above
        """GET /openapi.json."""
        return Reply(self._json)

    async def docs(self, call: Call) -> Reply:  # noqa: ARG002 - as above
        """GET /docs."""
        return self._page

    @cached_property
    def _document(self) -> Json:
        return document(self.routes, self._engine.settings.endpoint_id, self._access)

    @cached_property
    def _json(self) -> bytes:
        return msgspec.json.encode(self._document)

    @cached_property
    def _page(self) -> Reply:
        url = self._engine.snapshot().url or f"http://127.0.0.1:{self._engine.settings.port}"
        made = page.page(self._document, url)
        headers = {
            b"content-security-policy": made.policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
        }
        return Reply(made.html.encode(), headers=headers, content_type=_HTML)
