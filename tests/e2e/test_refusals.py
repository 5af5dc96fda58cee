"""What the operating system refuses before anything is served: one message and exit code 2, and never a traceback of ours.

A shell brings about what the system is to refuse, and then becomes the program. As root no mode protects, so a folder is made
unwritable by a mount, where tests may mount.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.store.store import Store

if TYPE_CHECKING:
    from conftest import Runs

ROOT = Path(__file__).parents[2]
GOOD = "def handler(job):\n    return job['input']\n"
CPU = ("--gpus", "none")
LONG = "x" * 300
WHOLE_RUN_S = 40.0
NOBODY = 65534

Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def files(supervise: Runs) -> None:
    supervise.write("handler.py", GOOD)
    supervise.write("in.jsonl", "1\n2\n")
    supervise.write("file", "")


def run(supervise: Runs, first: str, command: Sequence[object]) -> Done:
    """``command``, which a shell becomes after it has done ``first``; ``$D`` is the test's folder."""
    return subprocess.run(
        ["bash", "-c", f'{first or ":"} && exec "$@"', "bash", *map(str, command)],
        cwd=supervise.folder,
        # Of bytecode that does not fit, Python keeps what does, for whoever imports it next.
        env={**supervise.environ, "D": str(supervise.folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WHOLE_RUN_S,
    )


def client(*arguments: object) -> list[object]:
    return [sys.executable, ROOT / "bin/supervise", *arguments]


def refused(done: Done, words: str = "") -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in lines if line.startswith("supervise: ")] == lines[-1:], done.stderr
    assert re.search(words, lines[-1]), done.stderr
    assert done.stdout == ""


def ways(supervise: Runs, **options: object) -> Iterator[list[str]]:
    """To serve, to run a test job, and to run a batch."""
    store = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    handler = supervise.folder / "handler.py"
    yield supervise.command(handler, *CPU, *store, "--no-dashboard")
    yield supervise.command(handler, *CPU, *store, "--test-input", "1")
    batch = ("--input", supervise.folder / "in.jsonl", "--output", supervise.folder / "out.jsonl")
    yield supervise.command(handler, *CPU, *store, *batch)


# --- the store ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "store", "words"),
    [
        ("", "file/jobs.db", r"file/jobs\.db: .*Not a directory"),
        ("", f"{LONG}.db", "File name too long"),
        ("", f"{LONG}/jobs.db", "File name too long"),
        ("", "/proc/jobs.db", "/proc/jobs.db"),
        ("", "/proc/jobs/jobs.db", "/proc/jobs"),
        ("", "/sys/jobs.db", "/sys/jobs.db"),
        ("mkdir $D/jobs.db", "jobs.db", r"jobs\.db is a folder"),
        ("mkfifo $D/jobs.db", "jobs.db", r"jobs\.db: this is a FIFO"),
        ("mkfifo $D/jobs.db-wal", "jobs.db", r"jobs\.db-wal: this is a FIFO"),
        ("mkfifo $D/jobs.db.lock", "jobs.db", r"jobs\.db\.lock cannot be used"),
        ("echo mine > $D/jobs.db.lock", "jobs.db", r"jobs\.db\.lock cannot be used: another program wrote it"),
        ("ln -s $D/elsewhere $D/jobs.db.secrets && mkdir $D/elsewhere", "jobs.db", r"jobs\.db\.secrets: .*a link"),
        ("ln -s jobs.db $D/jobs.db", "jobs.db", "Too many levels of symbolic links"),
        pytest.param(
            *("ulimit -f 8", "jobs.db", r"jobs\.db: its disk cannot be read or written"), marks=pytest.mark.unmeasured
        ),
        ("", "~nosuchuser/jobs.db", "--store: .*nosuchuser"),
    ],
)
def test_a_store_that_cannot_be(supervise: Runs, first: str, store: str, words: str) -> None:
    store = store if store.startswith("~") else str(supervise.folder / store)
    refused(run(supervise, first, supervise.command("handler.py", *CPU, "--store", store, "--no-dashboard")), words)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_a_device_stays_as_it_is(supervise: Runs, ending: str) -> None:
    """As ``--store /dev/null``, whose mode was changed for the whole machine."""
    null = supervise.folder / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    null.chmod(0o666)
    store = null
    if ending:
        store = supervise.folder / "jobs.db"
        Path(f"{store}{ending}").symlink_to(null)
    before = {path.name for path in supervise.folder.iterdir()}
    refused(run(supervise, "", supervise.command("handler.py", *CPU, "--store", store)), "this is a (device|link)")
    assert stat.S_IMODE(null.stat().st_mode) == 0o666
    assert {path.name for path in supervise.folder.iterdir()} == before


