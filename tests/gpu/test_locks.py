from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from supervisor.errors import LockedError, UsageError
from supervisor.gpu.locks import gpu_holder, lock_gpus, lock_store, this_process
from supervisor.gpu.records import Gpu

A, B = Gpu(0, "GPU-aa11", "NVIDIA L4"), Gpu(1, "GPU-bb22", "NVIDIA L4")
WHOLE = Gpu(2, "GPU-cc33", "NVIDIA H100")
M0, M1 = (Gpu(2, f"MIG-{i}", "NVIDIA H100 MIG", mig=i, parent=WHOLE.uuid) for i in (0, 1))
HOLD = """
import pathlib, subprocess, sys
from supervisor.gpu.locks import *
from supervisor.gpu.records import Gpu
folder, share = pathlib.Path(sys.argv[1]), sys.argv[2] == "share"
holder = this_process("run", "handlers.their\\x1b[31m_handler")
_, locks = lock_gpus([Gpu(0, "GPU-aa11", "NVIDIA L4")], holder, folder)
store = lock_store(folder / "jobs.db", holder)
fds = [fd for lock in (*locks, store) for fd in lock.fds]
template = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, pass_fds=fds) if share else None
print(template.pid if template else "locked", flush=True)
"""


@pytest.fixture
def me():
    return this_process("mine", "handlers.my_handler")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "locks"


def close(locks):
    for lock in locks:
        lock.close()


def test_the_second_supervisor_says_which_process_has_the_first(folder, me, child):
    other = child(HOLD, str(folder), "alone")
    other.line()
    with pytest.raises(LockedError) as caught:
        lock_gpus([B, A], me, folder)
    assert f"GPU 0 (GPU-aa11) is held by supervise handlers.their?[31m_handler (pid {other.pid})" in str(caught.value)
    assert "--share-gpus" in str(caught.value)
    with pytest.raises(LockedError, match=rf"the store .*jobs\.db is held by supervise .* \(pid {other.pid}\)"):
        lock_store(folder / "jobs.db", me)
    assert gpu_holder(A, folder).pid == other.pid
    assert gpu_holder(B, folder) is None  # what was locked before the refusal is free again
    other.kill()
    assert gpu_holder(A, folder) is None
    gpus, locks = lock_gpus([B, A], me, folder)
    assert gpus == [B, A]
    close([*locks, lock_store(folder / "jobs.db", me)])


def test_auto_leaves_out_what_is_held(folder, me, child):
    other = child(HOLD, str(folder), "alone")
    other.line()
    gpus, locks = lock_gpus([A, B], me, folder, skip_held=True)
    assert gpus == [B]
    close(locks)
    with pytest.raises(LockedError, match="GPU 0"):
        lock_gpus([A], me, folder, skip_held=True)


def test_the_lock_lasts_until_the_last_who_shares_it_is_gone(folder, me, child):
    other = child(HOLD, str(folder), "share")
    template = int(other.line())
    other.kill()
    with pytest.raises(LockedError, match=r"processes left by supervise .*, which has exited"):
        lock_gpus([A], me, folder, wait=0.0)
    os.kill(template, signal.SIGKILL)
    _, locks = lock_gpus([A], me, folder)
    close(locks)


def test_remains_that_stay_are_named_when_the_time_is_over(folder, me, child):
    holder = child(HOLD, str(folder), "alone")
    holder.line()
    path = folder / "GPU-aa11.lock"
    path.write_text(path.read_text().replace(f'"pid":{holder.pid}', '"pid":4194304'))
    with pytest.raises(LockedError, match=r"processes left by supervise .* \(pid 4194304\), which has exited"):
        lock_gpus([A], me, folder, wait=0.1)


def test_remains_that_go_are_waited_for(folder, me, child):
    other = child(HOLD, str(folder), "alone")
    other.line()
    (folder / "GPU-aa11.lock").write_text("")
    timer = threading.Timer(0.2, other.kill)
    timer.start()
    _, locks = lock_gpus([A], me, folder)
    timer.join()
    close(locks)


@pytest.mark.parametrize("content", ["", "\0\0", "{}", "[" * 5000, '{"pid": "x"}', "\udcff"])
def test_foreign_content_is_no_holder(folder, me, child, content):
    other = child(HOLD, str(folder), "alone")
    other.line()
    (folder / "GPU-aa11.lock").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(LockedError, match="an unknown process"):
        lock_gpus([A], me, folder, wait=0.0)


def test_a_lock_in_this_very_process_counts(folder, me):
    _, locks = lock_gpus([A], me, folder)
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock_gpus([A], me, folder)
    close(locks)
    close(lock_gpus([A], me, folder)[1])


