"""Exit statuses in words; in the supervisor."""

from __future__ import annotations

import signal

_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
)


def describe_exit(status: int) -> str:
    """How a worker ended, in words that follow its name: ``-N`` is death by signal N, anything else an exit code."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        signum = signal.Signals(-status)
    except ValueError:
        return f"was killed by signal {-status}"
    if signum is signal.SIGKILL:
        return "was killed by SIGKILL; it may have run out of memory"
    return f"crashed with {signum.name}" if signum in _CRASHES else f"was killed by {signum.name}"