def test_the_folder_of_the_default_store(supervise: Runs) -> None:
    (supervise.folder / ".supervise").touch()
    refused(run(supervise, "", client("handler.py", *CPU, "--port", 0)), r"\.supervise/handler\.db: .*Not a directory")


def test_a_store_that_others_may_read_is_served_and_stays_so(supervise: Runs) -> None:
    store = supervise.folder / "store.db"
    Store.open(store).close()
    store.chmod(0o664)
    run = supervise(supervise.folder / "handler.py", *CPU).ready()
    said = run.wait_for_line(r"^.*other users may read this job store.*$")
    assert said[0].endswith(f"chmod -R go= {store} {store}-wal")
    assert stat.S_IMODE(store.stat().st_mode) == 0o664
    assert run.runsync(1)["output"] == 1
    assert run.stop() == 0


def test_a_store_behind_a_link_has_its_other_files_beside_it(supervise: Runs) -> None:
    disk = supervise.folder / "disk"
    disk.mkdir()
    (supervise.folder / "store.db").symlink_to("disk/jobs.db")
    handler = supervise.write("waits.py", "def handler(job):\n    return open(job['input']).read()\n")
    os.mkfifo(supervise.folder / "gate")
    run = supervise(handler, *CPU).ready()
    run.wait_for_line(f"store.db is a link: the job store is {re.escape(str(disk / 'jobs.db'))}")
    job = run.post("/run", {"input": str(supervise.folder / "gate"), "s3Config": {"accessId": "a"}})["id"]
    assert {path.name for path in disk.iterdir()} == {"jobs.db", "jobs.db-wal", "jobs.db.lock", "jobs.db.secrets"}
    assert not list(supervise.folder.glob("store.db?*"))
    done = supervise.to_the_end("handler.py", *CPU, "--store", disk / "jobs.db")
    refused(done, f"the store {re.escape(str(disk / 'jobs.db'))} is held by supervise .* \\(pid {run.pid}\\)")
    (supervise.folder / "gate").write_text("open")
    assert run.ended(job)["output"] == "open"
    assert run.stop() == 0


# --- the folders ----------------------------------------------------------------------------------------------------------


def test_a_current_folder_that_is_gone(supervise: Runs) -> None:
    first = "mkdir -p $D/gone && cd $D/gone && rmdir $D/gone"
    for command in ways(supervise):
        refused(run(supervise, first, command), "the current folder cannot be used, change to another")
    refused(run(supervise, first, supervise.command("handler", *CPU)), "the current folder cannot be used")
    done = run(supervise, first, client("submit", "--input-file", "in.json"))
    refused(done, "--input-file: cannot read in.json: No such file")
    assert run(supervise, first, client("--version")).returncode == 0


@pytest.mark.parametrize("name", ["file", "dangling", LONG, "/proc/locks-of-supervise"])
def test_a_lock_folder_that_cannot_be(supervise: Runs, name: str) -> None:
    (supervise.folder / "dangling").symlink_to("nowhere")
    options = ("--simulate-gpus", 1, "--lock-dir", supervise.folder / name)
    refused(
        run(supervise, "", supervise.command("handler.py", *options)), "the folder of the locks, .*cannot be used: "
    )
    assert not (supervise.folder / "nowhere").exists()


