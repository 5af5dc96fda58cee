"""On a machine with an NVIDIA GPU: what the fakes promise is what the driver does. `pytest -m gpu`."""

from __future__ import annotations

import select
import time

import pytest

from supervisor.gpu.records import WorkerRef
from supervisor.pool.release.verdict import Release, Verdict

pytestmark = pytest.mark.gpu

ALLOCATE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(2 << 30)) == 0
print("allocated", flush=True)
"""


@pytest.fixture
def real(driver):
    made = driver()
    listing = made.reader.list_gpus(30)
    if not listing.gpus:
        pytest.skip(listing.reason)
    made.gpus = listing.gpus
    return made


def test_gpus_are_listed_and_read(real):
    reading = real.sample()
    assert [sample.uuid for sample in reading.gpus] == [gpu.uuid for gpu in real.gpus]
    for gpu, sample in zip(real.gpus, reading.gpus, strict=True):
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert sample.error is None
        assert not sample.lost


def test_memory_of_a_killed_process_is_seen_to_come_back(real, child, monkeypatch):
    gpu = real.gpus[0]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu.uuid if gpu.mig is not None else str(gpu.index))
    release = Release("gpu0", [gpu], real.sample(), attributes=False, timeout=30.0)
    worker = child(ALLOCATE)
    assert worker.line() == "allocated"
    workers = {"gpu0": WorkerRef(worker.pid, (gpu.uuid,))}
    release.living(real.sample(workers))
    worker.kill()
    died = time.monotonic()
    release.died(died)
    while (judgement := release.observe(real.sample(workers), time.monotonic())).verdict is Verdict.WAIT:
        select.select([], [], [], 0.01)
    assert judgement.verdict is Verdict.FREE
    assert judgement.freed_mib >= 2048
    print(f"{judgement.freed_mib} MiB came back {(time.monotonic() - died) * 1000:.0f} ms after the death")
