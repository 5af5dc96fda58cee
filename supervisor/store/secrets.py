"""Jobs' ``s3Config``, each in a file of its own beside the store and never in it; used by the supervisor process.

A database keeps copies of what it deleted (in free pages, in its log); a file is simply unlinked.
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
    """The secrets of the jobs in ``folder``, one file each, for their owner alone. Each method can be repeated safely.

    A file's name is the SHA-256 of the job's id, which a client may have chosen. Every method raises ``SecretError`` where
    the operating system refuses; it names the folder and the job's file, never what is in it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, made with the first one. Beside the store ``jobs.db`` that is ``jobs.db.secrets``."""
        self._folder = folder

    def put(self, job_id: str, data: bytes) -> None:
        """Keep ``data`` for this job; it is on the disk when this returns. What was kept before is replaced."""
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
                    os.fsync(folder)  # which files it has: syncing a file does not do that (fsync(2))
                except OSError:
                    # A full disk may have taken a part of it, of a job that will not be.
                    _remove(draft, folder)
                    raise

    def get(self, job_id: str) -> bytes | None:
        """What is kept for this job, if anything."""
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
        """What is kept for this job, which had something: ``SecretError`` also where that is gone."""
        data = self.get(job_id)
        if data is None:
            raise self._error(_name(job_id), "it is gone")
        return data

    def drop(self, job_id: str) -> None:
        """Remove what is kept for this job, if anything."""
        name = _name(job_id)
        with self._refusals_of(name), contextlib.suppress(FileNotFoundError), self._opened() as folder:
            _remove(name, folder)

    def sweep(self, known_ids: Iterable[str]) -> int:
        """Remove what belongs to no job in ``known_ids``, and drafts that a crash left; how many files that were."""
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
        """A descriptor of the folder, by which its files are reached. A link in its place, or another's folder, is refused."""
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
    # JSON may carry half a surrogate pair, which strict UTF-8 refuses.
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