@pytest.mark.unmeasured
def test_temporary_files_that_can_be_nowhere(supervise: Runs) -> None:
    for command in ways(supervise):
        refused(run(supervise, "ulimit -f 0", command), "the folder for temporary files cannot be made: ")
    batch = supervise.command("handler.py", *CPU, "--input", "in.jsonl")
    refused(run(supervise, "ulimit -f 0", batch), "the folder for temporary files cannot be made: ")


@pytest.fixture(scope="session")
def mounting() -> list[str]:
    """The beginning of a command that may mount, and whose mounts nobody else sees."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let tests mount")
    return words


READ_ONLY = "mount --bind $D $D && mount -o remount,bind,ro $D && cd $D"
FULL = "mount -t tmpfs -o size=64k tmpfs $D/full && { dd if=/dev/zero of=$D/full/zeros bs=4k status=none || true; }"


def test_a_current_folder_that_is_read_only(supervise: Runs, mounting: list[str]) -> None:
    for command in (client("handler.py", *CPU, "--port", 0), [*supervise.command("handler.py", *CPU)]):
        wrapped = [*mounting, "bash", "-c", f'{READ_ONLY} && exec "$@"', "bash", *command]
        refused(run(supervise, "", wrapped), "Read-only file system")
    batch = client("handler.py", *CPU, "--input", "in.jsonl", "--output", "out.jsonl")
    wrapped = [*mounting, "bash", "-c", f'{READ_ONLY} && exec "$@"', "bash", *batch]
    refused(run(supervise, "", wrapped), "Read-only file system")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--store", "full/jobs.db"], "jobs.db.lock cannot be used: No space left on device"),
        (["--simulate-gpus", "1", "--lock-dir", "full"], "the lock file .*full/.*No space left on device"),
    ],
)
def test_a_disk_that_is_full(supervise: Runs, mounting: list[str], options: list[str], words: str) -> None:
    (supervise.folder / "full").mkdir()
    command = supervise.command("handler.py", *options)
    refused(run(supervise, "", [*mounting, "bash", "-c", f'{FULL} && exec "$@"', "bash", *command]), words)


def test_a_system_without_proc(supervise: Runs, mounting: list[str]) -> None:
    for command in ways(supervise):
        wrapped = [*mounting, "bash", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "bash", *command]
        refused(run(supervise, "", wrapped), "/proc is not mounted")


# --- handler, options, sockets, files of a batch ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"./{LONG}.py"], "no such file"),
        ([LONG], "is not valid in a URL"),
        (["~nosuchuser/handler.py"], "nosuchuser.*home is not known"),
        (["/dev/null"], "/dev/null"),
        (["/proc/self/mem"], "/proc/self/mem"),
        (["handler.py", "--config", "/proc/self/mem"], "--config: cannot read /proc/self/mem"),
        (["handler.py", "--config", LONG], "--config: cannot read .*File name too long"),
        (["handler.py", "--api-key-file", "/proc/self/mem"], "--api-key-file: cannot read /proc/self/mem"),
        (["handler.py", "--host", "a..b", "--no-auth"], r"--host a\.\.b: no host can have this name"),
        (["handler.py", "--host", "192.0.2.1", "--no-auth"], "cannot listen on 192.0.2.1"),
        (["handler.py", "--input", "/proc/self/mem", "--output", "out"], "--input: cannot read /proc/self/mem"),
        (["handler.py", "--input", LONG], "--input: cannot read .*File name too long"),
        (["handler.py", "--input", "in.jsonl", "--output", LONG], "--output: cannot write .*File name too long"),
        (["handler.py", "--input", "in.jsonl", "--output", "y" * 250], "File name too long"),
        (["handler.py", "--input", "in.jsonl", "--output", "/proc/out.jsonl"], "/proc/out.jsonl"),
        (
            ["handler.py", "--input", "in.jsonl", "--output", "file/out.jsonl"],
            "--output: cannot write .*Not a directory",
        ),
        (["handler.py", "--input", "in.jsonl", "--output", "gone/out.jsonl"], "--output: there is no folder"),
    ],
)
def test_a_file_or_a_host_that_cannot_be_had(supervise: Runs, arguments: list[str], words: str) -> None:
    refused(run(supervise, "", supervise.command(*arguments, *CPU)), words)


def test_a_batch_whose_store_cannot_be(supervise: Runs) -> None:
    batch = supervise.command("handler.py", *CPU, "--input", "in.jsonl", "--output", "out.jsonl")
    refused(run(supervise, "mkdir out.jsonl.supervise.db", batch), r"out\.jsonl\.supervise\.db: this is a folder")
    assert not (supervise.folder / "out.jsonl").exists()


# --- limits and streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [5, 8, 13, 50])
def test_too_few_open_files(supervise: Runs, most: int) -> None:
    for command in ways(supervise):
        refused(run(supervise, f"ulimit -n {most}", command), f"may open {most} files only|Too many open files")


def test_too_many_open_files_inherited(supervise: Runs) -> None:
    inherited = 'ulimit -n 64; for fd in {10..58}; do eval "exec $fd</dev/null"; done'
    for command in ways(supervise):
        refused(run(supervise, inherited, command), r"may open 64 files only, .*\(49 of them inherited\)")


WITH_FOUR_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Python has started by then: what lies in the environment's ``.pth`` files may need more."""


