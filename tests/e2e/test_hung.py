"""A worker that hangs is ended as promised, and a person can read where it hung: the user's own file, line and function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Runs, Supervise

FAST = ("--gpus", "none", "--grace", "200ms")

HANGS = """
import ctypes, os, re, socket, threading, time

def native_code():
    while True:
        ctypes.CDLL(None).sleep(60)  # here

def native_code_with_the_interpreter_lock():
    while True:
        ctypes.PyDLL(None).sleep(60)  # here

def a_regular_expression():
    re.match("(a+)+$", "a" * 60 + "b")  # here

def a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # here

def a_lock_in_another_thread():
    lock = threading.Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()  # here

def a_read():
    reader, _ = socket.socketpair()
    reader.recv(1)  # here

def a_loop_that_catches_everything():
    while True:
        try:
            time.sleep(60)  # here
        except BaseException:
            pass

def handler(job):
    globals()[job["input"]]()
"""

WAYS = [line[4:-3] for line in HANGS.splitlines() if line.startswith("def ") and line.endswith("():")]

TIME_OUT = 2000
"""Milliseconds in which a job must have come to where it hangs, also on a busy machine."""

START_TIMEOUT_S = 5
"""In which a worker must be ready or hang in its load: Python and the template start in it as well."""

BLOCKED = """
import asyncio, time

def blocks():
    time.sleep(60)  # here

async def handler(job):
    await asyncio.sleep(0)
    print("begins", job["input"])
    blocks()
"""


def place_of(path: Path, function: str) -> str:
    """How the stack names the line of ``function`` that hangs."""
    lines = path.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"def {function}("))
    number = next(number for number in range(begin, len(lines)) if lines[number].endswith("# here")) + 1
    return rf'File "{path}", line {number} in {function}$'


def is_replaced(run: Supervise, slot: str, generation: int = 1) -> None:
    run.until(lambda: (it := run.workers()[slot])["state"] == "idle" and it["generation"] > generation)


def test_whatever_a_job_hangs_in_its_timeout_ends_it_and_the_stack_is_shown(supervise: Runs) -> None:
    handler = supervise.write("hangs.py", HANGS)
    run = supervise(handler, *FAST, "--workers", len(WAYS)).ready(*(f"cpu{index}" for index in range(len(WAYS))))
    jobs = {way: run.run(way, policy={"executionTimeout": TIME_OUT}) for way in WAYS}
    for way, job in jobs.items():
        ended = run.ended(job)
        assert ended["status"] == "TIMED_OUT", way
        assert "longer than its execution time-out of 2 s" in ended["error"], way
        slot = ended["workerId"].partition("-")[0]
        run.wait_for_line(rf"^{slot} │ .*{place_of(handler, way)}")
        is_replaced(run, slot)
    assert [worker["restarts"] for worker in run.workers().values()] == [1] * len(WAYS)
    assert run.stop() == 0


def test_a_loop_that_a_coroutine_blocks(supervise: Runs) -> None:
    handler = supervise.write("blocks.py", BLOCKED)
    run = supervise(handler, *FAST).ready("cpu0")
    job = run.run("time out", policy={"executionTimeout": TIME_OUT})
    assert run.ended(job)["status"] == "TIMED_OUT"
    run.wait_for_line(rf"^cpu0 │ .*{place_of(handler, 'blocks')}")
    is_replaced(run, "cpu0")

    said = len(run.stderr.lines)
    job = run.run("cancel")
    run.wait_for_line("begins cancel", said)
    assert run.post(f"/cancel/{job}")["status"] == "CANCELLED"
    run.wait_for_line(rf"^cpu0 │ .*{place_of(handler, 'blocks')}", said)
    is_replaced(run, "cpu0", 2)
    assert run.workers()["cpu0"]["restarts"] == 2
    assert run.stop() == 0


def test_a_load_that_hangs_ends_the_program_and_shows_where(supervise: Runs) -> None:
    source = HANGS.partition("def handler")[0] + "a_regular_expression()\n"
    handler = supervise.write("loads.py", source)
    run = supervise(handler, *FAST, "--start-timeout", START_TIMEOUT_S)
    assert run.wait() == 3
    said = run.stderr.whole()
    assert f"did not become ready within {START_TIMEOUT_S} s (--start-timeout)" in said
    run.wait_for_line(place_of(handler, "a_regular_expression"))


def test_a_later_load_that_hangs_is_tried_again(supervise: Runs) -> None:
    handler = supervise.write("loads.py", "def handler(job):\n    return 1\n")
    run = supervise(handler, *FAST, "--start-timeout", START_TIMEOUT_S).ready("cpu0")
    supervise.write("loads.py", HANGS.replace("def handler", "a_lock()\n\ndef handler"))
    run.post("/workers/cpu0/refresh")
    run.wait_for_line(place_of(handler, "a_lock"))
    supervise.write("loads.py", "def handler(job):\n    return 2\n")
    run.wait_for_line(f"did not become ready within {START_TIMEOUT_S} s")
    assert run.runsync(1)["output"] == 2
    assert run.stop() == 0
