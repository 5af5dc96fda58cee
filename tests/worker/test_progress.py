"""progress_update: at once, in order, from any thread, never blocking, never after the end."""

from __future__ import annotations

import json

from supervisor.wire import messages as wire

HEAD = "import asyncio, threading\nfrom supervisor.serverless import progress_update\n"


def test_progress_comes_in_order_before_the_end(serve):
    child = serve(HEAD + "def handler(job):\n    for n in range(3): progress_update(job, {'n': n})\n    return 'end'")
    child.run()
    assert child.receive_until(wire.Done) == [
        *(wire.Progress("job", b'{"n":%d}' % n) for n in range(3)),
        wire.Done("job", "COMPLETED", b'"end"'),
    ]


def test_progress_and_chunks_keep_their_order(serve):
    child = serve(HEAD + "def handler(job):\n    for n in range(2):\n        progress_update(job, n)\n        yield n")
    child.run()
    kinds = [type(message).__name__ for message in child.receive_until(wire.Done)]
    assert kinds == ["Progress", "Chunk", "Progress", "Chunk", "Done"]


def test_progress_from_threads_keeps_each_threads_order(serve):
    child = serve(
        HEAD + "def handler(job):\n"
        "    def tell(name):\n        for n in range(50): progress_update(job, [name, n])\n"
        "    threads = [threading.Thread(target=tell, args=(t,)) for t in range(4)]\n"
        "    for t in threads: t.start()\n    for t in threads: t.join()\n    return 'end'"
    )
    child.run()
    *progress, _ = child.receive_until(wire.Done)
    by_thread = {name: [] for name in range(4)}
    for message in progress:
        name, n = json.loads(message.value)
        by_thread[name].append(n)
    assert all(seen == sorted(seen) for seen in by_thread.values())
    assert sum(map(len, by_thread.values())) >= 50


def test_progress_of_a_job_that_ended_is_not_heard(serve):
    child = serve(
        HEAD + "kept = []\nasync def handler(job):\n    for old in kept: progress_update(old, 'late')\n"
        "    progress_update(job, 'now')\n    kept.append(job)\n    return 1"
    )
    for name in ("a", "b", "c"):
        child.run(job=name)
        assert child.receive_until(wire.Done) == [wire.Progress(name, b'"now"'), wire.Done(name, "COMPLETED", b"1")]


def test_a_flood_never_blocks_and_the_newest_arrives(serve):
    child = serve(
        HEAD + "go = threading.Event()\nasync def handler(job):\n"
        "    for n in range(20000): progress_update(job, [n, 'x' * 1000])\n"
        "    print('flooded')\n"  # 20 MB through a pipe that nobody reads
        "    await asyncio.Event().wait()"
    )
    child.run()
    child.until_written("flooded")
    seen = []
    while not seen or seen[-1] < 19999:
        seen.append(json.loads(child.receive().value)[0])
    assert seen == sorted(seen)
    assert len(seen) < 20000


def test_a_flood_of_one_job_leaves_the_progress_of_another(serve):
    child = serve(
        HEAD
        + "jobs = []\nasync def handler(job):\n    jobs.append(job)\n    if len(jobs) < 2: await asyncio.Event().wait()\n"
        "    for n in range(1000): progress_update(jobs[0], ['x' * 1000, n])\n    progress_update(jobs[1], 'mine')\n"
        "    for n in range(1000): progress_update(jobs[0], ['x' * 1000, n])\n"
        "    print('flooded')\n    await asyncio.Event().wait()"
    )
    child.run(job="a")
    child.run(job="b")
    child.until_written("flooded")
    newest = {}
    while newest.get("b") != b'"mine"' or not newest["a"].endswith(b",999]"):
        message = child.receive()
        newest[message.job] = message.value


def test_the_end_drops_progress_that_has_not_left(serve):
    child = serve(
        HEAD + "import sys\n"
        "def watch():\n"  # what has not left is dropped before the end waits for the pipe, and only then may the test read
        "    main = threading.main_thread().ident\n"
        "    while sys._current_frames()[main].f_code.co_name != '_wait': pass\n"
        "    print('the end waits')\n"
        "def handler(job):\n    for n in range(20000): progress_update(job, [n, 'x' * 1000])\n"
        "    threading.Thread(target=watch).start()\n    return 'end'"
    )
    child.run()
    child.until_written("the end waits")
    *progress, done = child.receive_until(wire.Done)
    assert done.output == b'"end"'
    assert json.loads(progress[-1].value)[0] < 19999
    assert not child.conn.poll(0)


def test_chunks_wait_for_the_reader_and_progress_from_a_thread_does_not(serve):
    child = serve(
        HEAD + "def handler(job):\n"
        "    def tell():\n        while len(big) < 20: pass\n"
        "        for n in range(2000): progress_update(job, n)\n        print('told')\n"
        "    big = []\n    threading.Thread(target=tell).start()\n"
        "    for n in range(100):\n        big.append('x' * 100_000)\n        yield big[-1]"
    )
    child.run()
    # 100 chunks are 10 MB: the handler is stuck in one of the first. The thread gets to its end all the same.
    assert child.receive().index == 0
    chunks = 1
    while chunks < 20:
        chunks += isinstance(child.receive(), wire.Chunk)
    child.until_written("told")
    rest = [message for message in child.receive_until(wire.Done) if isinstance(message, wire.Chunk)]
    assert [message.index for message in rest] == list(range(20, 100))


def test_a_value_that_cannot_be_encoded_is_the_callers_error(serve):
    child = serve(HEAD + "def handler(job):\n    progress_update(job, {'x': [object()]})")
    report = json.loads(child.job().error)
    assert report["error_type"] == "<class 'supervisor.errors.EncodeError'>"
    assert report["error_message"] == "progress.x[0]: cannot encode object"
