"""What a handler prints and how its process ends: nothing that was written is lost."""

from __future__ import annotations

import os
import signal

import pytest

from supervisor.host.processes import STACK_SIGNAL
from supervisor.wire import messages as wire

C = "import ctypes\nlibc = ctypes.CDLL(None)\n"


def test_what_a_job_printed_is_in_the_pipe_before_its_end(serve):
    child = serve(
        C
        + "import os, sys\ndef handler(job):\n    print('one'); sys.stdout.write('two '); print('three', file=sys.stderr)\n"
        "    libc.printf(b'four, no newline'); os.system('echo; echo five')\n    return 1"
    )
    child.job()
    written = child.written_so_far()
    assert written.startswith("one\ntwo three\n")
    assert "four, no newline" in written
    assert "five\n" in written


def test_streams_are_utf8_and_never_refuse(serve):
    child = serve(
        "import sys\ndef handler(job):\n    print('é \\ud800')\n    return [sys.stdin.read(), sys.stdout is sys.__stdout__]"
    )
    assert child.job().output == b'["",true]'
    assert child.written_so_far() == "é \\ud800\n"


LAST_WORDS = {
    "segfault": ("ctypes.string_at(0)", -signal.SIGSEGV, "Segmentation fault"),
    "abort": ("libc.abort()", -signal.SIGABRT, "line 6 in handler"),
    "killed": ("os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    "_exit": ("os._exit(7)", 7, ""),
    "sys.exit": ("sys.exit(9)", 9, ""),
    "sys.exit()": ("sys.exit()", 0, ""),
    "sys.exit text": ("sys.exit('goodbye')", 1, "goodbye\n"),
    "sys.exit big": ("sys.exit(256 + 5)", 5, ""),
}


@pytest.mark.parametrize("marker", ["", "async "])
@pytest.mark.parametrize("how", LAST_WORDS)
def test_last_words_survive_every_end(serve, how, marker):
    ending, status, words = LAST_WORDS[how]
    child = serve(
        C + f"import os, sys\n{marker}def handler(job):\n    libc.printf(b'native\\n')\n"
        f"    print('last words', end=' '); {ending}\n"
    )
    child.run()
    assert child.wait() == status
    assert child.no_more_messages()
    written = child.written_so_far()
    assert written.startswith("native\nlast words ")
    assert words in written


STUCK = {
    "a system call": "time.sleep(3600)",
    "a loop in Python": "any(n for n in iter(int, 1))",
    "a loop in C": "any(iter(int, 1))",
    "C with the interpreter's lock": "ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("marker", ["", "async "])
@pytest.mark.parametrize("where", STUCK)
def test_a_stuck_worker_shows_the_stacks_of_all_its_threads(serve, where, marker):
    child = serve(
        C + "import os, threading, time\nthere = threading.Event()\n"
        "def elsewhere(): there.set(); threading.Event().wait()\n"
        "threading.Thread(target=elsewhere, daemon=True).start(); there.wait()\n"
        f"{marker}def handler(job):\n    print('began'); {STUCK[where]}\n"
    )
    child.run()
    child.until_written("began\n")
    os.kill(child.pid, STACK_SIGNAL)
    written = child.until_written("in _enter")  # far below the handler
    assert "in elsewhere" in written
    assert "line 8 in handler" in written


def test_a_worker_that_showed_its_stacks_goes_on(serve, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    child = serve("def handler(job):\n    print('began'); return open('fifo').read()")
    child.run()
    child.until_written("began\n")
    os.kill(child.pid, STACK_SIGNAL)
    child.until_written("line 2 in handler")
    (tmp_path / "fifo").write_text("on")
    assert child.receive() == wire.Done("job", "COMPLETED", b'"on"')


def test_sys_exit_in_a_task_of_the_handlers_ends_the_process(serve):
    child = serve(
        "import asyncio, sys\nasync def other(): sys.exit(9)\n"
        "async def handler(job):\n    task = asyncio.create_task(other())\n    await asyncio.Event().wait()"
    )
    child.run()
    assert child.wait() == 9


def test_exit_runs_no_code_of_the_handlers(serve):
    child = serve(
        "import atexit, threading\natexit.register(print, 'atexit')\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "class Loud:\n    def __del__(self): print('del')\nloud = Loud()\n"
        "def handler(job): return 1"
    )
    child.job()
    assert child.finish() == 0
    assert child.written_so_far() == ""


@pytest.mark.parametrize(
    "text", ["def handler(job): return 1", "import asyncio\nasync def handler(job): await asyncio.Event().wait()"]
)
def test_the_end_of_the_pipe_is_the_end_of_the_worker(serve, text):
    child = serve(text)
    child.run()
    child.conn.close()
    assert child.wait() == 0


def test_a_worker_that_speaks_to_nobody_ends(serve):
    child = serve("def handler(job):\n    print('began')\n    return 'x' * 10_000_000")
    child.run()
    child.until_written("began")
    child.conn.close()
    assert child.wait() == 0


def test_a_handler_that_closed_its_stdout_is_served_on(serve):
    child = serve("import sys\ndef handler(job):\n    sys.stdout.close()\n    sys.stderr = None\n    return 1")
    assert [child.job().output, child.job().output] == [b"1", b"1"]
    assert child.finish() == 0


def test_a_native_thread_that_holds_another_c_stream_does_not_stop_a_job(serve):
    child = serve(
        C + "import os, threading\nlibc.fdopen.restype = ctypes.c_void_p\nr, w = os.pipe()\n"
        "stream = ctypes.c_void_p(libc.fdopen(r, b'r'))\n"
        "threading.Thread(target=libc.fgetc, args=(stream,), daemon=True).start()\n"
        "def handler(job): return 1"
    )
    assert child.job().output == b"1"


FORKING = """
import os
from supervisor import serverless
def handler(job):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        serverless.progress_update(job, "from the child")
        serverless.start({{"handler": handler}})
        os.write(w, b"start returned")
        {child_ends}
    os.close(w)
    said = os.read(r, 100).decode()
    return [said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
"""


@pytest.mark.parametrize("child_ends", ["os._exit(0)", "return 'from the child'", "raise ValueError"])
def test_a_forked_child_never_speaks_in_the_workers_name(serve, child_ends):
    child = serve(FORKING.format(child_ends=child_ends))
    child.run()
    assert child.receive() == wire.Done("job", "COMPLETED", b'["start returned",0]')


def test_a_grandchild_does_not_keep_the_pipe_open(serve):
    child = serve(
        "import os, signal\ndef handler(job):\n    pid = os.fork()\n    if pid == 0:\n        signal.pause()\n    return pid"
    )
    grandchild = int(child.job().output)
    try:
        assert child.finish() == 0
        assert child.no_more_messages()
    finally:
        os.kill(grandchild, signal.SIGKILL)
