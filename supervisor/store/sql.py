"""Reads the SQL files of this folder; runs in the supervisor process when it opens its store."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_FOLDER = Path(__file__).parent
_HEADING = re.compile(r"^-- (name|fragment): (\w+)\n", re.MULTILINE)


class Queries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The statements of ``queries.sql``, one field each."""

    insert_queued: str
    insert_started: str
    insert_input: str
    start: str
    end_running: str
    end_queued: str
    requeue: str
    retry: str
    add_chunk: str
    take_chunks: str
    show_chunks: str
    add_log: str
    clear_log: str
    add_webhook: str
    add_webhook_body: str
    put_off_webhook: str
    drop_webhook: str
    drop_webhook_body: str
    probe: str
    forget: str
    get: str
    facts: str
    queued: str
    running: str
    with_s3_config: str
    newest_ended: str
    oldest_ended: str
    page: str
    expired: str
    next_expiry: str
    log: str
    log_end: str
    webhook_receivers: str
    webhooks: str
    webhook_body: str
    webhook_count: str
    chunks: str
    counts: str
    used: str
    queued_counts: str
    retried: str
    next_seq: str
    owner: str
    set_owner: str


def read_queries() -> Queries:
    """The named statements, their fragments filled in."""
    # split() with two groups: what stands before the first heading, then kind, name, text, kind, name, text, …
    parts = _HEADING.split((_FOLDER / "queries.sql").read_text(encoding="utf-8"))[1:]
    sections = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=True))
    fragments = {name: text.strip() for kind, name, text in sections if kind == "fragment"}
    queries = {name: text.strip().format_map(fragments) for kind, name, text in sections if kind == "name"}
    return msgspec.convert(queries, Queries)
