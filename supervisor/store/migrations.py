"""Brings a store of an older version to the present one; runs in the supervisor process when it opens its store.

``migrations/0002.sql`` leads from version 1 to 2, and so on. Its parts are headed ``-- once`` or ``-- until nothing is left``:
the latter moves a few rows from an old table to the new one each time that it is run, so that the room of the old rows is used
again and the file does not grow to twice its size.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path(__file__).parent / "migrations"
_HEADING = re.compile(r"^-- (once|until nothing is left)\n", re.MULTILINE)


def migrate(db: sqlite3.Connection, version: int, newest: int) -> None:
    """Take the tables from ``version`` to ``newest`` in one transaction, which a crash undoes, and the log into the file.

    No copy of the old file is kept: until the transaction is on disk the file is as it was, and a large store would need room for
    itself a third time (the log takes as much for a while).

    Raises:
        sqlite3.Error: the disk is full or failing; the store is as it was.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in range(version + 1, newest + 1):
            _run((_FOLDER / f"{step:04}.sql").read_text(encoding="utf-8"), db)
        db.execute(f"PRAGMA user_version = {newest}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    # An older program looks for the version in the file alone, before it touches anything.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _run(script: str, db: sqlite3.Connection) -> None:
    # What stands before the first heading, then heading, part, heading, part, …
    parts = _HEADING.split(script)[1:]
    for heading, part in zip(parts[0::2], parts[1::2], strict=True):
        statements = list(_statements(part))
        while True:
            changes = [db.execute(statement).rowcount for statement in statements]
            if heading == "once" or not any(changes):
                break


def _statements(script: str) -> Iterator[str]:
    """One after another: ``executescript`` would commit before the first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
