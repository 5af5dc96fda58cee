"""Paths of a handler's temporary files, and ``rp_cleanup.clean``; wherever the handler's code runs.

RunPod gives each worker a machine of its own, so its package uses fixed names in the current folder. Here many workers share one
machine and one folder, and many jobs may share one worker, so those names lead into folders per job, in this generation's own:

==================================== =================================================================================
in the package                       here
==================================== =================================================================================
``job_files/``, ``input_objects/``   ``{own folder}/jobs/{job}/job_files/``, ``…/input_objects/``
``jobs/{id}/downloaded_files/``      ``{own folder}/jobs/{job}/downloaded_files/``
``local_upload/{name}``              ``local_upload/{job}/{name}`` in the current folder: it is a result, and outlives the worker
==================================== =================================================================================
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from . import current_job

OWN_FOLDER = "SUPERVISE_TMPDIR"
"""The variable for this generation's own folder. ``TMPDIR`` names it too, unless a handler changes that."""

_PACKAGES_NAMES = frozenset({"input_objects", "job_files", "output_objects"})
_UNIQUE = re.compile(r"[0-9a-f-]{16,}|line-\d+-[0-9a-f]{8}")
"""Ids that no other path contains by chance: generated ones, UUIDs, and those of a batch's lines."""


def own_folder() -> Path:
    """Return this generation's own folder; the current folder in a process that no worker started."""
    return Path(os.environ.get(OWN_FOLDER, ".")).resolve()


def job_folder(job: str | None) -> Path:
    """Return the folder for files of ``job``; None: of an unknown job."""
    return own_folder() / "jobs" / _file_name(job) if job else own_folder()


def routed(first: str, *rest: str) -> Path | None:
    """Return the path here for the package's ``first/rest`` in the current folder; None if that is not one of its own paths."""
    job = current_job()
    if first in _PACKAGES_NAMES:
        return job_folder(job).joinpath(first, *rest)
    if first == "jobs" and rest:
        return job_folder(job or rest[0]).joinpath(*rest[1:])
    return None


def save_locally(
    file_name: str,
    source_path: str | None = None,
    file_data: bytes | None = None,
    directory: str = "local_upload",
) -> str:
    """Save a file that there is no bucket for in ``directory`` of the current folder; return its relative path.

    Files named by the handler go into a folder per job, so that jobs do not overwrite each other's results.
    """
    sys.stderr.write(f"there is no bucket to upload {file_name} to, so it is kept in the folder {directory}\n")
    folder = Path(directory)
    if directory == "local_upload":
        folder /= _file_name(current_job() or uuid.uuid4().hex)
    path = folder / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    if source_path:
        shutil.copyfile(source_path, path)
    elif file_data is not None:
        path.write_bytes(file_data)
    else:
        raise ValueError("either source_path or file_data must be given")
    return str(path)


def clean(folder_list: Iterable[str | os.PathLike[str]] | None = None) -> None:
    """Remove the files of the calling job, and those folders in ``folder_list`` that are certainly its own.

    These are folders inside this generation's own, and folders with the job's id in their path. Others, such as ``temp_images``
    in the current folder or ``/tmp``, may hold files of other workers and jobs: they stay, with a warning on stderr, once each.
    """
    job = current_job()
    if job:
        shutil.rmtree(job_folder(job), ignore_errors=True)
    for named in folder_list or ():
        path = Path(os.path.abspath(named))  # noqa: PTH100 - the last component, if a link, must not be resolved
        path = path.parent.resolve() / path.name
        if not path.is_dir():
            continue
        if _belongs_to_job(path, job):
            shutil.rmtree(path, ignore_errors=True)
        else:
            _warn_once(
                f"rp_cleanup.clean keeps {path}, where files of other jobs may be; "
                "it removes folders that are in TMPDIR or have the job's id in their path"
            )


def _belongs_to_job(path: Path, job: str | None) -> bool:
    own = own_folder()
    if OWN_FOLDER in os.environ and own in path.parents:
        jobs = own / "jobs"  # where each job has its part
        return path != jobs and jobs not in path.parents
    if job is None or _UNIQUE.search(job) is None:  # a client's own id, such as `models`, proves nothing
        return False
    return job in str(path) and not any(path in (place, *place.parents) for place in (Path.cwd(), own))


def _file_name(name: str) -> str:
    """Quote ``name`` as a single component of a path."""
    quoted = quote(name, safe=" :@+=~")
    return quoted if quoted.strip(".") else f"_{quoted}"


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    sys.stderr.write(f"{message}\n")