def test_descriptors_are_kept_from_children_unless_passed(folder, me):
    _, locks = lock_gpus([A], me, folder)
    assert not any(os.get_inheritable(fd) for lock in locks for fd in lock.fds)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as process:
        close(locks)
        close(lock_gpus([A], me, folder)[1])
        process.stdin.close()


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [
        ([M0], [M1], True),
        ([M0], [M0], False),
        ([M0], [WHOLE], False),
        ([WHOLE], [M1], False),
        ([M0, M1], [WHOLE], False),
        ([M0], [A, B], True),
    ],
)
def test_mig_instances_share_their_gpu_and_exclude_it(folder, me, held, wanted, free):
    _, locks = lock_gpus(held, me, folder)
    if free:
        close(lock_gpus(wanted, me, folder)[1])
    else:
        with pytest.raises(LockedError):
            lock_gpus(wanted, me, folder)
    close(locks)
    close(lock_gpus(wanted, me, folder)[1])


def test_the_folder_is_everybodys_and_the_store_its_owners(folder, me):
    old = os.umask(0o077)
    try:
        _, locks = lock_gpus([A], me, folder)
    finally:
        os.umask(old)
    store = lock_store(folder / "jobs.db", me)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "GPU-aa11.lock", folder / "jobs.db.lock")]
    assert modes == [0o1777, 0o666, 0o600]
    close([*locks, store])


def plant_link(path, precious):
    path.symlink_to(precious)


def plant_hard_link(path, precious):
    path.hardlink_to(precious)


def plant_pipe(path, precious):
    os.mkfifo(path)


def plant_folder(path, precious):
    path.mkdir()


@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_pipe, plant_folder])
def test_what_others_plant_is_not_touched(folder, me, tmp_path, plant):
    precious = tmp_path / "precious"
    precious.write_text("data")
    folder.mkdir()
    plant(folder / "GPU-aa11.lock", precious)
    with pytest.raises(UsageError, match=r"GPU-aa11\.lock cannot be used"):
        lock_gpus([A], me, folder)
    assert precious.read_text() == "data"


@pytest.mark.parametrize("content", ["4711\n", '{"_meta": {}}', "\0\0\1"])  # Pipfile.lock, for one, is JSON
@pytest.mark.parametrize("lock", [lambda folder, me: lock_gpus([A], me, folder), lambda f, me: lock_store(f / "A", me)])
def test_what_another_program_wrote_is_not_written_over(folder, me, lock, content):
    folder.mkdir()
    for name in ("GPU-aa11.lock", "A.lock"):
        (folder / name).write_text(content)
    with pytest.raises(UsageError, match=r"lock cannot be used: another program wrote it; move it away"):
        lock(folder, me)
    assert {path.read_text() for path in folder.iterdir()} == {content}


@pytest.mark.parametrize(
    "content", ["", "\0" * 100, "{", '{"pid":', '{"pid": 1, "started": 2, "more": "of a newer version"}']
)
def test_what_we_wrote_is_ours_whole_or_not(folder, me, content):
    folder.mkdir()
    (folder / "GPU-aa11.lock").write_text(content)
    close(lock_gpus([A], me, folder)[1])
    assert f'"pid":{os.getpid()}' in (folder / "GPU-aa11.lock").read_text()


def test_a_disk_that_takes_nothing_is_a_refusal(folder, me):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"the lock file .*GPU-aa11\.lock cannot be used: File too large"):
            lock_gpus([A], me, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    close(lock_gpus([A], me, folder)[1])


def test_the_mode_of_a_folder_that_is_there_stays(folder, me):
    folder.mkdir(mode=0o750)
    close(lock_gpus([A], me, folder)[1])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_link_in_place_of_the_folder_is_refused(tmp_path, me):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be used"):
        lock_gpus([A], me, tmp_path / "locks")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_two_users_meet_at_the_same_lock(me, child):
    def hold_as(user):
        return child(
            HOLD.replace("folder, share", f"import os; os.setgid({user}); os.setuid({user}); folder, share", 1), *args
        )

    # Not below pytest's own folder, which other users may not enter.
    folder = Path(f"/tmp/supervise-test-locks-{os.getpid()}")
    args = (str(folder), "alone")
    try:
        first = hold_as(65534)
        assert first.line() == "locked"
        with pytest.raises(LockedError, match=f"pid {first.pid}"):
            lock_gpus([A], me, folder)
        first.kill()
        (folder / "jobs.db.lock").unlink()  # a store belongs to one user
        assert hold_as(65533).line() == "locked"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
