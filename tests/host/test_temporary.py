"""Temporary files: folders of dead runs go, those of living ones stay; what a private ``/tmp`` must keep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from supervisor.errors import UsageError
from supervisor.host import temporary
from supervisor.wire.messages import HandlerSpec

RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(parent: Path, name: str, age: float = 3600) -> Path:
    folder = parent / name
    (folder / "cpu0-1").mkdir(parents=True)
    (folder / "cpu0-1/litter").touch()
    at = folder.stat().st_mtime - age
    os.utime(folder, (at, at))
    return folder


def test_folder_of_a_dead_run_is_removed_by_the_next_start(parent):
    folder = left(parent, "supervise-aaaaaaaaaaaa")
    ours, lock = temporary.make_run_folder(RUN)
    os.close(lock)
    assert not folder.exists()
    assert ours == parent / "supervise-0123456789ab"
    assert ours.stat().st_mode & 0o777 == 0o700


def test_locked_folder_stays(parent):
    folder, lock = temporary.make_run_folder(RUN)
    os.utime(folder, (0, 0))
    temporary.remove_leftovers(parent)
    assert folder.exists()
    os.close(lock)
    temporary.remove_leftovers(parent)
    assert not folder.exists()


def test_folder_stays_while_a_process_of_its_run_lives(parent):
    run_id = uuid.uuid4().hex  # of no other run of this test at the same time
    folder = left(parent, f"supervise-{run_id[:12]}")
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "SUPERVISE_RUN_ID": run_id},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"  # before that the kernel may not show its environment yet
        temporary.remove_leftovers(parent)
        assert folder.exists()
        process.kill()
    temporary.remove_leftovers(parent)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "age"),
    [("supervise-cccccccccccc", 0), ("supervise-locks", 3600), ("supervise-cccccccccccc.sock", 3600), ("mine", 3600)],
)
def test_what_may_be_another_thing_stays(parent, name, age):
    folder = left(parent, name, age)
    temporary.remove_leftovers(parent)
    assert folder.exists()


def test_link_is_not_followed(parent):
    target = left(parent, "precious")
    (parent / "supervise-dddddddddddd").symlink_to(target)
    temporary.remove_leftovers(parent)
    assert (target / "cpu0-1/litter").exists()


@pytest.mark.parametrize("place", temporary.HIDDEN)
def test_handler_where_nothing_can_be_kept_is_refused(place):
    with pytest.raises(UsageError, match=f"the handler lies directly in {place}.*move it to a folder of its own"):
        temporary.check_private_tmp(HandlerSpec("file", f"{place}/handler.py"))


def test_refusal_of_the_system_says_what_to_do(parent, monkeypatch):
    refuses = parent / "refuses.py"
    refuses.write_text("import sys; sys.exit('[Errno 1] unshare: Operation not permitted')")
    monkeypatch.setattr(temporary, "_MOUNTS", refuses)
    with pytest.raises(UsageError, match=r"--private-tmp: .*unshare: Operation not permitted.*--cap-add SYS_ADMIN"):
        temporary.check_private_tmp(HandlerSpec("file", "/srv/handler.py"))
    assert sorted(parent.iterdir()) == [refuses]


def test_what_python_and_the_handler_need_is_kept(parent, monkeypatch):
    monkeypatch.setattr(temporary, "_MOUNTS", Path(os.devnull))
    monkeypatch.setattr(temporary, "HIDDEN", (str(parent),))
    folder, link, prefix = parent / "handlers/deep", parent / "link", parent / "venv"
    folder.mkdir(parents=True)
    prefix.mkdir()
    link.symlink_to(folder)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(parent / "handlers"), str(parent), str(parent / "missing")])
    assert temporary.check_private_tmp(HandlerSpec("file", str(link / "handler.py"))) == (
        str(parent / "handlers"),
        str(link),
        str(prefix),
    )
