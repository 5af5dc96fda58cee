"""Reads processes from ``/proc``; used by the supervisor and the reader process."""

from __future__ import annotations


def parent_of(pid: int) -> int | None:
    """Return the parent of process ``pid``, 0 if outside this PID namespace; ``None`` if no such process is visible."""
    stat = _read(f"/proc/{pid}/stat")
    # The command's name, in parentheses, may hold spaces and parentheses; the parent is the second field behind it.
    return int(stat[stat.rindex(b")") + 2 :].split()[1]) if stat else None


def name_of(pid: int) -> str | None:
    """Return the command name of process ``pid``; ``None`` if no such process is visible."""
    return _read(f"/proc/{pid}/comm").decode("utf-8", "replace").rstrip("\n") or None


def anonymous_memory_of(pid: int) -> int | None:
    """Return the resident anonymous memory of process ``pid`` in bytes; ``None`` if it is dead or does not exist."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


def started_at(pid: int) -> int | None:
    """Return when process ``pid`` started, in clock ticks since boot (unique with the pid); ``None`` if it does not exist."""
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(b")") + 2 :].split()[19]) if stat else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last: /proc is mounted with hidepid
        return b""
