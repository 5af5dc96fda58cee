"""Starts the command line, for the console script, ``bin/supervise`` and ``python -m supervisor``.

Imports are inside ``main``, so that processes that import this file again (multiprocessing's) skip them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import supervisor


def main() -> int:
    """Run the command in ``sys.argv`` and return its exit code."""
    try:
        open_streams()
        warning = name_clash(Path(__file__).parent, sys.path)
        if warning:
            sys.stderr.write(f"supervise: {warning}\n")
            if not hasattr(supervisor, "__version__"):
                return 2
        from supervisor.cli.app import main as run  # noqa: PLC0415 - see above; and a clash may have broken it
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("supervisor"):
            raise
        sys.stderr.write(
            f"supervise: the package {error.name} is missing; install what supervise needs: pip install .\n"
        )
        return 2
    except OSError as error:
        sys.stderr.write(f"supervise: the program cannot be loaded: {error}\n")
        return 2
    return run()


def open_streams() -> None:
    """Open closed ones of descriptors 0 to 2 (``2>&-``) on ``/dev/null``: a socket must not get such a number."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if not _is_open(fd):
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115 - as long as the process


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def name_clash(package: Path, path: Iterable[str]) -> str | None:
    """Return a warning if the environment has supervisord too, whose import name is ``supervisor`` as well.

    ``package`` is this package's folder, ``path`` Python's module search path. Metadata folders are found by name:
    ``importlib.metadata`` would take longer than the rest of the start.
    """
    remedy = "give supervise a virtual environment of its own"
    if (package / "supervisord.py").exists():
        return f"supervisord is installed into the same folder, {package}, and each overwrites files of the other; {remedy}"
    for folder in path:
        found = next(Path(folder).glob("supervisor-*.*-info"), None)
        if found is not None:
            return (
                f"supervisord ({found.name}) is installed in {folder} under the same import name, supervisor; {remedy}"
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
