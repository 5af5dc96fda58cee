from __future__ import annotations

import pytest

from supervisor.api.operations import ROUTES
from supervisor.api.routes import Router

ROUTER = Router(ROUTES, "my.end-point")

FOUND = [
    ("/run", "/run", ""),
    ("/v2/my.end-point/run", "/run", ""),
    ("/status/abc", "/status/{id}", "abc"),
    ("/v2/my.end-point/status/a.b", "/status/{id}", "a.b"),
    ("/workers", "/workers", ""),
    ("/workers/gpu2+3/refresh", "/workers/{slot}/refresh", "gpu2+3"),
    ("/v2/my.end-point/workers/cpu0/refresh", "/workers/{slot}/refresh", "cpu0"),
    ("/livez", "/livez", ""),
    ("/openai/v1/models", "/openai/v1/{route}", "models"),
    ("/v2/my.end-point/openai/v1/chat/completions", "/openai/v1/{route}", "chat/completions"),
    ("/openai/v1/models/a/refresh", "/openai/v1/{route}", "models/a/refresh"),
]

NOT_FOUND = [
    ("/", "/run"),
    ("", "/run"),
    ("/runn", "did you mean /run"),
    ("/run/", "did you mean /run"),
    ("/status", "/status/{id}"),
    ("/status/", "/status/{id}"),
    ("/status/a/b", "/status/{id}"),
    ("/worker/gpu0/refresh", "/workers/{slot}/refresh"),
    ("/workers/gpu0/refresh/", "/workers/{slot}/refresh"),
    ("/v2", "/run"),
    ("/v2/", "no endpoint ''"),
    ("/v2/other/run", "no endpoint 'other' here: this is /v2/my.end-point"),
    ("/v2/my.end-point", "there are"),
    ("/v2/my.end-point/", "there are"),
    ("/v2/my.end-pointx/run", "no endpoint 'my.end-pointx'"),
    ("/v2/my.end-point/livez", "did you mean /livez"),
    ("/v2/my.end-point/v2/my.end-point/run", "there are"),
    ("/openai/v1", "did you mean /openai/v1/{route}"),
    ("/openai/v1/", "did you mean /openai/v1/{route}"),
    ("/openai/v2/models", "did you mean /openai/v1/{route}"),
    ("/v2/my.end-point/openai/models", "did you mean /openai/v1/{route}"),
    ("/" + "x" * 100_000, "there are"),
]


@pytest.mark.parametrize(("path", "route", "param"), FOUND)
def test_found(path: str, route: str, param: str) -> None:
    match = ROUTER.find(path)
    assert match is not None
    assert {found.path for found in match.routes.values()} == {route}
    assert match.param == param


@pytest.mark.parametrize(("path", "said"), NOT_FOUND)
def test_not_found(path: str, said: str) -> None:
    assert ROUTER.find(path) is None
    assert said in ROUTER.why_not(path)
    assert len(ROUTER.why_not(path)) < 500


def test_read_routes_take_both_methods() -> None:
    for path in ("/status/a", "/status-sync/a", "/stream/a"):
        match = ROUTER.find(path)
        assert match is not None
        assert match.allow == b"GET, POST"
