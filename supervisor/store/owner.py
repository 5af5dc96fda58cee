"""The handler that owns a store, and the check that another one may run its jobs; in the supervisor process.

A file is named by its path relative to the store's folder, so both can be moved together; any other handler by its module and,
if given, its function.
"""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.config.settings import Settings
from supervisor.errors import UsageError
from supervisor.store import summary
from supervisor.store.store import Store
from supervisor.wire.messages import HandlerSpec


def name_of(spec: HandlerSpec, store: Path) -> str:
    """Return the handler's name in the store at ``store``. Only a file's name contains a slash."""
    if spec.kind != "file":
        return spec.target if spec.attribute is None else f"{spec.target}:{spec.attribute}"
    # Links are kept: `current/handler.py` is the same handler when `current` points to the next release.
    path = os.path.normpath(spec.target)
    if os.path.realpath(path) != os.path.realpath(spec.target):  # `..` behind a link
        path = os.path.realpath(spec.target)
    name = os.path.relpath(path, _folder(store))
    return name if "/" in name else f"./{name}"


def is_same(one: str, other: str, store: Path) -> bool:
    """Return whether two names mean one handler: the same file by any path, or one module without two different functions."""
    if "/" in one and "/" in other:
        return one == other or os.path.realpath(_path(one, store)) == os.path.realpath(_path(other, store))
    (module, _, function), (other_module, _, other_function) = one.partition(":"), other.partition(":")
    return module == other_module and (function == other_function or not (function and other_function))


def check(store: Store, settings: Settings) -> str | None:
    """Check that the handler of ``settings`` may use ``store``; return a message if it was another's. Writes nothing.

    Raises:
        UsageError: another handler left unfinished jobs there, and no option lets this one run them.
    """
    ours, theirs = name_of(settings.spec, store.path), store.owner
    if theirs is None or is_same(theirs, ours, store.path):
        return None
    here = f"store {summary.shown(store.path)}"
    us, them = _readable(ours, store.path), _readable(theirs, store.path)
    unfinished = summary.unfinished(store.counts())
    jobs = f"{unfinished} unfinished job{'s' if unfinished != 1 else ''}"
    why = "--adopt" if settings.adopt else settings.store_given
    if unfinished and why is None:
        other = (
            "another file with --output"
            if settings.input is not None
            else "another store with --endpoint-id or --store"
        )
        raise UsageError(
            f"{here} holds {jobs} of {them}, and this is {us}; name {other}, or take the jobs over and run them with --adopt"
        )
    return f"{here}: {us} takes it over from {them}, with {jobs}" + (f" ({why})" if why is not None else "")


def claim(store: Store, spec: HandlerSpec) -> None:
    """Make this handler the owner of ``store``, before it accepts or runs a job.

    A function stays in the name when the module is given alone: else another function of the module could follow.

    Raises:
        StoreError: the disk is full or failing.
    """
    ours, theirs = name_of(spec, store.path), store.owner
    if theirs not in (ours, f"{ours}:{_function(theirs)}"):
        store.set_owner(ours)


def _function(name: str | None) -> str:
    """Return the function in the name of a handler that is no file."""
    return (name or "").partition(":")[2]


def _folder(store: Path) -> Path:
    # Links are followed: two folders may share one `.supervise` by a link, and their handlers differ.
    return store.resolve().parent


def _path(name: str, store: Path) -> str:
    return os.path.normpath(_folder(store) / name)


def _readable(name: str, store: Path) -> str:
    """Return the name for a message, a file by its whole path. The store is untrusted: control characters become ``?``."""
    whole = _path(name, store) if "/" in name else name
    return "".join(letter if letter.isprintable() else "?" for letter in whole)