def test_too_few_open_files_for_a_client(supervise: Runs) -> None:
    python, *command = client("status", "x", "--url", "http://127.0.0.1:1")
    done = run(supervise, "", [python, "-c", WITH_FOUR_FILES, *command])
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("supervise: ")
    assert done.stderr.count("\n") == 1


def test_no_more_threads(supervise: Runs) -> None:
    """The limit is not for root, who becomes another user for this."""
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp())  # which that user may enter
    try:
        shutil.copy(supervise.folder / "handler.py", folder)
        for path in (folder, supervise.temporary):
            path.chmod(0o777)
        command = [sys.executable, ROOT / "bin/supervise", folder / "handler.py", "--port", 0, "--no-dashboard", *CPU]
        command += ["--store", folder / "jobs.db", "--lock-dir", folder / "locks"]
        if subprocess.run([*user, *map(str, command[:2]), "--version"], capture_output=True).returncode != 0:
            pytest.skip("another user may not run the program from here")
        refused(run(supervise, "ulimit -u 1", [*user, *command]), "no thread can be started")
    finally:
        shutil.rmtree(folder)


def test_standard_output_that_takes_nothing(supervise: Runs) -> None:
    full = "exec >/dev/full"
    refused(run(supervise, full, supervise.command("handler.py", *CPU, "--test-input", "1")), "No space left on device")
    for command in (client("--version"), client("--help"), client("gpus", "--simulate-gpus", 1, "--json")):
        refused(run(supervise, full, command), "No space left on device")
    batch = run(supervise, full, supervise.command("handler.py", *CPU, "--input", "in.jsonl"))
    assert batch.returncode == 1  # it was begun
    assert "the output cannot be written: No space left on device" in batch.stderr
    assert "Traceback" not in batch.stderr


def test_standard_output_of_a_client_that_takes_nothing(supervise: Runs) -> None:
    served = supervise(supervise.folder / "handler.py", *CPU).ready()
    job = served.runsync(1)["id"]
    url = ("--url", f"http://127.0.0.1:{served.port}")
    for words in (["submit", "1"], ["status", job], ["jobs"], ["workers"], ["logs", job], ["top", "--once"]):
        done = run(supervise, "exec >/dev/full", client(*words, *url))
        if words[0] != "logs":  # of which there are none
            refused(done, "No space left on device")
    assert served.stop() == 0


def test_standard_error_that_takes_nothing(supervise: Runs) -> None:
    full = "exec 2>/dev/full"
    assert run(supervise, full, supervise.command("nothing.py")).returncode == 2
    assert run(supervise, full, client("--prot")).returncode == 2
    done = run(supervise, full, supervise.command("handler.py", *CPU, "--test-input", "1"))
    assert (done.returncode, json.loads(done.stdout)["output"]) == (0, 1)
