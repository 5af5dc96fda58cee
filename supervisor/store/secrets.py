"""Jobs' ``s3Config``, each in a file of its own beside the store and never in it; in the supervisor process.

A database keeps copies of deleted data (in free pages, in its log); a file is simply unlinked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from supervisor.errors import SecretError
from supervisor.host import files

_NAME = re.compile(r"[0-9a-f]{64}(\.new)?")


class SecretFiles:
    """The jobs' secrets in ``folder``, one file each, readable by its owner alone. Each method can be repeated safely.

    A file's name is the SHA-256 of the job's id, which a client may have chosen. Every method raises ``SecretError`` on an error
    of the operating system; it names the folder and the job's file, never the content.
    """

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, created with the first file. For the store ``jobs.db`` that is ``jobs.db.secrets`` beside it."""
        self._folder = folder

    def put(self, job_id: str, data: bytes) -> None:
        """Write ``data`` for this job, replacing older data; it is on the disk when this returns."""
        name = _name(job_id)
        draft = f"{name}.new"
        with self._refusals_of(name):
            self._make_folder()
            with self._opened() as folder:
                _remove(draft, folder)
                try:
                    with open(files.make_file(draft, dir_fd=folder), "wb") as out:
                        out.write(data)
                        out.flush()
                        os.fsync(out.fileno())
                    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)  # its list of files, which syncing a file does not cover (fsync(2))
                except OSError:
                    # A full disk may have stored a part of it, for a job that is now rejected.
                    _remove(draft, folder)
                    raise

    def get(self, job_id: str) -> bytes | None:
        """Return this job's data, if any."""
        name = _name(job_id)
        with self._refusals_of(name):
            try:
                with self._opened() as folder:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
                        return file.read()
            except FileNotFoundError:
                return None

    def need(self, job_id: str) -> bytes:
        """Return the data of a job that must have some: ``SecretError`` also if the file is missing."""
        data = self.get(job_id)
        if data is None:
            raise self._error(_name(job_id), "the file is missing")
        return data

    def drop(self, job_id: str) -> None:
        """Remove this job's data, if any."""
        name = _name(job_id)
        with self._refusals_of(name), contextlib.suppress(FileNotFoundError), self._opened() as folder:
            _remove(name, folder)

    def sweep(self, known_ids: Iterable[str]) -> int:
        """Remove files of jobs not in ``known_ids`` and drafts that a crash left; return the number of files."""
        known = {_name(job_id) for job_id in known_ids}
        removed = 0
        with self._refusals_of(""), contextlib.suppress(FileNotFoundError), self._opened() as folder:
            for name in os.listdir(folder):  # noqa: PTH208 - by its descriptor
                if name not in known and _NAME.fullmatch(name):
                    _remove(name, folder)
                    removed += 1
        return removed

    def _make_folder(self) -> None:
        if not self._folder.exists():
            files.make_folders(self._folder)
            _sync_folder(self._folder.parent)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder and yield a descriptor for access to its files. A link, or another user's folder, is rejected."""
        descriptor = files.open_folder(self._folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _refusals_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(name, error.strerror or str(error)) from error

    def _error(self, name: str, reason: str) -> SecretError:
        return SecretError(os.fsencode(self._folder / name).decode("utf-8", "backslashreplace"), reason)


def _name(job_id: str) -> str:
    # JSON may carry half a surrogate pair, which strict UTF-8 rejects.
    return hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()


def _remove(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
