"""Temporary files: this run's folder, those of dead runs, and the checks of ``--private-tmp``; in the supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from supervisor.errors import UsageError
from supervisor.host import files
from supervisor.host.processes import any_started_with
from supervisor.wire.messages import HandlerSpec

HIDDEN = ("/tmp", "/var/tmp")
"""The folders that ``--private-tmp`` replaces (``template/mounts.py``)."""

LEFT_AFTER_S = 60.0
"""Minimum age in seconds of a dead run's folder: a new one is locked a moment after its creation."""

_NAME = re.compile(r"supervise-([0-9a-f]{12})")
_TRY_S = 10.0
_MOUNTS = Path(__file__).parents[1] / "template/mounts.py"


def make_run_folder(run_id: str) -> tuple[Path, int]:
    """Create this run's folder; return it and a descriptor that locks it: while any process holds that, the run is not dead.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        parent = Path(tempfile.gettempdir())
        remove_leftovers(parent)
        path = parent / f"supervise-{run_id[:12]}"
        path.mkdir(0o700)
        return path, _lock(path)
    except OSError as error:
        raise UsageError(f"the folder for temporary files cannot be made: {files.refusal(error)}") from error


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of this user's dead runs: not locked, and without a running process."""
    for path in parent.glob("supervise-*"):
        if (name := _NAME.fullmatch(path.name)) is None:
            continue
        with contextlib.suppress(OSError):  # it is locked, or was removed
            status = path.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < LEFT_AFTER_S:
                continue
            descriptor = _lock(path)
            try:
                if not any_started_with(f"SUPERVISE_RUN_ID={name[1]}".encode()):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def check_private_tmp(spec: HandlerSpec) -> tuple[str, ...]:
    """Check that ``--private-tmp`` works; return the folders below ``HIDDEN`` that workers need: the handler's, and Python's.

    Raises:
        UsageError: the handler is directly in a hidden folder, or the system does not allow mounts.
    """
    folder = Path(spec.target).parent if spec.kind == "file" else Path.cwd()
    for place in {str(folder), os.path.realpath(folder)}:
        if place in _hidden():
            raise UsageError(
                f"--private-tmp: the handler lies directly in {place}, which its worker would not see; "
                "move it to a folder of its own"
            )
    with tempfile.TemporaryDirectory(prefix="supervise-tried-") as tried:
        command = [sys.executable, "-I", str(_MOUNTS), tried]
        try:
            done = subprocess.run(command, cwd="/", check=False, capture_output=True, text=True, timeout=_TRY_S)
        except subprocess.TimeoutExpired:
            raise UsageError(f"--private-tmp: the system did not answer within {_TRY_S:g} s") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it was refused"])[-1]
        raise UsageError(
            f"--private-tmp: this system does not let us mount ({reason}). In Docker, start the container with "
            "--cap-add SYS_ADMIN --security-opt apparmor=unconfined; on Ubuntu, as an ordinary user, "
            "set kernel.apparmor_restrict_unprivileged_userns=0; or leave --private-tmp out and use TMPDIR"
        )
    return tuple(_outermost(_needed(folder)))


def _needed(folder: Path) -> Iterator[Path]:
    package = Path(__file__).parents[1]
    yield from (folder, Path.cwd(), package.parent, package.resolve().parent)
    yield from (Path(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)))
    # The pipes of CUDA's Multi-Process Service are there.
    yield Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))


def _outermost(paths: Iterator[Path]) -> Iterator[str]:
    """Yield the folders of ``paths``, absolute and resolved, that are below ``HIDDEN`` and not inside another one of them."""
    hidden = _hidden()
    names = {name for path in paths for name in (str(path.absolute()), os.path.realpath(path))}
    found: list[Path] = []
    for path in sorted(map(Path, names)):
        below = any(Path(place) in path.parents for place in hidden)
        if below and path.is_dir() and not any(outer in path.parents for outer in found):
            found.append(path)
            yield str(path)


def _hidden() -> set[str]:
    return {name for place in HIDDEN for name in (place, os.path.realpath(place))}


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
