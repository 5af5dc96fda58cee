"""From start to end: nothing is left behind, in whatever way it ends."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import uvloop

import supervisor
from supervisor import Supervisor
from supervisor.errors import HandlerError, JobCancelled, LockedError, StartError, UsageError

SOON = 20.0


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def children():
    """Of all threads. One that ends while it is looked at leaves its children to another, perhaps looked at before."""
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            tasks = list(Path("/proc/self/task").iterdir())
            return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def descriptors():
    """Those of this process, each with what it is."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which they are listed
            found.add((link.name, str(link.readlink())))
    return found


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    """A temporary folder of the test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_importing_the_package_imports_nothing_else():
    code = "import sys, supervisor; before = set(sys.modules); assert 'asyncio' not in before; supervisor.Supervisor"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(AttributeError, match="nonsense"):
        _ = supervisor.nonsense


def test_nothing_is_left_behind(make, own_tmp):
    uvloop.new_event_loop().close()  # the first in a process opens a pipe that stays
    before, threads, opened = children(), set(threading.enumerate()), descriptors()
    with make(workers=2) as sv:
        workers = [worker.pid for worker in sv.workers() if worker.pid]
        sv.submit(1, s3Config={"a": 1}).result(timeout=SOON)
        assert not list(own_tmp.rglob("*.db")), "the queue has no name"
    # What others had left here may have ended meanwhile.
    assert children() <= before
    assert all(gone(pid) for pid in workers)
    assert set(threading.enumerate()) <= threads
    assert descriptors() <= opened
    assert list(own_tmp.iterdir()) == []


def test_leaving_waits_for_every_job(make):
    with make() as sv:
        jobs = [sv.submit(number) for number in range(50)]
    assert all(job.done() for job in jobs)
    assert [job.result() for job in jobs] == list(range(50))


def test_an_exception_waits_for_none(make, held):
    def program():
        with make() as sv:
            jobs.extend([sv.submit(held.input), sv.submit(1)])
            held.runs(jobs[0])
            raise ZeroDivisionError

    jobs = []
    with pytest.raises(ZeroDivisionError):
        program()
    for job in jobs:
        with pytest.raises(JobCancelled, match="was closed before the job ended"):
            job.result(timeout=0)


def test_closed_is_closed(make):
    sv = make()
    with pytest.raises(RuntimeError, match="not started"):
        sv.submit(1)
    sv.start()
    job = sv.submit(1)
    sv.close()
    sv.close()
    assert job.result(timeout=0) == 1
    with pytest.raises(RuntimeError, match="closed"):
        sv.submit(2)
    with pytest.raises(RuntimeError, match="closed"):
        sv.workers()
    with pytest.raises(RuntimeError, match="make another"):
        sv.start()


def test_jobs_of_a_store_wait_for_the_next_supervisor(make, tmp_path, held):
    store = tmp_path / "kept.db"
    with make(store=store) as sv:
        sv.submit("first", id="first").result(timeout=SOON)
        sv.submit(held.input, id="running")
        sv.submit("second", id="second")
        held.runs(sv.submit("again", id="running"))
        sv.close(drain=False)
    held.release()
    with make(store=store) as sv:
        assert sv.submit(None, id="first").result(timeout=SOON) == "first"
        assert sv.submit(None, id="second").result(timeout=SOON) == "second"
        assert sv.submit(None, id="running").result(timeout=SOON) == held.input
        with pytest.raises(LockedError), make(store=store):
            pass


def test_a_store_of_another_handler_is_taken_at_its_word_and_said(make, write, tmp_path, held, caplog):
    caplog.set_level(logging.INFO, "supervisor")
    store = tmp_path / "kept.db"
    with make(store=store) as sv:
        held.runs(sv.submit(held.input, id="running"))
        sv.submit("second", id="second")
        sv.close(drain=False)
    assert caplog.messages[0] == f"store {store}: 0 queued"
    assert f"2 jobs stay queued in {store}" in caplog.messages
    held.release()
    caplog.clear()
    another = write((tmp_path / "house_handler.py").read_text(), "another.py")
    with Supervisor(another, gpus="none", store=store) as sv:
        assert sv.submit(None, id="second").result(timeout=SOON) == "second"
    said = f"store {store}: {tmp_path}/another.py takes it over from {tmp_path}/house_handler.py"
    assert caplog.messages[:2] == [f"{said}, with 2 unfinished jobs (keyword store)", f"store {store}: 2 queued"]


def test_a_handler_that_cannot_be_loaded(make):
    with pytest.raises(HandlerError, match="nothing here") as caught, make("raise ImportError('nothing here')"):
        pass
    assert "Traceback" in str(caught.value)
    with pytest.raises(StartError, match="exited with code 7"), make("import os; os._exit(7)"):
        pass


@pytest.mark.parametrize("options", [{"workres": 2}, {"workers": 0}, {"gpus": "none", "simulate_gpus": 1}])
def test_wrong_options(make, options):
    with pytest.raises(UsageError):
        make(**options)


def test_a_fault_in_the_loop_reaches_everybody(make, held):
    """Nobody waits for ever, and closing says what it was."""

    def fault():
        raise LookupError("a fault")

    sv = make().start()
    job = sv.submit(held.input)
    pid = held.runs(job)
    sv._thread._loop.call_soon_threadsafe(fault)
    with pytest.raises(JobCancelled, match="a fault"):
        job.result(timeout=SOON)
    with pytest.raises(RuntimeError, match="closed"):
        sv.submit(1)
    with pytest.raises(LookupError):
        sv.close()
    assert gone(pid)


def test_refresh_by_hand(make):
    with make() as sv:
        before = sv.workers()[0]
        assert (before.slot, before.state) == ("cpu0", "idle")
        sv.refresh("cpu0")
        assert sv.submit(1).result(timeout=SOON) == 1
        after = sv.workers()[0]
    assert (after.generation, after.refreshes, after.restarts) == (before.generation + 1, 1, 0)


def test_other_children_of_the_program_are_spared(make, wait_until):
    """A dead template is replaced, and only what it left is ended."""
    mine, before = subprocess.Popen(["sleep", "60"]), children()
    with make() as sv:
        started = children() - before
        template = next(pid for pid in started if "template/main.py" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: sv.workers()[0].state == "idle" and sv.workers()[0].generation > 1)
        assert sv.submit(1).result(timeout=SOON) == 1
        assert mine.poll() is None
    mine.kill()
    mine.wait()


def test_two_at_once(make):
    with make() as one, make() as two:
        assert one.submit(1).result(timeout=SOON) + two.submit(2).result(timeout=SOON) == 3


def test_many_threads(make):
    with make(workers=2) as sv:
        outputs = []
        threads = [threading.Thread(target=lambda: outputs.extend(sv.map(range(50)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert sorted(outputs) == sorted(list(range(50)) * 4)


INTERRUPTED = """
import sys
from supervisor import Supervisor
try:
    with Supervisor(sys.argv[1], gpus="none") as sv:
        sv.submit(1).result()
        print([worker.pid for worker in sv.workers()][0], flush=True)
        sv.submit({"hold": "never"}).result()
