"""Many workers on one machine: what each may have of it, and that nothing which one has started stays when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.template import mounts

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

TELLS = """
import os, resource
def handler(job):
    names = ("OMP_NUM_THREADS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "TMPDIR")
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        **{name: os.environ.get(name) for name in names},
    }
"""

BOMB = """
import os, signal
def handler(job):
    tokens, givers = os.pipe2(os.O_NONBLOCK)
    os.write(givers, bytes(job["input"]["number"]))  # it stops there by itself
    while True:
        try:
            os.read(tokens, 1)
        except BlockingIOError:
            break
        os.fork()
    while True:
        signal.pause()
"""

LISTENS = """
import socket
def handler(job):
    job["socket"] = socket.create_server(("127.0.0.1", job["input"]["port"]))
    open(job["input"]["gate"]).read()
"""

LITTERS = """
import tempfile
from pathlib import Path
def handler(job):
    seen = sorted(path.name for path in Path("/tmp").iterdir())
    Path("/tmp", job["input"]).touch()
    return {"seen": seen, "tempdir": tempfile.gettempdir(), "file": __file__}
"""

LEAVES = '''
"""Starts a process of every kind that people try to keep; each says its pid when it is what it wants to be."""
import ctypes, multiprocessing, os, signal, subprocess, sys, threading

WAITS = "import os, signal, sys; {}; os.write(int(sys.argv[1]), b'%d\\\\n' % os.getpid()); {}\\nwhile True: signal.pause()"
IGNORES = "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]"


def wait_forever(out):
    os.write(out, b"%d\\n" % os.getpid())
    while True:
        signal.pause()


def start_all(out):
    def python(does="0", then="0", **options):
        return subprocess.Popen([sys.executable, "-c", WAITS.format(does, then), str(out)], pass_fds=[out], **options)

    def shell(command):
        program = f"{sys.executable} -c \\"{WAITS.format(IGNORES, '0')}\\" {out}"
        subprocess.run(command.format(program), shell=True, pass_fds=[out])

    def double_fork():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                wait_forever(out)
            os._exit(0)

    python()
    python(start_new_session=True)
    python(IGNORES)
    python(then="os.kill(os.getpid(), signal.SIGSTOP)", start_new_session=True)
    python(env={})
    shell("nohup {} >/dev/null 2>&1 &")
    shell("setsid {} >/dev/null 2>&1 </dev/null &")
    double_fork()
    multiprocessing.get_context("fork").Process(target=wait_forever, args=(out,)).start()
    multiprocessing.get_context("fork").Process(target=wait_forever, args=(out,), daemon=True).start()
    threading.Thread(target=python, daemon=True).start()
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the worker takes no orphans any more
    double_fork()
    return 12


def handler(job):
    inp, out = os.pipe()
    number, said = start_all(out), b""
    while said.count(b"\\n") < number:
        said += os.read(inp, 4096)
    pids = [int(line) for line in said.split()]
    print("pids", *pids, flush=True)
    if job["input"] == "stay":
        while True:
            signal.pause()
    return {"refresh_worker": job["input"] == "refresh"}
'''


def tried(*command: str) -> str:
    """Why that does not work here; empty if it does."""
    try:
        return subprocess.run(command, check=False, cwd="/", stderr=subprocess.PIPE, text=True).stderr
    except FileNotFoundError as error:
        return str(error)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def end_worker(run: Supervise) -> None:
    os.kill(run.workers()["cpu0"]["pid"], signal.SIGKILL)


def end_template(run: Supervise) -> None:
    worker = run.workers()["cpu0"]["pid"]
    stat = Path(f"/proc/{worker}/stat").read_text()
    os.kill(int(stat[stat.rindex(")") + 2 :].split()[1]), signal.SIGKILL)


def end_by_cancel(run: Supervise) -> None:
    run.post(f"/cancel/{run.workers()['cpu0']['running'][0]}")


ENDS: dict[str, tuple[str, Callable[[Supervise], object]]] = {
    "refresh": ("refresh", lambda _: None),
    "cancel": ("stay", end_by_cancel),
    "worker killed": ("stay", end_worker),
    "template killed": ("stay", end_template),
    "supervisor killed": ("stay", lambda run: run.kill()),
    "supervisor told to stop": ("go", lambda run: run.stop()),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_that_a_handler_started_stays(supervise: Runs, end: str) -> None:
    handler = supervise.write("leaves.py", LEAVES)
    run = supervise(handler, "--gpus", "none", "--grace", "0.2").ready()
    given, ends = ENDS[end]
    run.run(given)
    pids = [int(pid) for pid in run.wait_for_line(r"pids ([\d ]+)")[1].split()]
    assert len(pids) == len(set(pids)) == 12
    ends(run)
    run.until(lambda: not any(map(alive, pids)))
    if not end.startswith("supervisor"):
        assert run.stop() == 0


def test_tree_over_the_limit(supervise: Runs) -> None:
    handler = supervise.write("bomb.py", BOMB)
    run = supervise(handler, "--gpus", "none", "--max-processes", 50).ready()
    pid = run.workers()["cpu0"]["pid"]
    failed = run.runsync({"number": 200})
    assert failed["status"] == "FAILED"
    assert failed["error"].startswith(f"worker cpu0 (pid {pid}) had more than 50 processes (--max-processes)")
    run.until(lambda: run.workers()["cpu0"]["state"] == "idle")
    assert run.workers()["cpu0"]["restarts"] == 1
    assert run.stop() == 0


def test_shares_of_the_cores(supervise: Runs) -> None:
    handler = supervise.write("tells.py", TELLS)
    cpus = sorted(os.sched_getaffinity(0))
    run = supervise(
        handler, "--simulate-gpus", len(cpus), "--cpu-affinity", "auto", env={"NOTIFY_SOCKET": "@x"}
    ).ready()
    told = run.runsync()["output"]
    assert len(told["cpus"]) == 1
    assert told["OMP_NUM_THREADS"] == ("1" if len(cpus) > 1 else None)
    assert told["NOTIFY_SOCKET"] is None
    assert run.stop() == 0


def test_what_the_user_has_set_stays(supervise: Runs) -> None:
    handler = supervise.write("tells.py", TELLS)
    run = supervise(handler, "--gpus", "none", "--workers", 2, env={"OMP_NUM_THREADS": "7"}).ready()
    told = run.runsync()["output"]
    assert told["OMP_NUM_THREADS"] == "7"
    assert told["cpus"] == sorted(os.sched_getaffinity(0))
    assert run.stop() == 0


def test_port_that_a_sibling_has(supervise: Runs, make_gate: Callable[[], Gate], free_port: int) -> None:
    handler = supervise.write("listens.py", LISTENS)
    run = supervise(handler, "--gpus", "none", "--workers", 2).ready("cpu0", "cpu1")
    gate = make_gate()
    first = run.run({"port": free_port, "gate": gate.path})
    gate.reached()
    has = run.started(first)
    failed = run.runsync({"port": free_port, "gate": gate.path})
    assert "Address already in use" in json.loads(failed["error"])["error_message"]
    run.wait_for_line(rf"the worker in slot {has} listens on port {free_port}: .*SUPERVISE_SLOT_INDEX")
    gate.open()
    assert run.stop() == 0


def test_private_tmp(supervise: Runs, tmp_path: Path) -> None:
    handler = supervise.write("litters.py", LITTERS)
    if refusal := tried(sys.executable, "-I", str(mounts.__file__), str(tmp_path)):
        pytest.skip(f"this system allows no mounts: {refusal}")
    run = supervise(handler, "--gpus", "none", "--private-tmp").ready()
    first = run.runsync("a-file")["output"]
    assert first["tempdir"] == "/tmp/cpu0-1"
    assert first["file"] == str(handler)
    assert "a-file" in run.runsync("another")["output"]["seen"]
    run.post("/workers/cpu0/refresh")
    run.until(lambda: run.workers()["cpu0"]["generation"] == 2 and run.workers()["cpu0"]["state"] == "idle")
    second: Any = run.runsync("a-file")["output"]
    assert "a-file" not in second["seen"]
    assert not Path("/tmp/a-file").exists()
    assert run.stop() == 0
    assert handler.exists()


def test_template_that_somebody_stopped(supervise: Runs) -> None:
    handler = supervise.write("tells.py", TELLS)
    run = supervise(handler, "--gpus", "none", "--grace", "600").ready()
    stat = Path(f"/proc/{run.workers()['cpu0']['pid']}/stat").read_text()
    os.kill(int(stat[stat.rindex(")") + 2 :].split()[1]), signal.SIGSTOP)
    assert run.stop() == 0


def test_too_few_descriptors(supervise: Runs) -> None:
    handler = supervise.write("tells.py", TELLS)
    command = supervise.command(handler, "--gpus", "none", "--no-dashboard")
    run = supervise.start(["/bin/sh", "-c", 'ulimit -n 40 && exec "$@"', "sh", *command])
    assert run.wait() == 2
    assert "this process may open 40 files only, and 1 slot need" in run.stderr.whole()


def test_process_1_of_a_container(supervise: Runs) -> None:
    handler = supervise.write("tells.py", TELLS)
    command = supervise.command(handler, "--gpus", "none", "--no-dashboard")
    # It waits for its child and gives its exit code; the child is process 1, and its end is that of all the others.
    container = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    if refusal := tried(*container, "true"):
        pytest.skip(f"this system allows no namespaces: {refusal}")
    run = supervise.start([*container, *command]).ready()
    assert run.runsync()["status"] == "COMPLETED"
    assert run.workers()["cpu0"]["pid"] < 100
    (child,) = (
        pid for pid, words in supervise.processes().items() if "bin/supervise" in words and "unshare" not in words
    )
    os.kill(child, signal.SIGTERM)
    assert run.wait() == 0
