"""What is made has its mode at once, and what is there stays as it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.host import files
from supervisor.template.folders import Folders
from supervisor.template.reap import Reaper

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("wanted", [0o600, 0o666, 0o640])
def test_a_file_has_the_mode_asked_for(tmp_path: Path, umask: int, wanted: int) -> None:
    os.close(files.make_file(tmp_path / "file", wanted))
    assert mode(tmp_path / "file") == wanted


@pytest.mark.parametrize("wanted", [0o700, 0o1777])
def test_a_folder_has_the_mode_asked_for(tmp_path: Path, umask: int, wanted: int) -> None:
    assert files.make_folder(tmp_path / "folder", wanted)
    assert mode(tmp_path / "folder") == wanted
    files.make_folders(tmp_path / "a" / "b", wanted)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == wanted


def link(path: Path) -> None:
    path.symlink_to("target")


@pytest.mark.parametrize("plant", [Path.touch, Path.mkdir, link, os.mkfifo])
def test_what_is_there_is_neither_opened_nor_changed(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    path = tmp_path / "planted"
    plant(path)
    before = path.lstat()
    with pytest.raises(FileExistsError):
        files.make_file(path)
    assert not files.make_folder(path, 0o1777)
    assert path.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]


def test_an_own_folder_is_made_or_there(tmp_path: Path) -> None:
    path = tmp_path / "own"
    files.own_folder(path)
    assert mode(path) == 0o700
    path.chmod(0o750)
    files.own_folder(path)
    assert mode(path) == 0o750


@pytest.mark.parametrize("plant", [Path.touch, link, os.mkfifo])
def test_what_is_no_folder_is_no_own_folder(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    (tmp_path / "target").mkdir()
    plant(tmp_path / "planted")
    with pytest.raises(NotADirectoryError):
        files.own_folder(tmp_path / "planted")


@needs_root
def test_another_users_folder_is_no_own_folder(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"it belongs to user {NOBODY}"):
        files.own_folder(tmp_path / "theirs")


def test_workers_get_no_folder_behind_a_link(tmp_path: Path) -> None:
    """Put where the run's own folder was, which a cleaner of /tmp had removed."""
    (tmp_path / "target").mkdir()
    link(tmp_path / "run")
    folders = Folders(str(tmp_path / "run"), Reaper())
    with pytest.raises(NotADirectoryError):
        folders.make("cpu0", 1)
    (tmp_path / "run").unlink()
    assert mode(Path(folders.make("cpu0", 1))) == mode(tmp_path / "run") == 0o700
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "known", "words"),
    [
        (OSError(28, "No space left on device", "/srv/x"), None, "/srv/x: No space left on device"),
        (OSError(28, "No space left on device", b"/srv/x"), None, "/srv/x: No space left on device"),
        (OSError(28, "No space left on device", "/srv/x"), Path("/srv/x"), "No space left on device"),
        (OSError(24, "Too many open files"), None, "Too many open files"),
        (OSError(9, "Bad file descriptor", 3), None, "Bad file descriptor"),
        (OSError("unlike others"), None, "unlike others"),
    ],
)
def test_a_refusal_in_words(error: OSError, known: Path | None, words: str) -> None:
    assert files.refusal(error, known) == words