except KeyboardInterrupt:
    print("out", flush=True)
"""


def test_ctrl_c_leaves_nothing(run_program, wait_until):
    program = run_program(INTERRUPTED)
    worker = int(program.stdout.readline())
    # CPython loses a signal that comes between its last look at signals and its wait for a lock, until the next signal.
    wait_until(lambda: psutil.Process(program.pid).status() == psutil.STATUS_SLEEPING)
    os.kill(program.pid, signal.SIGINT)
    assert program.stdout.readline() == "out\n"
    assert gone(worker)
    assert program.wait(SOON) == 0


KILLED = INTERRUPTED


def test_kill_9_of_the_program_leaves_nothing(run_program, wait_until):
    program = run_program(KILLED)
    worker = int(program.stdout.readline())
    os.kill(program.pid, signal.SIGKILL)
    wait_until(lambda: gone(worker))


FORGOTTEN = """
import sys
from supervisor import Supervisor
sv = Supervisor(sys.argv[1], gpus="none").start()
job = sv.submit({"hold": "never"})
print(sv.workers()[0].pid, flush=True)
"""


def test_a_program_that_never_closes_it_ends_all_the_same(run_program):
    program = run_program(FORGOTTEN)
    worker = int(program.stdout.readline())
    assert program.wait(SOON) == 0
    assert gone(worker)


FORKS = """
import multiprocessing, os, sys, warnings
from supervisor import Supervisor

warnings.simplefilter("ignore")  # Python 3.12 warns of forks in a program with threads

def child(sv, write):
    try:
        sv.submit(1)
        os.write(write, b"submitted")
    except RuntimeError as error:
        os.write(write, str(error).encode())

if __name__ == "__main__":
    read, write = os.pipe()
    go, stop = os.pipe()
    with Supervisor(sys.argv[1], gpus="none", store="jobs.db") as sv:
        sv.submit(1).result()
        forked = multiprocessing.get_context("fork").Process(target=child, args=(sv, write))
        forked.start()
        forked.join()
        print(os.read(read, 500).decode(), forked.exitcode, flush=True)
        pid = os.fork()
        if pid == 0:
            os.write(write, b"x")
            os.read(go, 1)  # lives on after the supervisor
            os._exit(0)
        os.read(read, 1)  # it has let go of the locks by then
        print(sv.submit(2).result(), flush=True)
    with Supervisor(sys.argv[1], gpus="none", store="jobs.db") as sv:  # its locks ended with it
        print(sv.submit(3).result(), flush=True)
    os.write(stop, b"x")
    os.waitpid(pid, 0)
"""


def test_forks_of_the_program(run_program):
    program = run_program(FORKS)
    output, _ = program.communicate(timeout=50)
    lines = output.splitlines()
    assert "belongs to process" in lines[0], output
    assert lines[0].endswith(" 0")
    assert lines[1:] == ["2", "3"]


NESTED = """
from supervisor import Supervisor
with Supervisor(__file__, gpus="none") as sv:
    pass
"""


def test_a_worker_starts_no_supervisor(write):
    program = write(NESTED, "nested.py")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, env=env)
    assert ended.returncode == 1
    assert "a worker must not start a supervisor" in ended.stderr


MANY_DESCRIPTORS = """
import os, resource, sys
from supervisor import Supervisor
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
with Supervisor(sys.argv[1], simulate_gpus=1, lock_dir="locks") as sv:
    print(sv.submit(1).result(), flush=True)
"""


def test_a_program_with_more_descriptors_than_select_takes(run_program):
    program = run_program(MANY_DESCRIPTORS)
    output, _ = program.communicate(timeout=50)
    assert output.splitlines() == ["1"]
