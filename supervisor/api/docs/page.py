"""`/docs`: the API's documentation, a self-contained page made from the OpenAPI document alone; in the supervisor."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from string import Template
from typing import Any

from supervisor.api.call import Reply
from supervisor.api.routes import EVENTS, HTML, JSON

Json = dict[str, Any]

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_BRACES = re.compile(r"\{(\w+)\}")


def page(document: Json, url: str) -> Reply:
    """Render an OpenAPI document. ``url`` is the server's in the examples; in a browser, scripts replace it by the page's."""
    frame, style, script = map(_asset, ("page.html", "style.css", "script.js"))
    info, components = document["info"], document["components"]
    groups = [(tag, list(_tagged(document, tag["name"]))) for tag in document["tags"]]
    keys = [
        f'<p class="keys">{_inline(each["description"])}</p>' for each in components.get("securitySchemes", {}).values()
    ]
    html = Template(frame).substitute(
        title=escape(info["title"]),
        version=escape(info["version"]),
        url=escape(url),
        style=style,
        script=script,
        menu="".join(_menu(tag, operations) for tag, operations in groups),
        introduction="".join((_markdown(info["description"]), *keys)),
        operations="".join(_group(tag, operations, url) for tag, operations in groups),
        schemas="".join(_schema(name, schema) for name, schema in components["schemas"].items()),
    )
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


def _tagged(document: Json, tag: str) -> Iterator[Json]:
    """Yield one operation for each path of ``tag``, as its methods differ only in the body, with facts about the path."""
    for path, item in document["paths"].items():
        methods = sorted(set(item) - {"servers"})
        whole = item[methods[-1] if "post" in methods else "get"]
        if tag in whole["tags"]:
            yield {
                **whole,
                "methods": methods,
                "anchor": re.sub(r"\W+", "-", path).strip("-"),
                "shown": _BRACES.sub(r"<i>{\1}</i>", escape(path)),
                "served": path if "servers" in item else document["servers"][1]["url"] + path,
                "keyed": bool(whole.get("security", document.get("security"))),
            }


def _menu(tag: Json, operations: Iterable[Json]) -> str:
    links = [
        f'<li><a href="#{each["anchor"]}" title="{escape(each["summary"])}">{each["shown"]}</a></li>'
        for each in operations
    ]
    return f"<h2>{escape(tag['name'])}</h2><ul>{''.join(links)}</ul>"


def _group(tag: Json, operations: Iterable[Json], url: str) -> str:
    head = f"<h2>{escape(tag['name'])}</h2><p>{_inline(tag['description'])}</p>"
    return head + "".join(_operation(each, url) for each in operations)


def _operation(operation: Json, url: str) -> str:
    badges = "".join(f'<b class="{method}">{method.upper()}</b>' for method in operation["methods"])
    example = escape("\n".join(_curl(url, operation))).replace(escape(url), f'<span class="url">{escape(url)}</span>')
    parameters = [
        ("", f"{_code(each['name'])}<small>{each['in']}</small>", _type(each["schema"]), _inline(each["description"]))
        for each in operation["parameters"]
    ]
    body = operation.get("requestBody")
    may = "" if body is None or body["required"] else " <small>optional</small>"
    return f"""<section class="operation" id="{operation["anchor"]}">
<h3>{badges} <a href="#{operation["anchor"]}"><code>{operation["shown"]}</code></a></h3>
<p class="summary">{_inline(operation["summary"])}</p>
{_markdown(operation["description"])}
<div class="example"><button type="button" hidden>Copy</button><pre>{example}</pre></div>
{"<h4>Parameters</h4>" + _table("fields", parameters) if parameters else ""}
{f"<h4>Body</h4><p>{_type(body['content'][JSON]['schema'])}{may}</p>" if body else ""}
<h4>Responses</h4>
{_table("answers", (_answer(status, answer) for status, answer in operation["responses"].items()))}
</section>
"""


def _curl(url: str, operation: Json) -> Iterator[str]:
    """Yield commands to try the operation with."""
    examples = {each["name"]: each.get("example") for each in operation["parameters"]}
    url += _BRACES.sub(lambda found: str(examples[found[1]] or f"${found[1].upper()}"), operation["served"])
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


def _answer(status: str, answer: Json) -> tuple[str, ...]:
    kinds = [
        f"<div>{_code(kind)}{' ' + _type(media['schema']) if kind == JSON else ''}</div>"
        for kind, media in answer["content"].items()
    ]
    headers = [
        f"<div>{_code(name)} {_inline(each['description'])}</div>" for name, each in answer.get("headers", {}).items()
    ]
    return f"s{status[0]}", status, _inline(answer["description"]) + "".join(headers), "".join(kinds)


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (
            "",
            _code(field) + ("" if field in required else "<small>optional</small>"),
            _type(each),
            _inline(each.get("description", "")),
        )
        for field, each in schema.get("properties", {}).items()
    ]
    inside = _table("fields", rows) if rows else f"<p>{_type(schema)}</p>"
    text = _inline(schema.get("description", ""))
    return (
        f'<section class="schema" id="schema-{escape(name)}"><h3>{escape(name)}</h3><p>{text}</p>{inside}</section>\n'
    )


def _table(kind: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Render a table; each of ``rows`` has a CSS class, a heading and cells."""
    lines = [
        f'<tr class="{style}"><th>{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for style, head, *cells in rows
    ]
    return f'<table class="{kind}"><tbody>{"".join(lines)}</tbody></table>'


def _type(schema: Json) -> str:
    """Describe a schema's type briefly."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    default = f"<small>default {escape(str(schema['default']))}</small>" if "default" in schema else ""
    if "enum" in schema:
        return " ".join(map(_code, schema["enum"])) + default
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(schema.get("type", "any JSON")) + default


def _markdown(text: str) -> str:
    """Render the Markdown that the descriptions use: paragraphs, lists and code."""
    blocks = [
        "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in f"\n{block}".split("\n- ")[1:]) + "</ul>"
        if block.startswith("- ")
        else f"<p>{_inline(block)}</p>"
        for block in text.split("\n\n")
    ]
    return "".join(blocks)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\2</code>", escape(text, quote=False))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
