"""Jobs' ``s3Config``, each in a file of its own beside the store and never in it; used by the supervisor process.

A database keeps copies of what it deleted (in free pages, in its log); a file is simply unlinked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from supervisor.errors import StoreError


class SecretFiles:
    """The secrets of the jobs in ``folder``, one file each, for their owner alone. Each method can be repeated safely.

    A file's name is the SHA-256 of the job's id, which a client may have chosen. Every method raises ``StoreError`` where
    the operating system refuses; it names the folder and the job's file, never what is in it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, made with the first one. Beside the store ``jobs.db`` that is ``jobs.db.secrets``."""
        self._folder = folder

    def put(self, job_id: str, data: bytes) -> None:
        """Keep ``data`` for this job; it is on the disk when this returns. What was kept before is replaced."""
        file = self._file(job_id)
        draft = file.with_suffix(".new")
        with _refusals_of(file):
            self._make_folder()
            draft.unlink(missing_ok=True)
            try:
                with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                draft.replace(file)
                _sync_folder(self._folder)
            except OSError:
                # A full disk may have taken a part of it, of a job that will not be.
                draft.unlink(missing_ok=True)
                raise

    def get(self, job_id: str) -> bytes | None:
        """What is kept for this job, if anything."""
        file = self._file(job_id)
        with _refusals_of(file):
            try:
                return file.read_bytes()
            except FileNotFoundError:
                return None

    def drop(self, job_id: str) -> None:
        """Remove what is kept for this job, if anything."""
        file = self._file(job_id)
        with _refusals_of(file):
            file.unlink(missing_ok=True)

    def sweep(self, known_ids: Iterable[str]) -> int:
        """Remove what belongs to no job in ``known_ids``, and drafts that a crash left; how many files that were."""
        known = {self._file(job_id) for job_id in known_ids}
        removed = 0
        with _refusals_of(self._folder):
            if not self._folder.exists():
                return 0
            for file in self._folder.iterdir():
                if file not in known:
                    file.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _file(self, job_id: str) -> Path:
        # JSON may carry half a surrogate pair, which strict UTF-8 refuses.
        return self._folder / hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()

    def _make_folder(self) -> None:
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(self._folder.parent)


def _sync_folder(folder: Path) -> None:
    """Put on the disk which files ``folder`` has (fsync(2): syncing a file does not do that)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusals_of(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{file}: the file of a job's s3Config cannot be used ({error.strerror or error})") from error
