"""A private ``/tmp`` for a worker (``--private-tmp``), by a mount namespace (mount_namespaces(7)).

``enter`` runs in the forked child, before any code of the handler. The supervisor also runs this file as a program, to find out
whether the system allows it; so it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HIDDEN = ("/tmp", "/var/tmp")
"""Folders that are replaced. ``/dev/shm`` stays shared: its names are random, and a worker's processes share memory there."""

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18


def enter(folder: str, kept: Sequence[str], name: str) -> str:
    """Mount folders below ``folder`` over ``HIDDEN``, for this process and its children; folders in ``kept`` stay visible.

    Returns the path of a folder ``name``, created in the new ``/tmp``. This process must have a single thread.

    Raises:
        OSError: the system refuses; its text names the step.
    """
    _unshare()
    _mount("none", "/", _MS_REC | _MS_PRIVATE)  # keep the mounts below from propagating outside
    places = [Path(folder, place.strip("/").replace("/", "-")) for place in HIDDEN]
    for place in places:
        place.mkdir()
        place.chmod(0o1777)
    with contextlib.ExitStack() as stack:
        # By descriptor, since the first mount may hide the others' paths.
        sources = [(_open(place, stack), at) for place, at in zip(places, HIDDEN, strict=True)]
        sources += [(_open(path, stack), path) for path in kept if Path(path).is_dir()]
        for source, at in sources:
            if at not in HIDDEN or Path(at).is_dir():
                Path(at).mkdir(parents=True, exist_ok=True)
                _mount(f"/proc/self/fd/{source}", at, _MS_BIND | _MS_REC)
    os.chdir(Path.cwd())  # the path may lead to another folder now
    own = Path(HIDDEN[0], name)
    own.mkdir(0o700)
    return str(own)


def _open(path: str | Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _unshare() -> None:
    """Enter a new mount namespace: directly as root, else in a user namespace (user_namespaces(7)) that keeps uid and gid."""
    user, group = os.geteuid(), os.getegid()
    unshare = _library().unshare
    if user == 0 and unshare(_CLONE_NEWNS) == 0:
        return
    _check(unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", file).write_text(text)


def _mount(source: str, target: str, flags: int) -> None:
    status = _library().mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None)
    _check(status, f"mount on {target}")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    try:
        enter(sys.argv[1], (), "tried")
    except OSError as error:
        sys.exit(str(error))
