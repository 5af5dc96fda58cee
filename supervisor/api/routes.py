"""Routes of operations, the source of dispatch, errors and the API's description, and their router; in the supervisor."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from supervisor.api.call import Call, Reply

Handler = Callable[[Call], Awaitable[Reply]]

JSON, TEXT, HTML, EVENTS = "application/json", "text/plain", "text/html", "text/event-stream"
JOBS, OPENAI, MACHINE, SERVER = "Jobs", "OpenAI", "Workers and GPUs", "Server"


class Field(msgspec.Struct, frozen=True):
    """A query parameter or header that an operation reads; ``schema`` is its JSON Schema."""

    name: str
    schema: dict[str, Any]
    text: str
    where: str = "query"


IDEMPOTENCY_KEY = Field(
    "Idempotency-Key",
    {"type": "string", "minLength": 1},
    "The same key twice means the same job. An `id` in the body takes precedence.",
    "header",
)


class Route(msgspec.Struct, frozen=True):
    """An operation and its handler, whose docstring describes it to clients.

    ``path`` may have one parameter in braces. ``answers``: types of a 200's body by content type, None for events.
    ``body``: the type of a POST's body. ``refusals``: error statuses beyond the usual. ``open``: no key is required.
    ``root_only``: not served under ``/v2/{endpoint_id}``. ``rest``: the parameter matches the rest of the path, with slashes.
    """

    handler: Handler
    methods: tuple[str, ...]
    path: str
    tag: str
    answers: dict[str, Any]
    fields: tuple[Field, ...] = ()
    refusals: tuple[int, ...] = ()
    body: Any = None
    open: bool = False
    root_only: bool = False
    rest: bool = False

    @property
    def id(self) -> str:
        """The operation's id in the OpenAPI document; generated clients name a function after it."""
        first, *others = self.handler.__name__.split("_")
        return first + "".join(map(str.title, others))


def route(
    methods: tuple[str, ...], path: str, tag: str, answers: dict[str, Any], **more: Any
) -> Callable[[Handler], Route]:
    """Make a decorator that turns a function into a ``Route``; ``more`` are its other fields."""
    return lambda handler: Route(handler, methods, path, tag, answers, **more)


class Match(msgspec.Struct, frozen=True):
    """The routes of one path, by method, and the value of its parameter."""

    routes: dict[str, Route]
    param: str = ""

    @property
    def allow(self) -> bytes:
        """The value of the `Allow` header."""
        return ", ".join(sorted(self.routes)).encode()


class Router:
    """Finds the routes of a path: one lookup for those without a parameter, at most three for the others."""

    def __init__(self, routes: Sequence[Route], endpoint_id: str) -> None:
        """Serve ``routes`` at the root and under ``/v2/{endpoint_id}``."""
        self._prefix = f"/v2/{endpoint_id}"
        self._endpoint_id = endpoint_id
        self._plain: dict[str, Match] = {}
        self._patterns: dict[tuple[str, str], dict[str, Route]] = {}
        self._rests: dict[str, dict[str, Route]] = {}
        self._paths = list(dict.fromkeys(route.path for route in routes))
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        head, brace, rest = route.path.partition("{")
        if not brace:
            for prefix in ("",) if route.root_only else ("", self._prefix):
                match = self._plain.setdefault(prefix + route.path, Match({}))
                match.routes.update(dict.fromkeys(route.methods, route))
        elif route.rest:
            self._rests.setdefault(head, {}).update(dict.fromkeys(route.methods, route))
        else:
            key = (head, rest.partition("}")[2])
            self._patterns.setdefault(key, {}).update(dict.fromkeys(route.methods, route))

    def find(self, path: str) -> Match | None:
        """Find the routes of ``path`` (unquoted); None if there is no such operation."""
        match = self._plain.get(path)
        if match is not None:
            return match
        if path.startswith("/v2/"):
            if not path.startswith(self._prefix + "/"):
                return None
            path = path[len(self._prefix) :]
        head, _, rest = path[1:].partition("/")
        param, slash, tail = rest.partition("/")
        routes = self._patterns.get((f"/{head}/", slash + tail))
        if routes is not None:
            return Match(routes, param) if param else None
        return self._rest(path)

    def _rest(self, path: str) -> Match | None:
        for head, routes in self._rests.items():
            if path.startswith(head) and len(path) > len(head):
                return Match(routes, path[len(head) :])
        return None

    def why_not(self, path: str) -> str:
        """Explain that ``path`` does not exist, naming similar paths."""
        if path.startswith("/v2/"):
            endpoint_id = path[4:].partition("/")[0]
            if endpoint_id != self._endpoint_id:
                return f"no endpoint {endpoint_id[:80]!r} here: this is {self._prefix}"
            first = path[len(self._prefix) + 1 :].partition("/")[0][:40]
        else:
            first = path[1:].partition("/")[0][:40]
        names = {known[1:].partition("/")[0]: None for known in self._paths}
        close = difflib.get_close_matches(first, names, n=3, cutoff=0.6)
        near = [known for known in self._paths if known[1:].partition("/")[0] in close]
        return f"no operation {path[:80]!r}; {'did you mean' if near else 'there are'} {', '.join(near or self._paths)}"
