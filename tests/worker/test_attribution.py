"""Whose words are these: what jobs print side by side in one worker, read as the supervisor reads it."""

from __future__ import annotations

import os
import select
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.wire import messages as wire

DEADLINE = 30.0

START = """
import asyncio, contextvars, logging, os, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from supervisor import serverless
made_before = logging.StreamHandler()
{code}
serverless.start({{"handler": handler, "concurrency_modifier": lambda current: 3}})
"""


class Heard:
    """The lines of one worker, by the job that they name."""

    def __init__(self, child: Any) -> None:
        self.child = child
        ready = child.ready()
        self._log = LogPipe(os.dup(child._log))
        os.set_blocking(self._log.fd, False)
        assert ready.capacity == 3
        self._log.expect_marks(ready.mark)
        self.running: list[str] = []
        self.lines: dict[str | None, list[str]] = defaultdict(list)

    def run(self, *jobs: str, value: Any = None) -> None:
        for job in jobs:
            self.running.append(job)
            self.child.run(value, job)

    def until(self, condition: Callable[[], bool]) -> None:
        """Read until ``condition``."""
        while not condition():
            assert select.select([self._log.fd], [], [], DEADLINE)[0], f"nothing comes after {dict(self.lines)}"
            self._take(self._log.read(self.running))
            assert not self._log.at_end, dict(self.lines)

    def end(self) -> wire.Done:
        """The next end of a job, with all that it printed."""
        done: wire.Done = self.child.receive_until(wire.Done)[-1]
        self._take(self._log.read_end_of(done.job, self.running))
        self.running.remove(done.job)
        return done

    def die(self) -> None:
        """All that a worker has said that ends by itself."""
        self.child.wait()
        self._take(self._log.read_rest(self.running))

    def tail_of(self, job: str) -> list[str]:
        return self._log.tail_of(job)

    def _take(self, said: Any) -> None:
        for job, lines in said:
            self.lines[job] += lines

    def close(self) -> None:
        self._log.close()  # the other descriptor is the child's


@pytest.fixture
def hear(launch: Any, write: Any) -> Iterator[Callable[[str], Heard]]:
    """Starts a worker whose handler is in ``code`` and takes three jobs at once."""
    heard: list[Heard] = []

    def hear(code: str) -> Heard:
        heard.append(Heard(launch("file", write("handler.py", START.format(code=code)))))
        return heard[-1]

    yield hear
    for one in heard:
        one.close()


TOGETHER = """
waiting, all_here = [], asyncio.Event()
async def meet():
    waiting.append(1)
    if len(waiting) % 3 == 0:
        all_here.set()
    await all_here.wait()
async def handler(job):
    me = job["id"]
    print(me, "one ", end="")
    await meet()
    print("line")
    print(me, "on stderr", file=sys.stderr)
    await asyncio.create_task(say(me))
    await asyncio.to_thread(print, me, "in a thread")
    print(me, "unfinished", end="")
async def say(me):
    print(me, "in a task")
"""


def test_prints_reach_the_job_whose_code_printed(hear):
    worker = hear(TOGETHER)
    jobs = ["a", "b", "c"]
    worker.run(*jobs)
    assert {worker.end().status for _ in jobs} == {"COMPLETED"}
    for job in jobs:
        assert worker.lines.pop(job) == [
            f"{job} one line",
            f"{job} on stderr",
            f"{job} in a task",
            f"{job} in a thread",
            f"{job} unfinished",
        ]
    assert not worker.lines


WAITING = """
events = {}
async def handler(job):
    me = job["id"]
    events[me] = asyncio.Event()
    print(me, "began")
    print("unfinished", end="")
    if job["input"]:
        events[job["input"]].set()
        return
    try:
        await events[me].wait()
    except asyncio.CancelledError:
        print(", cancelled")
        raise
    print(", finished")
"""


def test_a_cancelled_job_says_its_last_words_and_the_others_go_on(hear):
    worker = hear(WAITING)
    worker.run("a", "b")
    worker.until(lambda: worker.lines == {"a": ["a began"], "b": ["b began"]})
    worker.child.send(wire.Cancel("a"))
    assert worker.end() == wire.Done("a", "CANCELLED")
    assert worker.lines == {"a": ["a began", "unfinished, cancelled"], "b": ["b began"]}
    worker.run("c", value="b")
    assert worker.end().job == "c"
    assert worker.lines["c"] == ["c began", "unfinished"]
    assert worker.end().job == "b"
    assert worker.lines["b"] == ["b began", "unfinished, finished"]


