"""What must not be left when all is over: processes, locks, files, fake GPU memory, secrets; in the chaos program."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from supervisor.host.temporary import remove_leftovers
from tests.chaos.house import House
from tests.chaos.kinds import SECRET


def remains(houses: list[House], folder: Path, temporary: Path) -> Iterator[str]:
    """What is left of these houses, none of which runs any more."""
    for house in houses:
        for life in house.lives:
            if left := life.left():
                yield f"{house.name}: life {life.number} left processes: {left}"
    for lock in folder.rglob("*.lock"):
        if not _is_free(lock):
            yield f"the lock {lock.name} is still held"
    # A supervisor that is killed while its template imports leaves an empty folder, for the next start a minute later.
    for path in temporary.glob("supervise-*"):
        os.utime(path, (0, 0))
    remove_leftovers(temporary)
    if found := [str(path) for path in temporary.rglob("*")]:
        yield f"temporary files are left: {found[:10]}"
    if used := gpu_memory(folder / "nvml"):
        yield f"GPU memory is still in use: {used}"
    for secrets in folder.rglob("*.secrets"):
        if found := [path.name for path in secrets.iterdir()]:
            yield f"{secrets.name} still has {found}"
    yield from secrets_in(folder)


def secrets_in(folder: Path) -> Iterator[str]:
    """The files that have a secret in them."""
    for path in folder.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            yield f"a secret is in {path.relative_to(folder)}"


def gpu_memory(nvml: Path) -> dict[str, int]:
    """MiB by GPU and process that the living have."""
    used = {}
    for path in (nvml / "alloc").glob("*/[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if Path(f"/proc/{path.name}").exists():
                used[f"{path.parent.name}/{path.name}"] = int(path.read_text())
    return used


def tidy(nvml: Path) -> None:
    """Forget the memory of dead processes: the fake driver knows a process by its number alone, and numbers come again."""
    for path in (nvml / "alloc").glob("*/[0-9]*"):
        if not Path(f"/proc/{path.name}").exists():
            path.unlink(missing_ok=True)


def _is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
