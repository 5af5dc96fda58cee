"""Jobs side by side in one worker, and jobs that are cancelled."""

from __future__ import annotations

import pytest

from supervisor.wire import messages as wire

WAITING = """
import asyncio
async def handler(job):
    print(job["id"], "began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print(job["id"], "cancelled")
        {on_cancel}
"""


@pytest.mark.parametrize(
    ("on_cancel", "done"),
    [
        ("raise", wire.Done("job", "CANCELLED")),
        ("return 'swallowed'", wire.Done("job", "COMPLETED", b'"swallowed"')),
        ("return {'error': 'half done'}", wire.Done("job", "FAILED", None, "half done")),
    ],
)
def test_a_running_coroutine_gets_cancelled_error(serve, on_cancel, done):
    child = serve(WAITING.format(on_cancel=on_cancel))
    child.run()
    child.until_written("began")
    child.send(wire.Cancel("job"))
    assert child.receive() == done


def test_an_async_generator_gets_cancelled_error_and_its_chunks_stay(serve):
    child = serve("import asyncio\nasync def handler(job):\n    yield 1\n    await asyncio.Event().wait()")
    child.run()
    assert child.receive() == wire.Chunk("job", 0, b"1")
    child.send(wire.Cancel("job"))
    assert child.receive() == wire.Done("job", "CANCELLED")


@pytest.mark.parametrize(
    "text",
    [
        "async def handler(job): print('ran')",
        "async def handler(job):\n    print('ran')\n    yield 1",
        "import asyncio\ndef handler(job): return asyncio.ensure_future(asyncio.Event().wait())",
    ],
)
def test_a_cancel_that_comes_before_the_first_step_is_obeyed(serve, text):
    child = serve(text)
    encode = wire.Codec(wire.ToWorker).encode
    child.send_raw(wire.frame(encode(wire.Run("job", b"null"))) + wire.frame(encode(wire.Cancel("job"))))
    assert child.receive() == wire.Done("job", "CANCELLED")
    assert child.finish() == 0
    assert child.written_so_far() == ""


def test_a_cancel_of_a_job_that_does_not_run_is_ignored(serve):
    child = serve("def handler(job): return 1")
    child.send(wire.Cancel("nobody"))
    assert child.job().output == b"1"
    child.send(wire.Cancel("job"))
    assert child.job().output == b"1"


def test_coroutines_run_together_and_each_has_its_own_end(serve):
    child = serve(
        "import asyncio\nmet = asyncio.Event()\n"
        "async def handler(job):\n"
        "    if job['input']:\n        met.set()\n    await met.wait()\n    return job['id']"
    )
    for n in range(3):
        child.run(n == 2, f"job{n}")
    ended = {child.receive() for _ in range(3)}
    assert ended == {wire.Done(f"job{n}", "COMPLETED", f'"job{n}"'.encode()) for n in range(3)}


MODIFIER = """
from supervisor import serverless
asked = []
def modifier(current):
    asked.append(current)
    {modifier}
{kind} handler(job):
    {body}
serverless.start({{"handler": handler, "concurrency_modifier": modifier}})
"""


def test_the_modifier_is_asked_from_one_upward(launch, write):
    child = launch(
        "file",
        write("h.py", MODIFIER.format(modifier="return min(current + 1, 4)", kind="async def", body="return asked")),
    )
    assert child.ready().capacity == 2
    child.run()
    assert child.receive() == wire.Capacity(3)  # after the take
    assert child.receive() == wire.Done("job", "COMPLETED", b"[1,2]")
    assert child.receive() == wire.Capacity(4)
    child.run()
    assert child.receive() == wire.Done("job", "COMPLETED", b"[1,2,3,4]")


@pytest.mark.parametrize("value", ["0", "-3", "1"])
def test_a_capacity_is_at_least_one_and_is_said_only_when_it_changes(launch, write, value):
    child = launch(
        "file", write("h.py", MODIFIER.format(modifier=f"return {value}", kind="async def", body="return 1"))
    )
    assert child.ready().capacity == 1
    child.run(job="a")
    child.run(job="b")
    assert [child.receive().job, child.receive().job] == ["a", "b"]


@pytest.mark.parametrize("value", [wire.MAX_CAPACITY + 1, 10**9, 10**30])
def test_a_capacity_has_a_limit(launch, write, value):
    modifier = MODIFIER.format(modifier=f"return {value}", kind="async def", body="return 1")
    child = launch("file", write("h.py", modifier))
    warning = f"concurrency_modifier requests {value} jobs at once; the maximum is {wire.MAX_CAPACITY}"
    assert child.receive() == wire.Warning(warning)
    assert child.ready().capacity == wire.MAX_CAPACITY
    assert child.job().output == b"1"


def test_an_exception_in_the_modifier_is_a_warning(launch, write):
    child = launch(
        "file", write("h.py", MODIFIER.format(modifier="raise OSError('load?')", kind="async def", body="return 1"))
    )
    assert child.receive() == wire.Warning("concurrency_modifier raised, so the capacity stays 1: OSError: load?")
    assert child.ready().capacity == 1
    assert child.job().output == b"1"


def test_a_plain_function_is_never_sent_two_jobs(launch, write):
    child = launch("file", write("h.py", MODIFIER.format(modifier="return 5", kind="def", body="return asked")))
    assert child.ready().capacity == 1
    assert child.job().output == b"[]"


def test_a_plain_function_that_returns_coroutines_gets_its_capacity_once_that_is_seen(launch, write):
    body = "return inner()\nasync def inner(): return 1"
    child = launch("file", write("h.py", MODIFIER.format(modifier="return 5", kind="def", body=body)))
    assert child.ready().capacity == 1
    child.run()
    assert [child.receive(), child.receive()] == [wire.Capacity(5), wire.Done("job", "COMPLETED", b"1")]


def test_a_handler_that_stops_the_loop_does_not_stop_the_worker(serve):
    child = serve("import asyncio\ndef handler(job):\n    asyncio.get_running_loop().stop()\n    return 1")
    assert [child.job().output, child.job().output] == [b"1", b"1"]