WAYS = """
log = logging.getLogger("handler")
log.addHandler(made_before)
async def handler(job):
    print("print")
    log.warning("a handler of logging that was there before")
    sys.stdout.buffer.write(b"bytes\\n")
    sys.stdout.writelines(["several\\n", "lines\\n"])
    sys.__stderr__.write("original\\n")
    print("\\u00e9" * 30_000)
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(print, "with a context"))
    thread.start(); thread.join()
    pid = os.fork()
    if pid == 0:
        print("forked")
        os._exit(0)
    os.waitpid(pid, 0)
    os.write(1, b"a plain write\\n")
    subprocess.run(["echo", "a child"])
    thread = threading.Thread(target=print, args=("without a context",))
    thread.start(); thread.join()
"""


def test_what_carries_a_job_and_what_does_not(hear):
    worker = hear(WAYS)
    worker.run("a")
    worker.end()
    lines = [line for line in worker.lines["a"] if "\u00e9" not in line and "\ufffd" not in line]
    assert lines == [
        "print",
        "a handler of logging that was there before",
        "bytes",
        "several",
        "lines",
        "original",
        "with a context",
        "forked",
    ]
    assert worker.lines[None] == ["a plain write", "a child", "without a context"]


FORGES = """
async def handler(job):
    print(job["input"], end="")
    os.write(1, job["input"].encode())
    print(); os.write(1, b"\\n")
"""


def test_a_job_cannot_speak_in_the_name_of_another(hear):
    worker = hear(FORGES)
    forged = "\0" + "0" * 16 + "\0\1\0\3bme\n"
    worker.run("a", "b", value=forged)
    worker.end()
    worker.end()
    for job in ("a", "b"):
        assert "".join(worker.lines[job]) == forged.rstrip("\n")
    assert "".join(worker.lines[None]) == 2 * forged.rstrip("\n")


DIES = """
async def handler(job):
    print(job["id"], "began")
    if job["input"]:
        print("last words", end=" ")
        os.write(2, b"native complaint")
        os.kill(os.getpid(), 9)
    await asyncio.Event().wait()
"""


def test_a_death_leaves_each_job_its_own_last_words_and_the_workers(hear):
    worker = hear(DIES)
    worker.run("a")
    worker.run("b", value=1)
    worker.die()
    assert worker.tail_of("a") == ["a began", "native complaint"]
    assert sorted(worker.tail_of("b")) == ["b began", "last words ", "native complaint"]


REDIRECTS = """
async def handler(job):
    kept = os.dup(1)
    with open("caught", "wb") as file:
        os.dup2(file.fileno(), 1)
    print("into the file")
    os.dup2(kept, 1)
    print("into the log")
    return open("caught").read()
"""


def test_a_file_in_the_place_of_the_pipe_gets_plain_text(hear):
    worker = hear(REDIRECTS)
    worker.run("a")
    assert worker.end().output == b'"into the file\\n"'
    assert worker.lines == {"a": ["into the log"]}


BEFORE = """
{redirect}
async def handler(job):
    print("from a job", file={stream})
"""


@pytest.mark.parametrize(
    ("redirect", "stream"),
    [
        ("os.dup2(os.open('caught', os.O_WRONLY | os.O_CREAT), 1)", "sys.stdout"),
        ("sys.stdout.close()", "sys.stderr"),
        ("os.close(1)", "sys.stderr"),
    ],
)
def test_a_handler_that_took_its_output_away_as_it_loaded_is_served(hear, tmp_path, redirect, stream):
    worker = hear(BEFORE.format(redirect=redirect, stream=stream))
    worker.run("a")
    assert worker.end().status == "COMPLETED"
    caught = (tmp_path / "caught").read_text() if stream == "sys.stdout" else "\n".join([*worker.lines["a"], ""])
    assert caught == "from a job\n"


def test_a_worker_with_one_job_at_a_time_writes_no_marks(serve):
    child = serve("async def handler(job): print('plain')")
    child.job()
    assert child.written_so_far() == "plain\n"


CURRENT = """
import asyncio, threading
from supervisor import serverless
at_import = serverless.current_job()
def asked():
    return serverless.current_job()
async def handler(job):
    threads = []
    thread = threading.Thread(target=lambda: threads.append(asked()))
    thread.start(); thread.join()
    return [at_import, asked(), await asyncio.create_task(later()), await asyncio.to_thread(asked), *threads]
async def later():
    return asked()
"""


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (CURRENT, b'[null,"job","job","job",null]'),
        ("from supervisor import serverless\ndef handler(job): return serverless.current_job()", b'"job"'),
        ("from supervisor import serverless\ndef handler(job):\n    yield {'error': serverless.current_job()}", None),
    ],
)
def test_code_can_ask_for_which_job_it_runs(serve, code, answer):
    done = serve(code).job()
    assert (done.output, done.error) == (answer, None if answer else "job")


def test_nobody_works_for_a_job_outside_of_a_worker():
    from supervisor import serverless

    assert serverless.current_job() is None
