"""Every kind of handler, and what becomes of what it gives: the table of results."""

from __future__ import annotations

import json
import socket

import pytest

import supervisor
from supervisor.cause import NotEncodable
from supervisor.wire import messages as wire

KINDS = {
    "function": "def handler(job): return job['input'] + 1",
    "coroutine": "import asyncio\nasync def handler(job):\n    await asyncio.sleep(0)\n    return job['input'] + 1",
    "function:partial": "import functools\ndef f(by, job): return job['input'] + by\nhandler = functools.partial(f, 1)",
    "coroutine:partial": "import functools\nasync def f(by, job): return job['input'] + by\nhandler = functools.partial(f, 1)",
    "function:object": "class H:\n    def __call__(self, job): return job['input'] + 1\nhandler = H()",
    "coroutine:object": "class H:\n    async def __call__(self, job): return job['input'] + 1\nhandler = H()",
    "function:method": "class H:\n    def f(self, job): return job['input'] + 1\nhandler = H().f",
    "function:returns a coroutine": "async def f(job): return job['input'] + 1\ndef handler(job): return f(job)",
    "function:returns a future": (
        "import asyncio\nasync def f(job): return job['input'] + 1\ndef handler(job): return asyncio.ensure_future(f(job))"
    ),
    "function:returns an awaitable": (
        "class A:\n    def __await__(self):\n        yield\n        return 8\ndef handler(job): return A()"
    ),
    "unknown:class": "class handler(int):\n    def __new__(cls, job): return int.__new__(cls, job['input'] + 1)",
}
STREAMS = {
    "generator": "def handler(job):\n    yield 0\n    yield 1",
    "async_generator": "import asyncio\nasync def handler(job):\n    yield 0\n    await asyncio.sleep(0)\n    yield 1",
    "function:returns a generator": "def handler(job): return (n for n in range(2))",
    "function:returns an async generator": "async def f():\n    yield 0\n    yield 1\ndef handler(job): return f()",
    "coroutine:returns a generator": "async def handler(job): return (n for n in range(2))",
    "coroutine:returns an async generator": "async def f():\n    yield 0\n    yield 1\nasync def handler(job): return f()",
    "generator:object": "class H:\n    def __call__(self, job):\n        yield 0\n        yield 1\nhandler = H()",
    "async_generator:partial": (
        "import functools\nasync def f(one, job):\n    yield 0\n    yield one\nhandler = functools.partial(f, 1)"
    ),
    "function:returns an async iterator": (
        "class I:\n    n = -1\n    def __aiter__(self): return self\n    async def __anext__(self):\n        self.n += 1\n"
        "        if self.n == 2: raise StopAsyncIteration\n        return self.n\ndef handler(job): return I()"
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_gives_its_result(launch, write, name):
    child = launch("file", write("handler.py", KINDS[name]))
    assert child.ready().kind == name.partition(":")[0]
    assert [child.job(7), child.job(7)] == [wire.Done("job", "COMPLETED", b"8")] * 2


@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_each_kind_streams(launch, write, name, aggregate):
    text = STREAMS[name] + (
        f"\nfrom supervisor import serverless\nserverless.start({{'handler': handler, 'return_aggregate_stream': {aggregate}}})"
    )
    child = launch("file", write("handler.py", text))
    assert child.ready().kind == name.partition(":")[0]
    child.run()
    assert child.receive_until(wire.Done) == [
        wire.Chunk("job", 0, b"0"),
        wire.Chunk("job", 1, b"1"),
        wire.Done("job", "COMPLETED", b"[0,1]" if aggregate else b"[]"),
    ]


RESULTS = {
    # what the handler returns: status, output, error, refresh
    "{'a': 1}": ("COMPLETED", b'{"a":1}', None, False),
    "{}": ("COMPLETED", None, None, False),
    "{'refresh_worker': True}": ("COMPLETED", None, None, True),
    "{'refresh_worker': 1, 'a': 2}": ("COMPLETED", b'{"a":2}', None, True),
    "{'refresh_worker': False, 'a': 2}": ("COMPLETED", b'{"a":2}', None, False),
    "{'error': '', 'a': 2}": ("COMPLETED", b'{"a":2}', None, False),
    "{'error': None}": ("COMPLETED", None, None, False),
    "{'error': 'bad'}": ("FAILED", None, "bad", False),
    "{'error': 'bad \\ud800'}": ("FAILED", None, "bad \\ud800", False),
    "{'error': 'bad', 'a': 2, 'refresh_worker': True}": ("FAILED", b'{"a":2}', "bad", True),
    "{'error': {'code': 7, 'why': ['x']}}": ("FAILED", None, '{"code":7,"why":["x"]}', False),
    "{'error': ['x']}": ("FAILED", None, '["x"]', False),
    "{'error': True}": ("FAILED", None, "true", False),
    "{'a': {'error': 'inner', 'refresh_worker': True}}": (
        "COMPLETED",
        b'{"a":{"error":"inner","refresh_worker":true}}',
        None,
        False,
    ),
    "[{'error': 'inner'}]": ("COMPLETED", b'[{"error":"inner"}]', None, False),
    "None": ("COMPLETED", b"null", None, False),
    "False": ("COMPLETED", b"false", None, False),
    "0": ("COMPLETED", b"0", None, False),
    "''": ("COMPLETED", b'""', None, False),
    "[]": ("COMPLETED", b"[]", None, False),
    "b'abc'": ("COMPLETED", b'"YWJj"', None, False),
    "{'images': [object()]}": ("FAILED", None, NotEncodable("output.images[0]: cannot encode object"), False),
    "{'x': object(), 'refresh_worker': True}": ("FAILED", None, NotEncodable("output.x: cannot encode object"), True),
}


@pytest.mark.parametrize("marker", ["", "async "])
@pytest.mark.parametrize("value", RESULTS)
def test_what_a_result_means(serve, value, marker):
    status, output, error, refresh = RESULTS[value]
    done = serve(f"{marker}def handler(job): return {value}").job()
    text, fault = (None, error) if isinstance(error, NotEncodable) else (error, None)
    assert done == wire.Done("job", status, output, text, refresh, cause=fault)


@pytest.mark.parametrize(
    ("text", "seen"), [(b"1e400", "inf"), (b"-1e400", "-inf"), (b"9" * 30, "9" * 30), (b"1" * 4000, "1" * 4000)]
)
def test_numbers_of_any_size_reach_the_handler(serve, text, seen):
    worker = serve("def handler(job): return str(job['input'])")
    worker.send(wire.Run("job", text))
    assert worker.receive_until(wire.Done)[-1].output == f'"{seen}"'.encode()


POISON = {
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported": "illegal access",
    "CUDA error: device-side assert triggered": "device-side assert",
    "cudaErrorIllegalAddress: an illegal memory access was encountered": "illegal access",
    "INTERNAL: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure": "launch failure",
    "[716] Call to cuMemcpyDtoH results in CUDA_ERROR_MISALIGNED_ADDRESS": "misaligned address",
    "CUDA out of memory. Tried to allocate 20.00 MiB": None,
    "CUDA error: no kernel image is available for execution on the device": None,
    "the struct has a misaligned address": None,
}


@pytest.mark.parametrize("words", POISON)
@pytest.mark.parametrize(
    "way",
    ["raise RuntimeError({})", "return {{'error': {}}}", "yield {{'error': {}}}", "yield 1; raise RuntimeError({})"],
)
def test_a_sticky_cuda_error_poisons_the_worker(serve, words, way):
    done = serve(f"def handler(job):\n    {way.format(repr(words))}").job()
    assert (done.status, done.poisoned) == ("FAILED", POISON[words])


def test_a_sticky_cuda_error_behind_another(serve):
    raises = (
        "    try:\n        raise RuntimeError('CUDA error: device-side assert triggered')\n    except RuntimeError:\n"
    )
    done = serve(f"def handler(job):\n{raises}        raise ValueError('no picture')").job()
    assert done.poisoned == "device-side assert"


FULL = [
    # what the libraries say when a GPU's memory is full, from their issue trackers
    "CUDA out of memory. Tried to allocate 496.00 MiB. GPU 0 has a total capacity of 14.75 GiB of which 235.06 MiB is free.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Out of memory allocating 25,600,000 bytes (allocated so far: 3,635,267,072 bytes).",
    "cudaErrorMemoryAllocation: out of memory",
    "[CUresult.CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "cuMemAlloc failed: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\nBufferAssignment OOM Debugging.",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device ordinal 0",
    "OOM when allocating tensor with shape[64,9,9] and type float on /job:localhost/task:0/device:GPU:0 by allocator GPU_0_bfc",
    "failed to allocate memory [Op:AddV2]",
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer",
    "cuda_call.cc:114 onnxruntime::CudaCall CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc",
    "Cuda failure 'out of memory'",
    "CUDA failed with error out of memory",
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9866.00 MiB on device 1: cudaMalloc failed: out of memory",
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
    "Out of memory error on GPU 0. Cannot allocate 1.2GB memory on GPU 0",
]
NOT_FULL = [
    "Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000) and data type float64",
    "[enforce fail at alloc_cpu.cpp:83] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 800000 bytes.",
    "OOM when allocating tensor with shape[64,9,9] and type float on /job:localhost/task:0/device:CPU:0 by allocator cpu",
    "StatusCode.RESOURCE_EXHAUSTED: 429 Quota exceeded",
    "[Errno 12] Cannot allocate memory",
    "CUDA error: device-side assert triggered",
]


@pytest.fixture
def says(launch, write):
    """A worker whose handler fails with the words of its input."""
    child = launch("file", write("handler.py", SAYS))
    child.ready()
    return child


SAYS = """
class OutOfMemoryError(MemoryError): pass
OutOfMemoryError.__module__ = "cupy.cuda.memory"
def handler(job):
    how, words = job["input"]
    if how == "return":
        return {"error": words}
    try:
        raise {"raise": RuntimeError, "cupy": OutOfMemoryError, "host": MemoryError}[how](words)
    except RuntimeError as error:
        raise ValueError("no picture") from error
"""


def test_a_full_gpu_is_told_from_a_full_host(says):
    for expected, texts in ((True, FULL), (False, NOT_FULL)):
        for text in texts:
            for how in ("return", "raise"):
                done = says.job([how, text])
                assert (done.status, done.out_of_memory) == ("FAILED", expected), (how, text)
                assert (done.poisoned is None) == ("assert" not in text)
    assert says.job(["cupy", "no more"]).out_of_memory
    assert not says.job(["host", "out of memory"]).out_of_memory


def test_the_handlers_own_dict_is_not_changed(serve):
    child = serve("kept = {'refresh_worker': True, 'error': '', 'a': 1}\ndef handler(job): return kept")
    assert [child.job(), child.job()] == [wire.Done("job", "COMPLETED", b'{"a":1}', refresh=True)] * 2


def test_output_beside_an_error_that_cannot_be_encoded_is_dropped_with_a_warning(serve):
    child = serve("def handler(job): return {'error': 'bad', 'x': object()}")
    child.run()
    warning, done = child.receive_until(wire.Done)
    assert "output.x: cannot encode object" in warning.message
    assert done == wire.Done("job", "FAILED", None, "bad")


def test_a_handler_gets_the_id_the_input_and_the_extras(serve):
    child = serve("def handler(job): return [type(job).__name__, job]")
    extras = {"webhook": "http://x", "s3Config": {"bucketName": "b"}, "policy": {"ttl": 1}}
    assert json.loads(child.job({"n": None}, "j-1", extras).output) == [
        "dict",
        {"id": "j-1", "input": {"n": None}, **extras},
    ]


RAISING = {
    "function": "def handler(job):\n    raise ValueError(f'boom {job[\"input\"]}')",
    "coroutine": "async def handler(job):\n    raise ValueError(f'boom {job[\"input\"]}')",
    "generator": "def handler(job):\n    raise ValueError(f'boom {job[\"input\"]}')\n    yield",
    "async_generator": "async def handler(job):\n    raise ValueError(f'boom {job[\"input\"]}')\n    yield",
}


@pytest.mark.parametrize("kind", RAISING)
def test_an_exception_is_reported_with_the_users_frames_only(serve, tmp_path, kind):
    done = serve(RAISING[kind]).job(3)
    report = json.loads(done.error)
    trace = report.pop("error_traceback")
    assert (done.status, done.output, done.refresh) == ("FAILED", None, False)
    assert report == {
        "error_type": "<class 'ValueError'>",
        "error_message": "boom 3",
        "hostname": socket.gethostname(),
        "worker_id": "gpu0-3",
        "supervisor_version": supervisor.__version__,
    }
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.count("  File ") == 1
    assert f'File "{tmp_path}/handler.py", line 2, in handler\n    raise ValueError' in trace
    assert trace.endswith("ValueError: boom 3\n")


@pytest.mark.parametrize(
    ("raised", "error_type", "message"),
    [
        ("KeyboardInterrupt('x')", "<class 'KeyboardInterrupt'>", "x"),
        ("asyncio.CancelledError('x')", "<class 'asyncio.exceptions.CancelledError'>", "x"),
        ("Mute()", "<class '__main__.Mute'>", "<Mute whose text raises ZeroDivisionError>"),
        ("ValueError('\\ud800 é')", "<class 'ValueError'>", "\\ud800 é"),
    ],
)
@pytest.mark.parametrize("marker", ["", "async "])
def test_any_exception_fails_the_job_and_the_worker_goes_on(serve, raised, error_type, message, marker):
    child = serve(
        "import asyncio\nclass Mute(Exception):\n    def __str__(self): 1/0\n"
        f"{marker}def handler(job):\n    if job['input']: return 'still here'\n    raise {raised}"
    )
    report = json.loads(child.job().error)
    assert (report["error_type"], report["error_message"]) == (error_type, message)
    assert child.job(1).output == b'"still here"'


@pytest.mark.parametrize("kind", ["generator", "async_generator"])
@pytest.mark.parametrize(
    ("last", "error"),
    [
        ("yield {'error': 'bad'}", "bad"),
        ("yield {'error': [1]}", "[1]"),
        ("yield {'x': object()}", "output[2].x: cannot encode object"),
        ("raise ValueError('boom')", '"error_message":"boom"'),
    ],
)
def test_an_error_mid_stream_ends_the_iteration(serve, kind, last, error):
    marker = "async " if kind == "async_generator" else ""
    child = serve(
        "from supervisor import serverless\n"
        f"{marker}def handler(job):\n    try:\n        yield 0\n        yield {{'error': '', 'refresh_worker': True}}\n"
        f"        {last}\n"
        "        print('went on')\n        yield 3\n    finally:\n        print('closed')\n"
        "serverless.start({'handler': handler, 'return_aggregate_stream': True})"
    )
    child.run()
    *chunks, done = child.receive_until(wire.Done)
    assert chunks == [wire.Chunk("job", 0, b"0"), wire.Chunk("job", 1, b'{"error":"","refresh_worker":true}')]
    assert (done.status, done.output, done.refresh) == ("FAILED", None, False)
    said = done.error if done.cause is None else done.cause.what
    assert error in said.replace('": "', '":"')
    assert child.written_so_far() == "closed\n"


@pytest.mark.parametrize("marker", ["", "async "])
def test_a_yielded_error_is_treated_as_a_returned_one(serve, marker):
    done = serve(
        f"{marker}def handler(job):\n    yield {{'error': 'bad', 'refresh_worker': True, 'seed': job['input']}}\n    yield 1"
    ).job(7)
    assert (done.status, done.error, done.refresh, done.output) == ("FAILED", "bad", True, b'{"seed":7}')


@pytest.mark.parametrize("body", ["return 1", "yield 1", "return {'error': 'bad'}", "raise ValueError"])
@pytest.mark.parametrize("marker", ["", "async "])
def test_refresh_in_the_config_is_meant_for_every_job(serve, body, marker):
    child = serve(
        f"from supervisor import serverless\n{marker}def handler(job): {body}\n"
        "serverless.start({'handler': handler, 'refresh_worker': True})"
    )
    assert child.job().refresh


def test_context_variables_end_with_their_job(serve):
    child = serve(
        "import contextvars\nseen = contextvars.ContextVar('seen', default=0)\n"
        "def handler(job):\n    seen.set(seen.get() + 1)\n    return seen.get()"
    )
    assert [child.job().output, child.job().output] == [b"1", b"1"]
