"""Makes, checks, locks, upgrades and tunes the store's file; runs in the supervisor process when it opens its store."""

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
"""The path of a store without a file: the same code and rules, gone when it is closed."""

TEMPORARY = Path(":temporary:")
"""The path of a store in a temporary file without a name: SQLite writes to it what its cache does not hold, and the file is gone
when it is closed or the process ends. Nothing outlives the process, so nothing is synced: a job costs half (measured)."""

STEPS = (Path(__file__).with_name("schema.sql"),)
"""The script that makes each version (``PRAGMA user_version``) of the one before, from an empty file on. One that was released is
not changed any more: whoever changes a table adds another."""

APPLICATION_ID = int.from_bytes(b"supj", "big")
"""``PRAGMA application_id``: what tells a job store from any other SQLite file (``supv`` were those before the first release)."""

OLDEST_SQLITE = (3, 35, 0)
"""For ``DELETE … RETURNING``."""

Durability = Literal["normal", "full"]

Connections = tuple[sqlite3.Connection, sqlite3.Connection]
"""To a store that is open: what writes, and what reads, which may be the same."""

_PAGE_SIZE = 2048
"""Bytes. A commit writes whole pages to the log: against SQLite's default of 4096, one job a commit took a third less
time, 50 KB of input a tenth less, 1 MB the same (measured)."""

# secure_delete is on in Debian's build and writes every freed page; nothing in here is secret.
# No mmap_size: it halved the time to read a large output, but an I/O error would be a SIGBUS that ends the supervisor, and the
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
    """The connections that alone have the store at ``path``, made if it is not there; statements outside BEGIN commit at once.

    A store of an older version is brought to this one; ``note`` is told before, since a large one takes a while. It is told, too,
    that others may read the store, whose mode is the user's: it is set as the file is made, and never afterwards.

    ``normal`` has one connection and SQLite's exclusive locking mode: that is the store's lock. ``full`` has two, so that reading
    never waits for the disk and shows only what is on it; their lock on the file is a shared one, which keeps away whoever wants
    it alone, as ``connect`` does each time at first. (Two that open it ``full`` at the same instant are told apart by
    ``gpu.locks.lock_store``, which comes before.) Raises as ``Store.open`` does.
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
    if warning := place.open_to_others(path):
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
                _pragma(db, "user_version")  # reads: from here on it has its lock
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
    """Refuse another program's file, or a newer store, by its header alone: opening it for real could change it.

    ``immutable`` keeps SQLite from locks, from the WAL and from writing. Reading the header without SQLite would drop the
    locks that this process may have on the file (fcntl(2)).
    """
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
        try:
            if _pragma(db, "schema_version"):  # else a start was cut short: there is nothing in it yet
                _check_identity(db, path)
        finally:
            db.close()
    except sqlite3.Error as error:
        # A checkpoint that a kill or a full disk cut short leaves a file that makes sense with its log only. SQLite mends that
        # when it opens both, and what the file is is then looked at again.
        if "malformed" not in str(error) or not Path(f"{path}-wal").exists():
            raise explain(error, path) from error


def _check_identity(db: sqlite3.Connection, path: Path) -> int:
    """The version of the store, which is one that this program knows."""
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
    """Lock the store for as long as it is open, and make its tables if it is empty, or bring them to the present version.

    ``made`` is a descriptor of the file that it must be: SQLite would follow a link that has come into its place since.
    """
    db.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # heeded by an empty file only
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first read: then the WAL's index needs no -shm file
    db.execute("BEGIN EXCLUSIVE")
    if made is not None and not place.is_still(path, made):
        raise StoreError(f"{path}: another file came into its place while it was opened; start again")
    # The schema's version is raised by the first CREATE.
    version = _check_identity(db, path) if _pragma(db, "schema_version") else 0
    db.execute("COMMIT")  # the lock stays
    if 0 < version < len(STEPS):
        note(f"{path}: bringing this job store from version {version} to {len(STEPS)}, which may take a while")
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
