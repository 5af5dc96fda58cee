"""Starts the command line, for the console script, ``bin/supervise`` and ``python -m supervisor``.

Everything is imported under ``main``: processes that import this file again (multiprocessing's) get nothing of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import supervisor


def main() -> int:
    """Run the command that ``sys.argv`` asks for and give its exit code."""
    try:
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
    return run()


def name_clash(package: Path, path: Iterable[str]) -> str | None:
    """What to tell a user whose environment has supervisord too: its import name is ``supervisor`` as well.

    ``package`` is this package's folder, ``path`` where Python looks for modules. Metadata folders are looked at by name:
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
