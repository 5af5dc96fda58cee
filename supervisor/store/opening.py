"""Creates, checks, locks, migrates and tunes the store's file; in the supervisor process when it opens its store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from supervisor.errors import StoreError, StoreVersionError
from supervisor.store import place
from supervisor.store.failures import explain, explain_opening

MEMORY = Path(":memory:")
"""The path of a store in memory: the same code and rules, deleted when it is closed."""

TEMPORARY = Path(":temporary:")
"""The path of a store in an unnamed temporary file, to which SQLite spills its cache. It is deleted when it is closed or the
process exits, so nothing is synced, and a job costs half as much (measured)."""

STEPS = (Path(__file__).with_name("schema.sql"),)
"""Migrations: the script that makes each version (``PRAGMA user_version``) from the one before, starting with an empty file.
Never change a released one: add another."""

APPLICATION_ID = int.from_bytes(b"supj", "big")
"""``PRAGMA application_id``, which marks a job store among SQLite files (``supv`` before the first release)."""

OLDEST_SQLITE = (3, 35, 0)
"""For ``DELETE … RETURNING``."""

Durability = Literal["normal", "full"]

Connections = tuple[sqlite3.Connection, sqlite3.Connection]
"""The writing and the reading connection of an open store, which may be the same."""

_PAGE_SIZE = 2048
"""Bytes. A commit writes whole pages to the log. Compared with SQLite's default of 4096, a commit of one job took a third less
time, with 50 KB of input a tenth less, with 1 MB the same (measured)."""

# secure_delete is on in Debian's build and overwrites every freed page; the store has no secrets.
# No mmap_size: it halved the time to read a large output, but an I/O error would be a SIGBUS that kills the supervisor, and the
# pages count as its memory.
# 2000 pages of log (4 MB): a checkpoint, inside the commit that fills the log, takes about 5 ms; with 8000 about 15.
_TUNING = """
PRAGMA synchronous = NORMAL;
PRAGMA secure_delete = OFF;
PRAGMA cache_size = -8192;
PRAGMA temp_store = MEMORY;
PRAGMA wal_autocheckpoint = 2000;
PRAGMA journal_size_limit = 16777216;
"""


def connect(path: Path, durability: Durability, note: Callable[[str], None]) -> Connections:
    """Open, or create, the store at ``path`` for this process alone; statements outside BEGIN commit at once.

    An older store is migrated, after a call of ``note``, since a large one takes a while. ``note`` also warns if others may read
    the store: its mode is set when the file is made, and never changed afterwards.

    ``normal`` uses one connection in SQLite's exclusive locking mode: that is the store's lock. ``full`` uses two, so that reads
    never wait for the disk and show only committed data. Their lock is a shared one, which excludes every exclusive opener, and
    ``connect`` always begins as one. (``gpu.locks.lock_store``, called before, decides between two that open it ``full`` at the
    same instant.) Raises as ``Store.open`` does.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        need = ".".join(map(str, OLDEST_SQLITE))
        raise StoreError(
            f"this Python has SQLite {sqlite3.sqlite_version}, and the job store needs {need} or newer; use another Python"
        )
    if path in (MEMORY, TEMPORARY):
        return _open(path, None, "normal", note)
    made = place.make(path)
    try:
        if os.fstat(made).st_size:
            _refuse_foreign(path)
        connections = _open(path, made, durability, note)
    finally:
        os.close(made)
    if warning := place.permission_warning(path):
        note(warning)
    return connections


def _open(path: Path, made: int | None, durability: Durability, note: Callable[[str], None]) -> Connections:
    opened: list[sqlite3.Connection] = []
    try:
        opened.append(_connect(path))
        _open_alone(opened[0], path, made, note)
        if durability == "full":
            opened.pop().close()
            opened += [_connect(path), _connect(path)]
            for db in opened:
                _tune(db, path)
                db.execute("PRAGMA synchronous = FULL")
                _pragma(db, "user_version")  # a read, which takes the lock
            opened[1].execute("PRAGMA query_only = ON")
    except BaseException as error:
        for db in opened:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise explain_opening(error, path) from error
        raise
    return opened[0], opened[-1]


def _connect(path: Path) -> sqlite3.Connection:
    file = "" if path == TEMPORARY else path
    return sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=64)


def _refuse_foreign(path: Path) -> None:
    """Reject another program's file, or a newer store, by its header alone: a normal open could change it.

    ``immutable`` keeps SQLite from locking, from the WAL and from writing. Reading the header without SQLite would drop the
    locks that this process may have on the file (fcntl(2)).
    """
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
        try:
            if _pragma(db, "schema_version"):  # else an earlier start was interrupted before it created the tables
                _check_identity(db, path)
        finally:
            db.close()
    except sqlite3.Error as error:
        # A checkpoint that a kill or a full disk interrupted leaves a file that is valid with its log only. SQLite repairs that
        # when it opens both, and the file's identity is checked again then.
        if "malformed" not in str(error) or not Path(f"{path}-wal").exists():
            raise explain(error, path) from error


def _check_identity(db: sqlite3.Connection, path: Path) -> int:
    """Return the store's version, after checking that this program supports it."""
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise StoreError(
            f"{path}: this file belongs to another program, or to a supervise from before its first release; "
            "name another one with --store, or move this one away"
        )
    version = _pragma(db, "user_version")
    if version > len(STEPS):
        raise StoreVersionError(
            f"{path}: a newer version of supervise wrote this job store (its version is {version}, this program knows "
            f"{len(STEPS)}); upgrade supervise, or name another file with --store"
        )
    return version


def _open_alone(db: sqlite3.Connection, path: Path, made: int | None, note: Callable[[str], None]) -> None:
    """Lock the store for as long as it is open, and create or migrate its tables.

    ``made`` is a descriptor of the expected file: SQLite would follow a link that has replaced it since.
    """
    db.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # has an effect on an empty file only
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first read: then the WAL's index needs no -shm file
    db.execute("BEGIN EXCLUSIVE")
    if made is not None and not place.is_same_file(path, made):
        raise StoreError(f"{path}: the file was replaced while it was opened; start again")
    # The schema's version is raised by the first CREATE.
    version = _check_identity(db, path) if _pragma(db, "schema_version") else 0
    db.execute("COMMIT")  # the lock stays
    if 0 < version < len(STEPS):
        note(f"{path}: migrating this job store from version {version} to {len(STEPS)}, which may take a while")
    for number, step in enumerate(STEPS[version:], version + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        db.executescript(f"BEGIN; {step.read_text('utf-8')} {marks} COMMIT;")
    _tune(db, path)


def _tune(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal" and path not in (MEMORY, TEMPORARY):
        raise StoreError(f"{path}: SQLite cannot keep a write-ahead log here (its journal is {mode})")
    db.executescript(_TUNING)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    (value,) = db.execute(f"PRAGMA {name}").fetchone()
    return int(value)
