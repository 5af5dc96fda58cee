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

from supervisor.api.call import Reply
from supervisor.api.routes import EVENTS, HTML, JSON

Json = dict[str, Any]

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_BRACES = re.compile(r"\{(\w+)\}")


def page(document: Json, url: str) -> Reply:
    """The page of an OpenAPI document. ``url`` is the server's in the examples; in a browser they show that of the page."""
    style, script = map(_asset, ("style.css", "script.js"))
    info, components = document["info"], document["components"]
    groups = [(tag, list(_tagged(document, tag["name"]))) for tag in document["tags"]]
    keys = [
        f'<p class="keys">{_inline(each["description"])}</p>' for each in components.get("securitySchemes", {}).values()
    ]
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(info["title"])}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Operations">
<input id="filter" type="search" placeholder="Filter operations" aria-label="Filter operations">
{"".join(_menu(tag["name"], operations) for tag, operations in groups)}
</nav>
<main>
<header>
<h1>{escape(info["title"])}</h1>
<p class="at"><code class="url">{escape(url)}</code> · version {escape(info["version"])}
· <a href="openapi.json">openapi.json</a></p>
{_markdown(info["description"])}
{"".join(keys)}
</header>
{"".join(_group(tag, operations, url) for tag, operations in groups)}
<section id="schemas">
<h2>Schemas</h2>
{"".join(_schema(name, schema) for name, schema in components["schemas"].items())}
</section>
</main>
<script>{script}</script>
</body>
</html>
"""
    sources = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    headers = {
        b"content-security-policy": policy.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
    }
    return Reply(html.encode(), headers=headers, content_type=f"{HTML}; charset=utf-8".encode())


def _asset(name: str) -> str:
    return resources.files("supervisor.api.docs").joinpath("assets").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- operations ---------------------------------------------------------------------------------------------------------------


def _tagged(document: Json, tag: str) -> Iterator[Json]:
    """What the methods of each path of ``tag`` do, which differs in nothing but the body, with what is known of the path."""
    for path, item in document["paths"].items():
        methods = sorted(set(item) - {"servers"})
        whole = item[methods[-1] if "post" in methods else "get"]
        if tag in whole["tags"]:
            anchor = re.sub(r"\W+", "-", path).strip("-")
            keyed = bool(whole.get("security", document.get("security")))
            server = "" if "servers" in item else document["servers"][1]["url"]
            known = {"path": path, "anchor": anchor, "methods": methods, "keyed": keyed, "served": server + path}
            yield {**whole, **known}


def _path(path: str) -> str:
    return _BRACES.sub(r"<i>{\1}</i>", escape(path))


def _menu(title: str, operations: Iterable[Json]) -> str:
    links = [
        f'<li><a href="#{each["anchor"]}" title="{escape(each["summary"])}">{_path(each["path"])}</a></li>'
        for each in operations
    ]
    return f"<h2>{escape(title)}</h2><ul>{''.join(links)}</ul>"


def _group(tag: Json, operations: Iterable[Json], url: str) -> str:
    head = f"<h2>{escape(tag['name'])}</h2><p>{_inline(tag['description'])}</p>"
    return head + "".join(_operation(each, url) for each in operations)


def _operation(operation: Json, url: str) -> str:
    anchor, responses = operation["anchor"], operation["responses"]
    badges = "".join(f'<b class="{method}">{method.upper()}</b>' for method in operation["methods"])
    example = escape("\n".join(_curl(url, operation))).replace(escape(url), f'<span class="url">{escape(url)}</span>')
    return f"""<section class="operation" id="{anchor}">
<h3>{badges} <a href="#{anchor}"><code>{_path(operation["path"])}</code></a></h3>
<p class="summary">{_inline(operation["summary"])}</p>
{_markdown(operation["description"])}
<div class="example"><button type="button" hidden>Copy</button><pre>{example}</pre></div>
{_parameters(operation["parameters"])}
{_body(operation.get("requestBody"))}
<h4>Answers</h4>
{_table("answers", (_answer(status, answer) for status, answer in responses.items()))}
</section>
"""


def _curl(url: str, operation: Json) -> Iterator[str]:
    """Commands to try it with."""
    examples = {each["name"]: each.get("example") for each in operation["parameters"]}
    path = _BRACES.sub(lambda found: str(examples[found[1]] or f"${found[1].upper()}"), operation["served"])
    url += path
    curl = 'curl -H "Authorization: Bearer $KEY"' if operation["keyed"] else "curl"
    if "requestBody" in operation:
        example = json.dumps(operation["requestBody"]["content"][JSON]["example"], ensure_ascii=False)
        yield f"{curl} {url} -d {shlex.quote(example)}"
        return
    if operation["methods"] == ["post"]:
        curl += " -X POST"
    yield f"{curl} {url}"
    if EVENTS in operation["responses"]["200"]["content"]:
        yield f'{curl} -N "{url}?follow=1"' if "follow" in examples else f"{curl} -N -H 'Accept: {EVENTS}' {url}"


def _table(kind: str, rows: Iterable[str]) -> str:
    return f'<table class="{kind}"><tbody>{"".join(rows)}</tbody></table>'


def _parameters(parameters: Iterable[Json]) -> str:
    rows = [
        f"<tr><th><code>{escape(each['name'])}</code><small>{escape(each['in'])}</small></th>"
        f"<td>{_type(each['schema'])}</td><td>{_inline(each['description'])}</td></tr>"
        for each in parameters
    ]
    return "<h4>Parameters</h4>" + _table("fields", rows) if rows else ""


def _body(body: Json | None) -> str:
    if body is None:
        return ""
    needed = "" if body["required"] else " <small>may be left out</small>"
    return f"<h4>Body</h4><p>{_type(body['content'][JSON]['schema'])}{needed}</p>"


def _answer(status: str, answer: Json) -> str:
    kinds = [
        f"<div><code>{escape(kind)}</code>{' ' + _type(media['schema']) if kind == JSON else ''}</div>"
        for kind, media in answer["content"].items()
    ]
    headers = [
        f"<div><code>{escape(name)}</code> {_inline(header['description'])}</div>"
        for name, header in answer.get("headers", {}).items()
    ]
    text = _inline(answer["description"]) + "".join(headers)
    return f'<tr class="s{status[0]}"><th>{status}</th><td>{text}</td><td>{"".join(kinds)}</td></tr>'


# --- schemas and text ---------------------------------------------------------------------------------------------------------


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><th><code>{escape(field)}</code>{'' if field in required else '<small>may be absent</small>'}</th>"
        f"<td>{_type(each)}</td><td>{_inline(each.get('description', ''))}</td></tr>"
        for field, each in schema.get("properties", {}).items()
    ]
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
    default = f"<small>default {escape(str(schema['default']))}</small>" if "default" in schema else ""
    return escape(schema.get("type", "any JSON")) + default


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
