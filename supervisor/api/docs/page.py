"""`/docs`: the API's description as a page for people, complete in itself, made from the document alone; in the supervisor."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from typing import Any

import msgspec

from supervisor.api.docs.describe import EVENTS, JSON

Json = dict[str, Any]

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_BRACES = re.compile(r"\{(\w+)\}")
_METHODS = ("get", "head", "post")


class Page(msgspec.Struct, frozen=True):
    """The page, and the ``Content-Security-Policy`` that lets it do what it does and nothing else."""

    html: str
    policy: str


def page(document: Json, url: str) -> Page:
    """The page of an OpenAPI document. ``url`` is the server's in the examples; in a browser they show that of the page."""
    style, script = _file("style.css"), _file("script.js")
    info = document["info"]
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(info["title"])}</title>
<style>{style}</style>
</head>
<body data-url="{escape(url)}">
<nav aria-label="Operations">
<input id="filter" type="search" placeholder="Filter operations" aria-label="Filter operations">
{"".join(_menu(document))}
</nav>
<main>
<header>
<h1>{escape(info["title"])}</h1>
<p class="at"><code class="url">{escape(url)}</code> · version {escape(info["version"])}
· <a href="openapi.json">openapi.json</a></p>
{_markdown(info["description"])}
{_keys(document)}
</header>
{"".join(_groups(document, url))}
<section id="schemas">
<h2>Schemas</h2>
{"".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())}
</section>
</main>
<script>{script}</script>
</body>
</html>
"""
    sources = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return Page(html, policy)


def _file(name: str) -> str:
    return resources.files("supervisor.api.docs").joinpath("assets").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _keys(document: Json) -> str:
    schemes = document["components"].get("securitySchemes", {})
    return "".join(f'<p class="keys">{_inline(scheme["description"])}</p>' for scheme in schemes.values())


# --- operations ---------------------------------------------------------------------------------------------------------------


def _by_tag(document: Json) -> Iterator[tuple[Json, list[tuple[str, Json]]]]:
    """Each tag with its paths, and what their methods do, which differs in nothing but the body."""
    for tag in document["tags"]:
        paths = []
        for path, item in document["paths"].items():
            operations = {method: item[method] for method in _METHODS if method in item}
            whole = next((each for each in operations.values() if "requestBody" in each), None)
            whole = whole or next(iter(operations.values()))
            if tag["name"] in whole["tags"]:
                paths.append((path, {**whole, "methods": list(operations), "root": "servers" in item}))
        yield tag, paths


def _anchor(path: str) -> str:
    return re.sub(r"\W+", "-", path).strip("-")


def _badges(operation: Json) -> str:
    return "".join(f'<b class="{method}">{method.upper()}</b>' for method in operation["methods"])


def _path(path: str) -> str:
    return _BRACES.sub(r"<i>{\1}</i>", escape(path))


def _menu(document: Json) -> Iterator[str]:
    for tag, paths in _by_tag(document):
        links = "".join(
            f'<li><a href="#{_anchor(path)}" title="{escape(operation["summary"])}">{_path(path)}</a></li>'
            for path, operation in paths
        )
        yield f"<h2>{escape(tag['name'])}</h2><ul>{links}</ul>"


def _groups(document: Json, url: str) -> Iterator[str]:
    endpoint = document["servers"][1]["url"]
    for tag, paths in _by_tag(document):
        yield f"<h2>{escape(tag['name'])}</h2><p>{_inline(tag['description'])}</p>"
        for path, operation in paths:
            keyed = bool(operation.get("security", document.get("security")))
            where = path if operation["root"] else endpoint + path
            yield _operation(path, operation, "\n".join(_curl(url + where, operation, keyed=keyed)), url)


def _operation(path: str, operation: Json, example: str, url: str) -> str:
    shown = escape(example).replace(escape(url), f'<span class="url">{escape(url)}</span>')
    return f"""<section class="operation" id="{_anchor(path)}">
