"""A job's s3Config lies in a file of its own, never in the database, and goes with the job."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from supervisor.errors import StoreError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, Requeue, StartJob
from tests.store.numbered import numbered

SECRET = b'{"accessSecret": "s3cr3t-0f-a-cl1ent"}'


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jobs.db.secrets"


@pytest.fixture
def secrets(folder):
    return SecretFiles(folder)


@pytest.mark.parametrize(
    "job_id", ["a", "", "../../etc/passwd", "a/b", ".", "nul\0", "x" * 5_000, "ünïcödé 🦊", "\ud800", "a\nb", ".new"]
)
def test_any_id_of_a_client_is_safe(secrets, folder, tmp_path, job_id):
    assert secrets.get(job_id) is None
    secrets.put(job_id, SECRET)
    secrets.put("other", b"{}")
    assert secrets.get(job_id) == SECRET
    assert SecretFiles(folder).get(job_id) == SECRET
    assert len(list(folder.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [folder]
    secrets.drop(job_id)
    assert secrets.get(job_id) is None
    assert secrets.get("other") == b"{}"


def test_everything_can_be_done_again(secrets):
    secrets.drop("a")
    assert secrets.sweep([]) == 0
    secrets.put("a", b"1")
    secrets.put("a", b"2")
    assert secrets.get("a") == b"2"
    secrets.drop("a")
    secrets.drop("a")


def test_nothing_of_a_secret_that_the_disk_does_not_take_is_left(secrets, folder, files_limited_to):
    secrets.put("known", b"{}")
    with files_limited_to(8), pytest.raises(StoreError):
        secrets.put("a", SECRET)
    assert len(list(folder.iterdir())) == 1
    assert secrets.get("a") is None


def test_they_are_their_owners_alone(secrets, folder):
    before = os.umask(0)
    try:
        secrets.put("a", SECRET)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]


def test_it_is_on_disk_before_put_returns(secrets, folder, monkeypatch):
    """Files, then the folder that names them, and that folder's folder the first time."""
    synced = []
    fsync = os.fsync

    def record(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    secrets.put("a", SECRET)
    (file,) = folder.iterdir()
    assert synced == [str(folder.parent), f"{file}.new", str(folder)]


def test_a_sweep_leaves_what_belongs_to_known_jobs(secrets, folder):
    for job_id in ("a", "b", "c"):
        secrets.put(job_id, job_id.encode())
    draft_of_a_crash = folder / f"{'0' * 64}.new"
    draft_of_a_crash.write_bytes(SECRET)
    (folder / "notes.txt").write_text("not of ours")
    assert secrets.sweep({"b", "unknown"}) == 3
    assert [secrets.get(job_id) for job_id in ("a", "b", "c")] == [None, b"b", None]
    assert not draft_of_a_crash.exists()
    assert (folder / "notes.txt").read_text() == "not of ours"


def refusals(secrets: SecretFiles, words: str) -> None:
    for use in (lambda: secrets.put("a", SECRET), lambda: secrets.get("a"), lambda: secrets.drop("a")):
        with pytest.raises(StoreError, match=words):
            use()
    with pytest.raises(StoreError, match=words):
        secrets.sweep([])


def test_a_link_in_place_of_the_folder_is_not_followed(secrets, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    SecretFiles(elsewhere).put("a", b"of another store")
    folder.symlink_to(elsewhere)
    refusals(secrets, "it is a link")
    assert SecretFiles(elsewhere).get("a") == b"of another store"


def test_a_link_in_place_of_a_file_is_not_followed(secrets, folder, tmp_path):
    secrets.put("a", b"1")
    (file,) = folder.iterdir()
    (tmp_path / "precious").write_text("precious")
    file.unlink()
    file.symlink_to(tmp_path / "precious")
    file.with_name(f"{file.name}.new").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError):
        secrets.get("a")
    secrets.put("a", SECRET)
    assert secrets.get("a") == SECRET
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder another user's")
def test_a_folder_of_another_user_is_refused(secrets, folder):
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    refusals(secrets, "belongs to user 65534")
    assert list(folder.iterdir()) == []


def test_a_draft_that_a_crash_left_is_not_in_the_way(secrets, folder):
    secrets.put("a", b"1")
    (file,) = folder.iterdir()
    file.with_name(f"{file.name}.new").write_bytes(b"half")
    secrets.put("a", b"2")
    assert secrets.get("a") == b"2"


def test_a_refusal_names_the_file_and_not_the_secret(tmp_path):
    (tmp_path / "file").touch()
    secrets = SecretFiles(tmp_path / "file" / "secrets")
    for refused in (lambda: secrets.put("a", SECRET), lambda: secrets.get("a"), lambda: secrets.drop("a")):
        with pytest.raises(StoreError, match="Not a directory") as failure:
            refused()
        assert str(tmp_path / "file") in str(failure.value)
        assert "s3cr3t" not in str(failure.value)


def test_the_database_never_has_it(file, commit):
    def nowhere() -> bool:
        files = [path for path in file.parent.iterdir() if path.is_file()]
        return bool(files) and not any(b"s3cr3t" in path.read_bytes() for path in files)

    with Store.open(file) as store:
        for seq in range(1, 4):
            commit(store, Insert(seq, JobRequest(f"{seq}", b"{}", s3_config=SECRET), 1))
            assert numbered(store, seq).has_s3_config
            commit(store, StartJob(seq, 2, "w"), Requeue(seq, charged=True), StartJob(seq, 2, "w"))
            commit(store, End(seq, Outcome(JobStatus.COMPLETED, b"{}"), 3))
            assert nowhere()
        assert file.with_name(f"{file.name}-wal").stat().st_size > 0
    assert nowhere()
