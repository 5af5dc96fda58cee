"""The page for people: whole, linked, complete in itself, and safe."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from supervisor.api.docs.page import page as page_of

if TYPE_CHECKING:
    from conftest import Site

VOID = {"meta", "input", "br", "hr"}


class Reader(HTMLParser):
    """Reads a page; its tags must nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.sections: dict[str, str] = {}
        self.inline: dict[str, str] = {}
        self.tags: set[str] = set()
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name in ("src", "srcset", "style") or name.startswith("on"):
                self.sources.append(f"{tag} {name}={value}")
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.inline[self._open[-1]] = data
        if "section" in self._open:
            self.sections[self._section] = self.sections.get(self._section, "") + data


def hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read(site: Site, **headers: str) -> Reader:
    answer = site.ask("GET", "/docs", headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return Reader(answer.body.decode())


def test_every_operation_is_there_with_something_to_try(site: Site) -> None:
    page = read(site)
    paths = site.ask("GET", "/openapi.json").json["paths"]
    for path, item in paths.items():
        text = page.sections[re.sub(r"\W+", "-", path).strip("-")]
        for method in set(item) - {"servers"}:
            assert method.upper() in text
            assert item[method]["summary"] in text
            assert all(status in text for status in item[method]["responses"])
            assert all(each["name"] in text for each in item[method].get("parameters", ()))
    url = f"http://127.0.0.1:{site.settings.port}"
    assert f"""curl {url}/v2/echo/run -d '{{"input": {{"prompt": "a lighthouse"}}}}'""" in page.sections["run"]
    assert f"curl {url}/v2/echo/status/$ID" in page.sections["status-id"]
    assert f"-N -H 'Accept: text/event-stream' {url}/v2/echo/stream/$ID" in page.sections["stream-id"]
    assert f'-N "{url}/v2/echo/logs/$ID?follow=1"' in page.sections["logs-id"]
    assert f"curl -X POST {url}/v2/echo/workers/gpu0/refresh" in page.sections["workers-slot-refresh"]
    assert f"curl {url}/metrics" in page.sections["metrics"]
    assert "Authorization" not in page.sections["run"]


def test_its_links_lead_somewhere_and_nothing_is_fetched(site: Site) -> None:
    page = read(site)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link == "openapi.json" or link[1:] in page.ids, link
    assert not page.sources
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"url\(|@import|https?://", page.inline["style"] + page.inline["script"])


def test_its_policy_allows_its_own_style_and_script_alone(site: Site) -> None:
    answer = site.ask("GET", "/docs")
    page = Reader(answer.body.decode())
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == f"'{hash_of(page.inline['style'])}'"
    assert policy["script-src"] == f"'{hash_of(page.inline['script'])}'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_examples_show_the_key_where_there_are_keys(make_site: Callable[..., Site]) -> None:
    page = read(make_site(api_key=("secret",)), authorization="secret")
    assert 'curl -H "Authorization: Bearer $KEY"' in page.sections["run"]
    assert 'curl -H "Authorization: Bearer $KEY"' in page.sections["metrics"]
    assert "$KEY" not in page.sections["livez"]


def test_nothing_in_it_is_taken_for_markup(site: Site) -> None:
    hostile = "http://a/<script>\"'&"
    html = page_of(site.ask("GET", "/openapi.json").json, hostile).body.decode()
    page = Reader(html)
    assert hostile in page.sections["run"]
    assert html.count("<script>") == 1
