"""Real files that change in every way that editors have, and what is reported of it; time is passed in."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor import reload
from supervisor.notice import FilesWatched
from supervisor.reload import POLL_S, QUIET_S, SETTLE_S, SourceFiles, watch
from supervisor.wire.messages import HandlerSpec

DEADLINE_S = 30.0

COARSE_CLOCK = 5
"""``CLOCK_REALTIME_COARSE`` of clock_gettime(2): by this one file systems say when a file was changed."""


class Project:
    """A folder with a handler, polled as by the thread, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handler = folder / "handler.py"
        self.now = 1000.0
        self.files: SourceFiles
        self.watched: FilesWatched

    def write(self, name: str, text: str = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def begin(self) -> Project:
        self.handler.touch()
        self.files = SourceFiles(HandlerSpec("file", str(self.handler)))
        self.watched = self.files.begin()
        return self

    def poll(self) -> list[str]:
        changed = self.files.poll(self.now)
        self.now += self.files.pause
        return list(changed)

    def reported(self, polls: int = 10) -> list[list[str]]:
        """Return what the next polls report, each sorted."""
        reports = [sorted(changed) for changed in (self.poll() for _ in range(polls)) if changed]
        # These polls took no time. What changes next must have another time of change, as it has half a second later.
        now = time.clock_gettime_ns(COARSE_CLOCK)
        while time.clock_gettime_ns(COARSE_CLOCK) == now:
            pass
        return reports


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def replace(path: Path) -> None:
    half = path.with_suffix(".tmp")
    half.write_text("new")
    half.replace(path)


def replace_like_vim(path: Path) -> None:
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    path.write_text("new")
    backup.unlink()


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    half = path.with_suffix(".tmp")
    half.write_bytes(path.read_bytes())
    os.utime(half, ns=(before.st_atime_ns, before.st_mtime_ns))
    half.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text(f"{path.read_text()} and more"),
    "replaced": replace,
    "as vim does": replace_like_vim,
    "touched": lambda path: os.utime(path, (1, 1)),
    "another file of the same size and time": same_size_and_time,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["handler.py", "helper.py", "package/inner/module.py"])
def test_a_file_changes(project: Project, change: Callable[[Path], object], name: str) -> None:
    path = project.write(name, "old")
    project.begin()
    assert project.reported() == []
    change(path)
    assert project.reported() == [[name]]
    change(path) if change is not CHANGES["touched"] else os.utime(path, (2, 2))
    assert project.reported() == [[name]]


def test_files_come_and_go(project: Project) -> None:
    project.begin()
    project.write("new.py")
    project.write("package/module.py")
    assert project.reported() == [["new.py", "package/module.py"]]
    project.write("package/second.py")
    assert project.reported() == [["package/second.py"]]
    (project.folder / "new.py").rename(project.folder / "renamed.py")
    assert project.reported() == [["new.py", "renamed.py"]]
    (project.folder / "package/module.py").unlink()
    assert project.reported() == [["package/module.py"]]
    (project.folder / "package").rename(project.folder / "other")
    assert project.reported() == [["other/second.py", "package/second.py"]]
    project.write("package/second.py")
    (project.folder / "other/second.py").unlink()
    assert project.reported() == [["other/second.py", "package/second.py"]]


def test_what_was_made_in_the_tick_of_a_listing_is_found(project: Project) -> None:
    """The folder's time of change is the same before and after."""
    project.begin()
    project.write("first.py")
    made = project.folder.stat()
    project.poll()
    project.write("second.py")
    os.utime(project.folder, ns=(made.st_atime_ns, made.st_mtime_ns))
    assert project.reported() == [["first.py", "second.py"]]


def test_several_steps_are_one_change(project: Project) -> None:
    project.begin()
    for number in range(20):
        project.handler.write_text(f"{'x' * number}")
        project.write(f"part{number % 3}.py", "y" * number)
        assert project.poll() == []
        assert project.files.pause == SETTLE_S < QUIET_S
    assert project.reported() == [["handler.py", "part0.py", "part1.py", "part2.py"]]
    assert project.files.pause == POLL_S


def test_a_missing_handler_is_reported_when_it_is_back(project: Project) -> None:
    project.begin()
    project.handler.unlink()
    assert project.reported() == []
    project.write("handler.py", "new")
    assert project.reported() == [["handler.py"]]


@pytest.mark.parametrize(
    "name",
    [
        *("data.json", "handler.pyc", ".hidden.py", ".#handler.py", ".git/hook.py", "__pycache__/module.py"),
        *("node_modules/tool.py", "lib/site-packages/package.py", "environment/module.py", "package/notes.txt"),
    ],
)
def test_what_no_worker_imports_is_left_alone(project: Project, name: str) -> None:
    project.write("environment/pyvenv.cfg")
    project.write("package/module.py")
    path = project.write(name, "old")
    project.begin()
    path.write_text("new!")
    project.write(str(Path(name).with_suffix(".new" + Path(name).suffix)))
    path.unlink()
    assert project.reported() == []


