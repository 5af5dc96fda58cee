"""What holds for every source of readings, and what NVML may withhold."""

from __future__ import annotations

import os

import pytest

from supervisor.gpu.records import GpuProcess, GpuSample, WorkerRef
from tests.fakes.nvml import LOST, NO_PID_HERE, UNKNOWN

ALLOCATE = """
import os, pathlib, subprocess, sys
gpu, mib = os.environ.get("CUDA_VISIBLE_DEVICES", "0"), 200
held = bytearray(b"x") * (mib << 20)
if "FAKE_NVML" in os.environ:
    pathlib.Path(os.environ["FAKE_NVML"], "alloc", gpu, str(os.getpid())).write_text(str(mib))
print(os.getpid(), flush=True)
"""
GRANDCHILD = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {ALLOCATE + "sys.stdin.read()"!r}], start_new_session=True)
"""


@pytest.fixture(params=["simulated", "nvml"])
def source(request, driver):
    if request.param == "simulated":
        return driver(simulate=2)
    request.getfixturevalue("fake_nvml")
    return driver()


def first(source, workers=None) -> GpuSample:
    return source.sample(workers).gpus[0]


def test_lists_its_gpus_in_order_with_stable_names(source):
    listing = source.reader.list_gpus(30)
    assert [gpu.index for gpu in listing.gpus] == [0, 1]
    assert [gpu.label for gpu in listing.gpus] == ["gpu0", "gpu1"]
    assert len({gpu.uuid for gpu in listing.gpus}) == 2
    assert all(gpu.memory_total_mib == 24576 for gpu in listing.gpus)
    assert listing.complete
    assert listing.reason is None
    assert source.reader.list_gpus(30) == listing


def test_shows_what_a_worker_allocates_and_its_end_frees_it(source, child, gone):
    listing = source.reader.list_gpus(30)
    worker = child(ALLOCATE)
    assert worker.line() == str(worker.pid)
    sample = first(source, {"gpu0": WorkerRef(worker.pid, (listing.gpus[0].uuid,))})
    assert 200 <= sample.memory_used_mib < 260
    assert [(process.pid, process.slot) for process in sample.processes] == [(worker.pid, "gpu0")]
    assert source.sample().gpus[1].memory_used_mib == 0
    worker.kill()
    assert first(source).memory_used_mib == 0


def test_a_grandchild_belongs_to_the_slot_also_in_a_session_of_its_own(source, child):
    listing = source.reader.list_gpus(30)
    worker = child(GRANDCHILD)
    pid = int(worker.line())
    sample = first(source, {"gpu0": WorkerRef(worker.pid, (listing.gpus[0].uuid,))})
    mine = {process.pid: process for process in sample.processes}
    assert mine[pid].slot == "gpu0"
    assert mine[pid].memory_mib >= 200


def test_a_grandchild_that_outlives_its_worker_still_holds_its_memory(source, child, gone):
    listing = source.reader.list_gpus(30)
    worker = child(GRANDCHILD)
    pid = int(worker.line())
    workers = {"gpu0": WorkerRef(worker.pid, (listing.gpus[0].uuid,))}
    first(source, workers)
    worker.kill()
    assert first(source, workers).memory_used_mib >= 200
    os.kill(pid, 9)
    assert gone(pid)
    assert first(source, workers).memory_used_mib == 0


def test_a_simulated_worker_on_two_gpus_shows_half_on_each(driver, child):
    source = driver(simulate=2)
    uuids = tuple(gpu.uuid for gpu in source.reader.list_gpus(30).gpus)
    worker = child(ALLOCATE)
    worker.line()
    reading = source.sample({"gpu0+1": WorkerRef(worker.pid, uuids)})
    assert [100 <= sample.memory_used_mib < 130 for sample in reading.gpus] == [True, True]


# --- NVML


def test_nvml_sample_has_every_field(fake_nvml, driver):
    fake_nvml.base(0, 300)
    sample = first(driver())
    assert sample == GpuSample(
        uuid=fake_nvml.uuid(0),
        memory_used_mib=300,
        memory_total_mib=24576,
        utilization=42,
        temperature_c=55,
        power_w=71.5,
        processes=(),
    )


def test_a_stranger_has_no_slot(fake_nvml, driver):
    fake_nvml.allocate(0, os.getpid(), 700)
    (process,) = first(driver(), {"gpu0": WorkerRef(1 << 22)}).processes
    assert (process.pid, process.memory_mib, process.slot) == (os.getpid(), 700, None)
    assert process.name


OPTIONAL = {
    "nvmlDeviceGetName": None,
    "nvmlDeviceGetUtilizationRates": "utilization",
    "nvmlDeviceGetTemperature": "temperature_c",
    "nvmlDeviceGetPowerUsage": "power_w",
    "nvmlDeviceGetMigMode": None,
    "nvmlDeviceGetGraphicsRunningProcesses_v3": None,
    "nvmlErrorString": None,
}


@pytest.mark.parametrize("function", OPTIONAL)
def test_a_function_that_the_driver_lacks_costs_its_field_only(fake_nvml, driver, function):
    fake_nvml.missing(function)
    source = driver()
    assert len(source.reader.list_gpus(30).gpus) == 2
    sample = first(source)
    unknown = {
        name for name in ("utilization", "temperature_c", "power_w", "processes") if getattr(sample, name) is None
    }
    assert unknown == ({OPTIONAL[function]} - {None})
    assert sample.error is None
    assert sample.memory_used_mib == 0


def test_a_driver_with_hardly_any_function_still_shows_memory_in_use(fake_nvml, driver):
    fake_nvml.missing(*OPTIONAL, "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
    fake_nvml.allocate(0, os.getpid(), 500)
    source = driver()
    assert len(source.reader.list_gpus(30).gpus) == 2
    assert first(source) == GpuSample(uuid=fake_nvml.uuid(0), memory_used_mib=500, memory_total_mib=24576)


def test_an_older_process_list_does(fake_nvml, driver):
    fake_nvml.missing("nvmlDeviceGetComputeRunningProcesses_v3")
    fake_nvml.allocate(0, os.getpid(), 500)
    assert [process.memory_mib for process in first(driver()).processes] == [500]


def test_memory_of_a_process_may_be_unknown(fake_nvml, driver):
    fake_nvml.switch("unattributed")
    fake_nvml.allocate(0, os.getpid(), 500)
    sample = first(driver())
    assert sample.memory_used_mib == 500
    assert [process.memory_mib for process in sample.processes] == [None]


def test_a_process_listed_with_nothing_has_unknown_memory(fake_nvml, driver):
    fake_nvml.allocate(0, os.getpid(), 0)
    assert [process.memory_mib for process in first(driver()).processes] == [None]


def test_a_number_that_no_process_here_has_is_nobodys(fake_nvml, driver):
    fake_nvml.shift(NO_PID_HERE)
    fake_nvml.allocate(0, os.getpid(), 500)
    (process,) = first(driver(), {"gpu0": WorkerRef(os.getpid())}).processes
    assert process == GpuProcess(NO_PID_HERE + os.getpid(), 500, visible=False)


def no_counter(fake):
    fake.uncounted(0)


def no_function(fake):
    fake.missing("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2")


def no_total(fake):
    fake.add(0, total_mib=0)


@pytest.mark.parametrize("lack", [no_counter, no_function, no_total])
def test_a_gpu_without_a_counter_of_its_memory_is_well_and_tells_nothing_of_it(fake_nvml, driver, lack):
    lack(fake_nvml)
    fake_nvml.allocate(0, os.getpid(), 500)
    source = driver()
    gpu = source.reader.list_gpus(30).gpus[0]
    sample = first(source)
    assert (gpu.memory_total_mib, sample.memory_total_mib, sample.memory_used_mib) == (None, None, None)
    assert (sample.error, sample.lost, sample.counted) == (None, False, False)
    assert [process.memory_mib for process in sample.processes] == [500]


def test_memory_that_cannot_be_read_for_a_moment_is_an_error(fake_nvml, driver):
    source = driver()
    source.reader.list_gpus(30)
    fake_nvml.error(0, UNKNOWN)
    sample = first(source)
    assert (sample.error, sample.counted) == ("Unknown Error", False)


def test_an_instance_without_a_counter(fake_nvml, driver):
    fake_nvml.add(0, mig=2)
    fake_nvml.uncounted("MIG-00000000-1")
    source = driver()
    source.reader.list_gpus(30)
    assert [sample.counted for sample in source.sample().gpus] == [True, False, True]


def test_lost_is_nvmls_word_and_lasts_until_it_answers_again(fake_nvml, driver):
    source = driver()
    source.reader.list_gpus(30)
    seen = []
    for code in (UNKNOWN, LOST, UNKNOWN, None, UNKNOWN, 16, 10, None):
        fake_nvml.error(0, code)
        sample, other = source.sample().gpus
        seen.append((code, sample.lost, sample.error is None))
        assert not other.lost
        assert other.error is None
    assert seen == [
        (UNKNOWN, False, False),
        (LOST, True, False),
        (UNKNOWN, True, False),
        (None, False, True),
        (UNKNOWN, False, False),
        (16, True, False),
        (10, True, False),
        (None, False, True),
    ]


def test_a_gpu_that_cannot_be_described_is_named_and_indices_are_not_trusted(fake_nvml, driver):
    fake_nvml.error(0, LOST)
    listing = driver().reader.list_gpus(30)
    assert [gpu.index for gpu in listing.gpus] == [1]
    assert not listing.complete
    assert listing.reason == "GPU 0 cannot be read: GPU is lost"


def test_address_on_the_bus_is_as_linux_writes_it(fake_nvml, driver):
    fake_nvml.add(2, mig=1)
    gpus = driver().reader.list_gpus(30).gpus
    assert [gpu.pci for gpu in gpus] == ["0000:4e:00.0", "0000:4f:00.0", "0000:50:00.0"]


def test_mig_instances_stand_for_their_gpu(fake_nvml, driver):
    parent = fake_nvml.add(1, mig=2)
    listing = driver().reader.list_gpus(30)
    assert [(gpu.label, gpu.uuid, gpu.parent) for gpu in listing.gpus] == [
        ("gpu0", fake_nvml.uuid(0), None),
        ("gpu1m0", "MIG-00000001-0", parent),
        ("gpu1m1", "MIG-00000001-1", parent),
    ]


def test_without_a_driver_there_is_a_plain_reason(driver):
    listing = driver().reader.list_gpus(30)
    if listing.gpus:
        pytest.skip("this machine has GPUs")
    assert "driver" in listing.reason
    assert driver().sample().error == listing.reason