<h3>{_badges(operation)} <a href="#{_anchor(path)}"><code>{_path(path)}</code></a></h3>
<p class="summary">{_inline(operation["summary"])}</p>
{_markdown(operation["description"])}
<div class="example"><button type="button" hidden>Copy</button><pre>{shown}</pre></div>
{_parameters(operation.get("parameters", ()))}
{_body(operation.get("requestBody"))}
<h4>Answers</h4>
{_table("answers", "".join(_answer(status, answer) for status, answer in operation["responses"].items()))}
</section>
"""


def _table(kind: str, rows: str) -> str:
    return f'<table class="{kind}"><tbody>{rows}</tbody></table>'


def _parameters(parameters: Iterable[Json]) -> str:
    rows = "".join(
        f"<tr><th><code>{escape(each['name'])}</code><small>{each['in']}</small></th>"
        f"<td>{_type(each['schema'])}{_default(each['schema'])}</td><td>{_inline(each['description'])}</td></tr>"
        for each in parameters
    )
    return f"<h4>Parameters</h4>{_table('fields', rows)}" if rows else ""


def _default(schema: Json) -> str:
    return f"<small>default {escape(str(schema['default']))}</small>" if "default" in schema else ""


def _body(body: Json | None) -> str:
    if body is None:
        return ""
    needed = "" if body["required"] else " <small>may be left out</small>"
    return f"<h4>Body</h4><p>{_type(body['content'][JSON]['schema'])}{needed}</p>"


def _answer(status: str, answer: Json) -> str:
    kinds = []
    for kind, media in answer.get("content", {}).items():
        schema = "" if kind != JSON else f" {_type(media['schema'])}"
        kinds.append(f"<div><code>{escape(kind)}</code>{schema}</div>")
    headers = "".join(
        f"<div><code>{escape(name)}</code> {_inline(header['description'])}</div>"
        for name, header in answer.get("headers", {}).items()
    )
    text = _inline(answer["description"])
    return f'<tr class="s{status[0]}"><th>{status}</th><td>{text}{headers}</td><td>{"".join(kinds)}</td></tr>'


def _curl(url: str, operation: Json, *, keyed: bool) -> Iterator[str]:
    """Commands to try it with."""
    examples = {each["name"]: each.get("example") for each in operation.get("parameters", ()) if each["in"] == "path"}
    url = _BRACES.sub(lambda found: str(examples[found[1]] or f"${found[1].upper()}"), url)
    words = ["curl"]
    if keyed:
        words.append('-H "Authorization: Bearer $KEY"')
    body = operation.get("requestBody")
    if body is not None:
        example = json.dumps(body["content"][JSON]["example"], ensure_ascii=False)
        yield " ".join([*words, url, "-d", shlex.quote(example)])
        return
    if operation["methods"] == ["post"]:
        words.append("-X POST")
    yield " ".join([*words, url])
    if EVENTS in operation["responses"]["200"]["content"]:
        follows = any(each["name"] == "follow" for each in operation["parameters"])
        yield " ".join([*words, "-N", f'"{url}?follow=1"' if follows else f"-H 'Accept: {EVENTS}' {url}"])


# --- schemas ------------------------------------------------------------------------------------------------------------------


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><th><code>{escape(field)}</code>{'' if field in required else '<small>may be absent</small>'}</th>"
        f"<td>{_type(each)}</td><td>{_inline(each.get('description', ''))}</td></tr>"
        for field, each in schema.get("properties", {}).items()
    )
    inside = _table("fields", rows) if rows else f"<p>{_type(schema)}</p>"
    text = _inline(schema.get("description", ""))
    return (
        f'<section class="schema" id="schema-{escape(name)}"><h3>{escape(name)}</h3><p>{text}</p>{inside}</section>\n'
    )


def _type(schema: Json) -> str:
    """What a schema says, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(schema.get("type", "any JSON"))


# --- text ---------------------------------------------------------------------------------------------------------------------


def _markdown(text: str) -> str:
    """Paragraphs, lists and code: all of Markdown that the descriptions use."""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("- "):
            items = block.removeprefix("- ").split("\n- ")
            blocks.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "".join(blocks)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\2</code>", escape(text, quote=False))