def test_a_handler_below_a_hidden_folder_is_watched(tmp_path: Path) -> None:
    project = Project(tmp_path / ".local/site-packages")
    helper = project.write("helper.py")
    project.begin()
    helper.write_text("new")
    assert project.reported() == [["helper.py"]]


def test_links(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A handler that is a link, as Kubernetes mounts one; a folder that leads back to itself; one that leads nowhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for version in ("one", "two"):
        (elsewhere / version).mkdir()
        (elsewhere / version / "handler.py").write_text("same")
    (elsewhere / "present").symlink_to("one")
    project.handler.symlink_to(elsewhere / "present/handler.py")
    project.begin()
    (elsewhere / "one/round").symlink_to(elsewhere / "one")
    (elsewhere / "one/nowhere.py").symlink_to("missing")
    (elsewhere / "one/lost").symlink_to("missing")
    assert project.reported() == []
    (elsewhere / "half").symlink_to("two")
    (elsewhere / "half").replace(elsewhere / "present")
    assert project.reported() == [["handler.py"]]


def test_a_handler_named_by_a_link_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    project = Project(tmp_path / "link").begin()
    project.write("handler.py", "new")
    project.write("helper.py", "new")
    assert project.reported() == [["handler.py", "helper.py"]]


def test_thousands_of_files(project: Project) -> None:
    for number in range(1500):
        project.write(f"package{number % 7}/module{number}.py")
    project.begin()
    assert project.watched == FilesWatched(1501, str(project.folder))
    project.write("package6/module6.py", "new")
    assert project.reported() == [["package6/module6.py"]]
    for number in range(0, 1500, 2):
        (project.folder / f"package{number % 7}/module{number}.py").unlink()
    assert sum(map(len, project.reported())) == 750


def test_more_than_are_watched(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "MAX_FILES", 8)
    near = project.write("near.py")
    far = [project.write(f"a/b/c/far{number}.py") for number in range(9)]
    project.begin()
    assert project.watched == FilesWatched(4, str(project.folder), most=8)
    near.write_text("new")
    assert project.reported() == [["near.py"]]
    for path in far:
        path.write_text("new")
    assert project.reported() == [["a/b/c/far0.py", "a/b/c/far1.py"]]


def test_a_folder_that_may_not_be_read_now_is_as_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("package/module.py")
    project.begin()

    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(reload.os, "scandir", refuse)
        project.write("package/new.py")
        assert project.reported() == []
        patch.setattr(reload.os, "stat", refuse)
        assert project.reported() == []
    assert project.reported() == [["package/new.py"]]


# --- which files and folders ----------------------------------------------------------------------------------------------


def test_the_sources_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported from the current folder, and the module where it is, installed for editing perhaps."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "local", there / "away"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (there / "single.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path, str(there)])
    assert reload.source_locations(HandlerSpec("module", "local.handler")) == (None, [str(here), str(here / "local")])
    assert reload.source_locations(HandlerSpec("function", "away.handler", "run")) == (
        None,
        [str(here), str(there / "away")],
    )
    assert reload.source_locations(HandlerSpec("module", "single")) == (str(there / "single.py"), [str(here)])
    assert reload.source_locations(HandlerSpec("module", "missing.handler")) == (None, [str(here)])
    assert reload.source_locations(HandlerSpec("module", "sys")) == (None, [str(here)])

    files = SourceFiles(HandlerSpec("function", "away.handler", "run"))
    files.begin()
    (there / "away/handler.py").touch()
    assert [changed for now in range(1, 4) if (changed := files.poll(now))] == [(str(there / "away/handler.py"),)]


def test_below_the_root_only_folders_with_sources_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's handler may be `/handler.py`, and `/proc` and `/usr` beside it."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/module.py").touch()
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/module.py").touch()
    monkeypatch.setattr(reload.os, "sep", str(tmp_path))
    project = Project(tmp_path).begin()
    assert project.watched.count == 2


# --- the thread -----------------------------------------------------------------------------------------------------------


class Loop:
    """Calls at once what is handed over."""

    def call_soon_threadsafe(self, call: Callable[[object], None], what: object) -> None:
        call(what)


def test_the_thread(project: Project) -> None:
    said: list[object] = []
    begun, changed = threading.Event(), threading.Event()

    def tell(event: threading.Event) -> Callable[[object], None]:
        return lambda what: (said.append(what), event.set())[0]

    project.handler.touch()
    close = watch(SourceFiles(HandlerSpec("file", str(project.handler))), Loop(), tell(begun), tell(changed))
    try:
        assert begun.wait(DEADLINE_S)
        replace(project.handler)
        assert changed.wait(DEADLINE_S)
    finally:
        close()
    assert said == [FilesWatched(1, str(project.folder)), ("handler.py",)]


def test_a_name_that_is_no_text(project: Project) -> None:
    project.begin()
    Path(os.fsdecode(os.fsencode(project.folder) + b"/\xff.py")).touch()
    assert project.reported() == [["\\xff.py"]]
