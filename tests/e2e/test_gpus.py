"""Four mocked GPUs: who sees which, memory that is proved free before the next job starts, and two supervisors side by side."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.nvml import NO_PID_HERE, FakeNvml

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

HOLDS_MEMORY = '''
"""Takes memory of its GPU and keeps it, waits at a gate, leaves a file behind, asks for a refresh: all if told to."""
import os
from pathlib import Path

def handler(job):
    given = job["input"]
    if "mib" in given:
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        Path(os.environ["FAKE_NVML"], "alloc", gpu, str(os.getpid())).write_text(str(given["mib"]))
    if "gate" in given:
        open(given["gate"]).read()
    Path(os.environ["TMPDIR"], "litter").touch()
    return {"pid": os.getpid(), "environ": dict(os.environ), "refresh_worker": given.get("refresh")}
'''

FILLS_MEMORY = '''
"""Takes so much memory of its GPU, waits at a gate, and fails or gives it back: all if told to."""
import os
from pathlib import Path

def handler(job):
    given = job["input"]
    taken = Path(os.environ["FAKE_NVML"], "alloc", os.environ["CUDA_VISIBLE_DEVICES"], str(os.getpid()))
    if "mib" in given:
        taken.write_text(str(given["mib"]))
    if "gate" in given:
        open(given["gate"]).read()
        taken.unlink()
    if "raises" in given:
        raise RuntimeError(given["raises"])
    return os.getpid()
'''

SAYS_WHAT_IT_SEES = """
import os
print("sees", repr(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
handler = repr
"""


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path / "nvml", gpus=4)


@pytest.fixture
def holder(supervise: Runs) -> Path:
    return supervise.write("holds_memory.py", HOLDS_MEMORY)


def busy_but_one(run: Supervise, make_gate: Callable[[], Gate]) -> tuple[str, dict[str, Gate]]:
    """Jobs that stand at gates in all slots but one: that slot, and the others' gates by job."""
    gates = {}
    for _ in range(len(run.workers()) - 1):
        gate = make_gate()
        gates[run.run({"gate": gate.path})] = gate
        gate.reached()
    (free,) = (slot for slot, worker in run.workers().items() if worker["state"] == "idle")
    return free, gates


def test_each_worker_sees_one_gpu_and_memory_is_free_before_the_next_job(
    supervise: Runs, fake: FakeNvml, holder: Path, make_gate: Callable[[], Gate]
) -> None:
    env = {**fake.env(), "SUPERVISE_API_KEYS": "very-secret"}
    run = supervise(holder, env=env)
    run.headers["authorization"] = "Bearer very-secret"
    run.ready("gpu0", "gpu1", "gpu2", "gpu3")
    slot, gates = busy_but_one(run, make_gate)
    fake.lag(float("inf"))  # the driver does not give back what a dead process had

    first = run.runsync({"mib": 2000, "refresh": True})
    assert first["status"] == "COMPLETED"
    assert "refresh_worker" not in first["output"]
    assert first["workerId"] == f"{slot}-1"
    run.until(lambda: run.workers()[slot]["state"] == "releasing")
    second = run.run({"refresh": True})
    waits_from = time.monotonic()  # now it waits: how long this request took is nobody's delay
    gpu = next(gpu for gpu in run.get("/gpus") if slot in gpu["slots"])
    assert run.until(lambda: run.get("/gpus")[gpu["index"]]["memoryUsedMiB"]) == 2000
    assert run.status(second)["status"] == "IN_QUEUE"
    waited_ms = 1000 * (time.monotonic() - waits_from)
    fake.lag(0)

    body = run.ended(second)
    assert body["workerId"] == f"{slot}-2"
    assert body["output"]["pid"] != first["output"]["pid"]
    assert body["delayTime"] >= int(waited_ms)
    worker = run.until(lambda: (it := run.workers()[slot])["refreshes"] == 2 and it["state"] == "idle" and it)
    assert (worker["restarts"], worker["jobs"], worker["generation"]) == (0, 2, 3)
    run.wait_for_line(f"{slot}: refreshed in .*, 2000 MiB freed; requested by the handler")
    run.wait_for_line(f"{slot}: refreshed in .*, 0 MiB freed; requested by the handler")

    # What a worker holds while it lives.
    gate = make_gate()
    holds = run.run({"mib": 1234, "gate": gate.path})
    gate.reached()
    run.until(lambda: run.workers()[slot]["gpuMemoryMiB"] == 1234)
    gpu = run.get("/gpus")[gpu["index"]]
    assert [(process["slot"], process["memoryMiB"]) for process in gpu["processes"]] == [(slot, 1234)]
    gates[holds] = gate

    seen = {}
    for job, gate in gates.items():
        gate.open()
        output = run.ended(job)["output"]
        seen[output["environ"]["SUPERVISE_SLOT"]] = output["environ"]
    assert seen[slot]["SUPERVISE_WORKER_ID"] == f"{slot}-3"
    generations = {name: "3" if name == slot else "1" for name in seen}
    for index, name in enumerate(("gpu0", "gpu1", "gpu2", "gpu3")):
        expected = {
            "CUDA_VISIBLE_DEVICES": str(index),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "SUPERVISE_WORKER_ID": f"{name}-{generations[name]}",
            "RUNPOD_POD_ID": f"{name}-{generations[name]}",
            "RUNPOD_ENDPOINT_ID": "holds_memory",
            "SUPERVISE_SLOT": name,
            "SUPERVISE_SLOT_INDEX": str(index),
        }
        assert {key: seen[name].get(key) for key in expected} == expected
        assert "very-secret" not in str(seen[name])
    ended = [Path(job["output"]["environ"]["TMPDIR"]) for job in (first, body)]
    living = [Path(environ["TMPDIR"]) for environ in seen.values()]
    assert len({*ended, *living}) == 6
    run.until(lambda: not any(folder.exists() for folder in ended))
    assert all((folder / "litter").exists() for folder in living)
    assert run.stop() == 0
    assert not any(folder.exists() for folder in living)


def test_memory_that_stays_holds_the_slot_until_it_goes(supervise: Runs, fake: FakeNvml, holder: Path) -> None:
    fake.lag(float("inf"))
    run = supervise(holder, "--gpus", 1, "--release-timeout", "200ms", env=fake.env()).ready("gpu1")
    run.runsync({"mib": 3000, "refresh": True})
    held = run.until(lambda: (it := run.workers()["gpu1"])["state"] == "held" and it)
    assert "3000 MiB" in held["reason"]
    run.wait_for_line(r"gpu1: held: .*3000 MiB")
    assert run.get("/health")["workers"]["unhealthy"] == 1
    waits = run.run({})
    fake.lag(0)
    assert run.ended(waits)["workerId"] == "gpu1-2"
    assert run.workers()["gpu1"]["refreshes"] == 1

    # By hand, though the memory is in use still.
    fake.lag(float("inf"))
    run.runsync({"mib": 3000, "refresh": True})
    run.until(lambda: run.workers()["gpu1"]["state"] == "held")
    run.post("/workers/gpu1/refresh")
    assert run.runsync({})["workerId"] == "gpu1-3"
    assert run.workers()["gpu1"]["lastRefresh"]["verified"] is False
    assert run.stop() == 0


def test_where_nvml_cannot_tell_whose_memory_it_is_the_refresh_is_unverified(
    supervise: Runs, fake: FakeNvml, holder: Path
) -> None:
    fake.lag(float("inf"))
    fake.switch("hidden")
    run = supervise(holder, "--gpus", 1, "--release-timeout", "200ms", env=fake.env()).ready("gpu1")
    run.runsync({"mib": 3000, "refresh": True})
    assert run.runsync({})["workerId"] == "gpu1-2"
    assert run.workers()["gpu1"]["lastRefresh"]["verified"] is False
    run.wait_for_line(r"gpu1: refreshed .*unverified")
    # Nobody's jobs wait for a driver that hangs, nor does the end of the program.
    fake.switch("hang")
    assert run.runsync({"refresh": True})["status"] == "COMPLETED"
    assert run.runsync({})["workerId"] == "gpu1-3"
    assert run.stop() == 0
    fake.switch("hang", on=False)


def test_a_leak_that_nvml_lists_by_the_hosts_pid_is_no_free_memory(
    supervise: Runs, fake: FakeNvml, holder: Path
) -> None:
    fake.shift(NO_PID_HERE)
    fake.switch("lists-the-dead")
    fake.lag(float("inf"))
    run = supervise(holder, "--gpus", 1, "--release-timeout", "200ms", env=fake.env()).ready("gpu1")
    for times in (1, 2, 3):
        pid = run.runsync({"mib": 500, "refresh": True})["output"]["pid"]
        last = refreshed(run, "gpu1", times)["lastRefresh"]
        assert (last["verified"], last["freedMiB"]) == (False, 0)
        why = f"500 MiB more in use than before, and NVML lists pid {NO_PID_HERE + pid}, unknown here"
        run.wait_for_line(f"^gpu1: release unverified: {why}$")
    (gpu,) = run.get("/gpus")
    assert gpu["memoryUsedMiB"] == 1500
    assert [(process["slot"], process["visible"]) for process in gpu["processes"]] == [(None, False)] * 3

    # What was given back is proved all the same, whoever is listed.
    fake.lag(0)
    run.runsync({"mib": 700, "refresh": True})
    last = refreshed(run, "gpu1", 4)["lastRefresh"]
    assert (last["verified"], last["freedMiB"]) == (True, 700)
    assert run.stop() == 0


@pytest.mark.parametrize("how", ["not supported", "a total of 0"])
def test_a_gpu_without_a_counter_of_its_memory_costs_no_wait(
    supervise: Runs, fake: FakeNvml, holder: Path, how: str
) -> None:
    if how == "not supported":
        fake.uncounted(1)
    else:
        fake.add(1, total_mib=0)
    run = supervise(holder, "--gpus", 1, "--release-timeout", "10m", env=fake.env()).ready("gpu1")
    for times, lag in ((1, 0), (2, float("inf"))):
        fake.lag(lag)
        run.runsync({"mib": 500, "refresh": True})
        last = refreshed(run, "gpu1", times)["lastRefresh"]
        assert (last["verified"], last["freedMiB"]) == (False, None)
    run.wait_for_line("^gpu1: release unverified: NVML has no counter of this GPU's memory$")
    (gpu,) = run.get("/gpus")
    assert (gpu["memoryUsedMiB"], gpu["memoryTotalMiB"]) == (None, None)
    assert run.stop() == 0


def test_one_gpu_without_a_counter_makes_a_refresh_unverified_and_the_other_may_be_held(
    supervise: Runs, fake: FakeNvml, holder: Path
) -> None:
    fake.uncounted(2)
    options = ("--gpus", "1,2", "--gpus-per-worker", 2, "--release-timeout", "200ms")
    run = supervise(holder, *options, env=fake.env()).ready("gpu1\\+2")
    run.runsync({"refresh": True})
    assert refreshed(run, "gpu1+2", 1)["lastRefresh"]["verified"] is False
    run.wait_for_line(r"^gpu1\+2: release unverified: gpu2: NVML has no counter")
    fake.lag(float("inf"))
    fake.allocate(1, run.workers()["gpu1+2"]["pid"], 900)
    run.until(lambda: run.workers()["gpu1+2"]["gpuMemoryMiB"] == 900)
    run.runsync({"refresh": True})
    held = run.until(lambda: (it := run.workers()["gpu1+2"])["state"] == "held" and it)
    assert held["reason"] == "gpu1: 900 MiB still in use by no process that NVML lists"
    fake.lag(0)
    assert refreshed(run, "gpu1+2", 2)["lastRefresh"]["verified"] is False
    assert run.stop() == 0


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child=SIGTERM", "--mount-proc")


def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="this user may make no PID namespace")
def test_in_a_pid_namespace_of_its_own(supervise: Runs, fake: FakeNvml, holder: Path) -> None:
    fake.lag(float("inf"))
    fake.switch("lists-the-dead")
    own = supervise.command(holder, "--gpus", 1, "--release-timeout", "200ms", "--no-dashboard")
    run = supervise.start([*UNSHARE, *own], env=fake.env()).ready("gpu1")

    # NVML lists the host's pids, and the worker's happens to be that of another process in here: the supervisor's.
    worker = run.workers()["gpu1"]
    fake.shift(1 - worker["pid"])
    run.runsync({"mib": 500, "refresh": True})
    assert refreshed(run, "gpu1", 1)["lastRefresh"]["verified"] is False
    assert [process["visible"] for process in run.get("/gpus")[0]["processes"]] == [False]
    fake.forget(1, worker["pid"])

    # NVML lists this namespace's pids: what it lists of the worker is evidence.
    fake.shift(0)
    run.until(lambda: run.get("/gpus")[0]["memoryUsedMiB"] == 0)
    pid = run.runsync({"mib": 600, "refresh": True})["output"]["pid"]
    held = run.until(lambda: (it := run.workers()["gpu1"])["state"] == "held" and it)
    assert held["reason"] == f"600 MiB still in use by pid {pid} (unknown)"
    fake.lag(0)
    last = refreshed(run, "gpu1", 2)["lastRefresh"]
    assert (last["verified"], last["freedMiB"]) == (True, 600)
    run.kill()  # unshare's own end is its child's SIGTERM
    run.wait()


def refreshed(run: Supervise, slot: str, times: int) -> Mapping[str, Any]:
    """What ``/workers`` says of the slot once its worker is idle after so many refreshes."""
    worker: Mapping[str, Any] = run.until(
        lambda: (it := run.workers()[slot])["refreshes"] == times and it["state"] == "idle" and it
    )
    return worker


@pytest.mark.parametrize("processes", ["listed", "hidden", "listed by the host's pids"])
def test_a_worker_that_still_holds_too_much_when_its_job_has_ended_is_refreshed(
    supervise: Runs, fake: FakeNvml, processes: str
) -> None:
    fake.switch("hidden", processes == "hidden")  # as in a container: told by the memory in use
    fake.shift(NO_PID_HERE if processes.startswith("listed by") else 0)
    fake.base(1, 700)
    handler = supervise.write("fills_memory.py", FILLS_MEMORY)
    run = supervise(handler, "--gpus", 1, "--refresh-above", 1500, env=fake.env()).ready("gpu1")
    first = run.runsync({"mib": 1500})["output"]
    assert run.runsync({"mib": 2000})["output"] == first
    worker = refreshed(run, "gpu1", 1)
    assert worker["pid"] != first
    assert (worker["generation"], worker["restarts"], worker["jobs"]) == (2, 0, 2)
    assert (worker["lastRefresh"]["cause"], worker["lastRefresh"]["freedMiB"]) == ("--refresh-above", 2000)
    run.wait_for_line("^gpu1: refreshed in .*, 2000 MiB freed; requested by --refresh-above$")
    assert run.stop() == 0


def test_what_counts_is_what_the_worker_holds_after_its_job(
    supervise: Runs, fake: FakeNvml, make_gate: Callable[[], Gate]
) -> None:
    handler = supervise.write("fills_memory.py", FILLS_MEMORY)
    run = supervise(handler, "--gpus", 1, "--refresh-above", 1500, env=fake.env()).ready("gpu1")
    gate = make_gate()
    takes_and_gives_back = run.run({"mib": 4000, "gate": gate.path})
    run.until(lambda: run.workers()["gpu1"]["gpuMemoryMiB"] == 4000)
    gate.open()
    pid = run.ended(takes_and_gives_back)["output"]
    assert run.runsync({})["output"] == pid
    fake.allocate(1, pid, 3000)  # by itself, while it is idle
    assert refreshed(run, "gpu1", 1)["lastRefresh"]["cause"] == "--refresh-above"
    assert run.stop() == 0


def test_a_worker_whose_gpu_was_full_is_refreshed(supervise: Runs, fake: FakeNvml) -> None:
    handler = supervise.write("fills_memory.py", FILLS_MEMORY)
    run = supervise(handler, "--gpus", 1, "--refresh-on-oom", env=fake.env()).ready("gpu1")
    assert run.runsync({"raises": "out of memory"})["workerId"] == "gpu1-1"
    assert run.runsync({"raises": "CUDA out of memory. Tried to allocate 2.00 GiB"})["status"] == "FAILED"
    assert run.runsync({})["workerId"] == "gpu1-2"
    assert run.workers()["gpu1"]["lastRefresh"]["cause"] == "a full GPU (--refresh-on-oom)"
    assert run.stop() == 0


def test_a_gpu_with_a_hardware_xid_leaves_service_until_it_has_recovered(
    supervise: Runs, fake: FakeNvml, make_gate: Callable[[], Gate]
) -> None:
    handler = supervise.write("fills_memory.py", FILLS_MEMORY)
    run = supervise(handler, "--gpus", 1, env=fake.env()).ready("gpu1")
    run.until(lambda: fake.watched(1))
    gate = make_gate()
    job = run.run({"mib": 1000, "gate": gate.path})
    gate.reached()
    fake.xid(1, 31)
    run.wait_for_line(r"^gpu1: GPU 1: Xid 31 \(GPU memory page fault\), which means the program, not the GPU$")
    fake.recovery(1, 1)  # the driver wants a reset
    fake.xid(0, 79)  # not ours
    fake.xid(1, 79)
    body = run.ended(job)
    assert body["status"] == "FAILED"
    assert "lost its GPU 1: Xid 79 (GPU has fallen off the bus)" in body["error"]
    worker = run.until(lambda: (it := run.workers()["gpu1"])["state"] == "lost" and it)
    assert worker["reason"] == "lost its GPU 1: Xid 79 (GPU has fallen off the bus)"
    assert run.get("/health")["workers"]["unhealthy"] == 1
    waits = run.run({})
    fake.recovery(1, 0)
    assert run.ended(waits)["workerId"] == "gpu1-2"
    assert run.stop() == 0


@pytest.mark.parametrize(
    ("options", "env", "seen"),
    [
        (["--gpus", "0,UUID1,GPU-00000003"], {}, {"gpu0": "0", "gpu1": "1", "gpu3": "3"}),
        (["--gpus", "1,3", "--pin-by", "uuid"], {}, {"gpu1": "UUID1", "gpu3": "UUID3"}),
        ([], {"CUDA_VISIBLE_DEVICES": "2,UUID1"}, {"gpu1": "1", "gpu2": "2"}),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, {"cpu0": ""}),
        (["--gpus", "none", "--workers", "2"], {}, {"cpu0": "", "cpu1": ""}),
    ],
)
def test_which_gpus_are_used(
    supervise: Runs, fake: FakeNvml, options: list[str], env: Mapping[str, str], seen: Mapping[str, str]
) -> None:
    def named(text: str) -> str:
        return text.replace("UUID1", fake.uuid(1)).replace("UUID3", fake.uuid(3))

    handler = supervise.write("says_what_it_sees.py", SAYS_WHAT_IT_SEES)
    env = {**fake.env(), **{name: named(value) for name, value in env.items()}}
    run = supervise(handler, *map(named, options), env=env).ready(*seen)
    assert sorted(run.workers()) == sorted(seen)
    for slot, value in seen.items():
        run.wait_for_line(rf"^{slot} │ sees '{named(value)}'$")
    assert run.stop() == 0


