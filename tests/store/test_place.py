"""The store's place: modes are set as its files are made, and what is no file of ours is refused as it is."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.errors import StoreError
from supervisor.job import JobRequest
from supervisor.store import opening, place
from supervisor.store.store import Store
from supervisor.store.writes import Insert

NOBODY = 65534
ENDINGS = ("", *place.SQLITES)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def mode(file: Path) -> int:
    return stat.S_IMODE(file.lstat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o277])
def test_its_files_are_their_owners_alone_from_the_first_moment(tmp_path, commit, umask, mask):
    file = tmp_path / "new" / "folders" / "jobs #1?.db"
    notes: list[str] = []
    umask(mask)
    with Store.open(file, note=notes.append) as store:
        commit(store, Insert(1, JobRequest("job-1", b"1"), 10))
        files = list(file.parent.iterdir())
    assert {path.name for path in files} == {file.name, f"{file.name}-wal"}
    assert mode(file) == 0o600
    assert mode(file.parent) == mode(file.parent.parent) == 0o700
    assert notes == []


def test_the_log_has_the_mode_of_the_file(file, umask):
    with Store.open(file):
        assert mode(Path(f"{file}-wal")) == 0o600


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_a_mode_that_is_there_is_the_users_own_and_is_said(tmp_path, loop, umask, durability):
    file = tmp_path / "my jobs.db"
    Store.open(file).close()
    file.chmod(0o644)
    (tmp_path / "my jobs.db.secrets").mkdir(mode=0o755)
    notes: list[str] = []
    with Store.open(file, durability=durability, deliver=loop.deliver, note=notes.append):
        assert mode(file) == 0o644
        (note,) = notes
        assert "\n" not in note
        command = note.rpartition(": ")[2]
        assert os.system(command) == 0
    assert mode(file) == 0o600
    assert mode(tmp_path / "my jobs.db.secrets") == 0o700
    Store.open(file, note=notes.append).close()
    assert len(notes) == 1


def plant_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def plant_folder(path: Path, target: Path) -> None:
    path.mkdir()


def plant_pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def plant_device(path: Path, target: Path) -> None:
    """What /dev/null is."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_link, "a link"),
        (plant_folder, "a folder"),
        (plant_pipe, "a FIFO"),
        (plant_socket, "a socket"),
        (plant_device, "a device"),
    ],
)
def test_what_is_no_file_is_refused_as_it_is(tmp_path, umask, ending: str, plant: Callable[..., None], words: str):
    file = tmp_path / "jobs.db"
    if ending:
        Store.open(file).close()
    target = tmp_path / "precious"
    target.write_text("precious")
    target.chmod(0o644)
    planted = Path(f"{file}{ending}")
    plant(planted, target)
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    refusal = pytest.raises(StoreError, match=f"{planted.name}: this is {words}, not a regular file of yours")
    with refusal:
        Store.open(file)
    if ending:
        with refusal:
            place.resolve(file)
    assert {path.name: path.lstat() for path in tmp_path.iterdir()} == before
    assert target.read_text() == "precious"


@needs_root
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_another_user_owns_is_refused_as_it_is(file, ending):
    Store.open(file).close()
    theirs = Path(f"{file}{ending}")
    theirs.touch()
    os.chown(theirs, NOBODY, NOBODY)
    before = theirs.read_bytes(), theirs.stat()
    for use in (place.resolve, Store.open):
        with pytest.raises(StoreError, match=f"{theirs.name}: this file belongs to user {NOBODY}"):
            use(file)
    assert (theirs.read_bytes(), theirs.stat().st_mtime_ns) == (before[0], before[1].st_mtime_ns)
    assert {path.name for path in file.parent.iterdir()} == {file.name, theirs.name}


def test_where_all_files_have_one_owner_it_is_ours(file, monkeypatch):
    """As on a disk that was mounted from Windows: stat says the same user for each file, whoever makes it."""
    Store.open(file).close()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    Store.open(file).close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_file_in_its_place_is_noticed(file, tmp_path, monkeypatch):
    """The last moment: between the look at it and SQLite's own."""
    precious = tmp_path / "precious.db"
    precious.touch()
    connect = sqlite3.connect

    def swap(path, **options):
        file.unlink()
        file.symlink_to(precious)
        return connect(path, **options)

    monkeypatch.setattr(opening.sqlite3, "connect", swap)
    with pytest.raises(StoreError, match="the file was replaced"):
        Store.open(file)
    assert precious.read_bytes() == b""


# --- a store that a link names ----------------------------------------------------------------------------------------------


def test_a_link_means_the_file_behind_it(tmp_path):
    """As for SQLite, which keeps its other files beside that one."""
    (tmp_path / "disk").mkdir()
    link, middle = tmp_path / "jobs.db", tmp_path / "disk" / "now.db"
    link.symlink_to("disk/now.db")
    middle.symlink_to("1.db")
    assert place.resolve(link) == tmp_path / "disk" / "1.db"
    with Store.open(place.resolve(link)):
        assert {path.name for path in (tmp_path / "disk").iterdir()} == {"now.db", "1.db", "1.db-wal"}
    assert {path.name for path in tmp_path.iterdir()} == {"jobs.db", "disk"}


def test_links_without_end(tmp_path):
    link = tmp_path / "jobs.db"
    link.symlink_to("jobs.db")
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        place.resolve(link)


@needs_root
def test_a_link_of_another_user_is_not_followed(tmp_path):
    link = tmp_path / "jobs.db"
    link.symlink_to("precious.db")
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(StoreError, match=f"this link belongs to user {NOBODY}"):
        place.resolve(link)
    assert [path.name for path in tmp_path.iterdir()] == [link.name]


@pytest.mark.parametrize("plant", [plant_link, plant_pipe])
def test_what_is_no_folder_in_place_of_that_of_secrets(file, plant, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    plant(Path(f"{file}.secrets"), tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"jobs\.db\.secrets: (it is a link|Not a directory)"):
        place.resolve(file)


# --- folders ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [place.resolve, Store.open])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/jobs.db", "Not a directory"),
        ("file/deep/jobs.db", "Not a directory"),
        (f"{'x' * 300}.db", "File name too long"),
        (f"{'x' * 300}/jobs.db", "File name too long"),
        (f"{'x' * 254}", "File name too long"),
        ("dangling/jobs.db", "Not a directory"),
        ("/proc/jobs/jobs.db", "No such file or directory"),
    ],
)
def test_a_folder_that_cannot_be(tmp_path, use, name, words):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match=words) as failure:
        use(tmp_path / name)
    assert str(tmp_path / name) in str(failure.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    Store.open(place.resolve(tmp_path / "link" / "deep" / "jobs.db")).close()
    assert (tmp_path / "disk" / "deep" / "jobs.db").exists()