@pytest.mark.parametrize(
    ("gpus", "env", "names"), [("7", {}, "7"), ("0", {"CUDA_VISIBLE_DEVICES": "1"}, "CUDA_VISIBLE_DEVICES")]
)
def test_a_gpu_that_is_not_there(
    supervise: Runs, fake: FakeNvml, holder: Path, gpus: str, env: Mapping[str, str], names: str
) -> None:
    """Each way of naming one: ``tests/gpu/test_pinning.py``."""
    done = supervise.to_the_end(holder, "--gpus", gpus, env={**fake.env(), **env})
    assert done.returncode == 2, done.stderr
    assert names in done.stderr
    assert "Traceback" not in done.stderr


def test_supervisors_side_by_side(supervise: Runs, fake: FakeNvml, holder: Path, tmp_path: Path) -> None:
    env: dict[str, Any] = {"env": fake.env()}
    other = ("--store", tmp_path / "other.db")
    first = supervise(holder, "--gpus", "0,1", **env).ready("gpu0", "gpu1")

    refused = supervise.to_the_end(holder, "--gpus", 1, *other, **env)
    assert refused.returncode == 2
    assert f"GPU 1 ({fake.uuid(1)}) is held by supervise {holder} (pid {first.pid})" in refused.stderr
    refused = supervise.to_the_end(holder, "--gpus", 2, **env)
    assert refused.returncode == 2
    assert f"store.db is held by supervise {holder} (pid {first.pid})" in refused.stderr

    second = supervise(holder, *other, **env).ready("gpu2", "gpu3")
    assert sorted(second.workers()) == ["gpu2", "gpu3"]
    refused = supervise.to_the_end(holder, "--store", tmp_path / "third.db", **env)
    assert refused.returncode == 2
    assert f"pid {first.pid}" in refused.stderr
    assert f"pid {second.pid}" in refused.stderr
    assert second.stop() == 0

    sharing = supervise(holder, "--share-gpus", *other, **env).ready("gpu0", "gpu1", "gpu2", "gpu3")
    assert sharing.runsync({})["status"] == "COMPLETED"
    assert sharing.stop() == 0

    # What remains of a dead one is waited for.
    first.kill()
    again = supervise(holder, "--gpus", "0,1", **env).ready("gpu0", "gpu1")
    assert again.runsync({})["status"] == "COMPLETED"
    assert again.stop() == 0
