"""Whose a listed process is, where NVML's numbers may not be pids of this namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.gpu import attribution
from supervisor.gpu.attribution import Attribution, exists, in_host_pid_namespace
from supervisor.gpu.records import GpuProcess, GpuSample, WorkerRef
from tests.fakes.nvml import NO_PID_HERE

GRANDCHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], start_new_session=True)
print(child.pid, flush=True)
"""
ROOT = Path(__file__).parents[2]
US = os.getpid()
PARENT = os.getppid()


def sample(*processes: GpuProcess | int, gpu: str = "GPU-0") -> GpuSample:
    listed = tuple(GpuProcess(one, 100) if isinstance(one, int) else one for one in processes)
    return GpuSample(gpu, memory_used_mib=1000, memory_total_mib=24576, processes=listed)


class Container:
    """NVML's lists as a reader in a container attributes them; a worker runs in ``gpu0``."""

    def __init__(self, worker: int) -> None:
        self._attribution = Attribution(on_host=False)
        self._workers = {"gpu0": WorkerRef(worker)}

    def seen(self, *samples: GpuSample) -> list[tuple[int, str | None, bool]]:
        """Number, slot and visibility of each listed process."""
        attributed = self._attribution.attribute(samples, self._workers)
        return [(one.pid, one.slot, one.visible) for gpu in attributed for one in gpu.processes or ()]


@pytest.fixture
def worker(child) -> int:
    return child("").pid


@pytest.fixture
def container(worker) -> Container:
    return Container(worker)


def test_on_the_host_a_number_is_a_pid(worker):
    given = [sample(worker, US, NO_PID_HERE), GpuSample("GPU-1", error="Unknown Error")]
    ours, stranger, unseen = Attribution(on_host=True).attribute(given, {"gpu0": WorkerRef(worker)})[0].processes
    assert (ours.slot, ours.visible, bool(ours.name)) == ("gpu0", True, True)
    assert (stranger.slot, stranger.visible, stranger.name) == (None, True, Path("/proc/self/comm").read_text().strip())
    assert unseen == GpuProcess(NO_PID_HERE, 100, visible=False)


def test_what_nvml_does_not_list_stays_unknown():
    gpus = [GpuSample("GPU-0", memory_used_mib=9), GpuSample("GPU-1", error="Unknown Error")]
    assert Attribution(on_host=False).attribute(gpus, {}) == gpus


def test_in_a_container_a_number_that_nobody_has_makes_all_of_them_mean_nothing(container, worker):
    assert container.seen(sample(worker, US)) == [(worker, "gpu0", True), (US, None, True)]
    foreign = sample(NO_PID_HERE, gpu="GPU-1")
    unknown = [(worker, None, False), (US, None, False), (NO_PID_HERE, None, False)]
    assert container.seen(sample(worker, US), foreign) == unknown
    (named, *_) = Attribution(on_host=False).attribute([sample(US), foreign], {})
    assert named.processes == (GpuProcess(US, 100, visible=False),)
    assert container.seen(sample(worker, US)) == [(worker, "gpu0", True), (US, None, True)]


def test_in_a_container_a_process_of_that_number_may_be_another_until_a_worker_was_listed(container, worker):
    assert container.seen(sample(US)) == [(US, None, False)]
    assert container.seen(sample(US, GpuProcess(worker))) == [(US, None, False), (worker, "gpu0", True)]  # no memory
    assert container.seen(sample(US, worker)) == [(US, None, True), (worker, "gpu0", True)]
    assert container.seen(sample(US)) == [(US, None, True)]


@pytest.mark.parametrize("on_host", [True, False])
def test_in_a_container_a_worker_on_a_gpu_that_is_not_its_own_is_another_process(worker, on_host):
    """Its number is the host's pid of a process of ours, maybe, on the GPU of that one."""
    attribution = Attribution(on_host=on_host)
    workers = {"gpu1": WorkerRef(worker, ("GPU-1",))}

    def seen(gpu):
        (one,) = attribution.attribute([sample(worker, gpu=gpu)], workers)[0].processes
        return one.slot, one.visible

    assert seen("GPU-0") == (("gpu1", True) if on_host else (None, False))
    assert seen("GPU-1") == ("gpu1", True)


def test_in_a_container_one_that_died_is_no_sign_of_other_numbers(container, worker, child):
    died = child("")
    assert container.seen(sample(worker, died.pid))[1] == (died.pid, None, True)
    died.kill()
    assert container.seen(sample(worker, died.pid)) == [(worker, "gpu0", True), (died.pid, None, False)]
    assert container.seen(sample(worker)) == [(worker, "gpu0", True)]
    assert container.seen(sample(worker, died.pid)) == [(worker, None, False), (died.pid, None, False)]  # forgotten


def test_in_a_container_a_dead_worker_is_known_by_its_pid(child):
    worker = child("")
    container = Container(worker.pid)
    worker.kill()
    assert container.seen(sample(worker.pid)) == [(worker.pid, "gpu0", True)]


def test_a_descendant_is_its_workers(child):
    worker = child(GRANDCHILD)
    grandchild = int(worker.line())
    assert Container(worker.pid).seen(sample(grandchild)) == [(grandchild, "gpu0", True)]


def test_one_whose_ancestors_are_not_all_seen_may_be_anybodys(monkeypatch):
    real = attribution.parent_of
    monkeypatch.setattr(attribution, "parent_of", lambda pid: None if pid == PARENT else real(pid))
    seen = Attribution(on_host=True).attribute([sample(US)], {})[0].processes
    assert [(one.slot, one.visible) for one in seen] == [(None, False)]


def test_which_processes_exist(child):
    died = child("")
    died.kill()
    assert [exists(pid) for pid in (US, 1, died.pid, 0, -1, NO_PID_HERE, (1 << 32) - 1)] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("inode", "second", "expected"),
    [
        (0xEFFFFFFC, "kthreadd", True),
        (0xEFFFFFFC, None, True),  # hidden (hidepid), and it exists
        (0xEFFFFFFC, "bash", False),  # a sandbox that imitates Linux
        (0xEFFFFFFC, "nobody", False),
        (4026532178, "kthreadd", False),
        (None, "kthreadd", True),  # a kernel without namespaces
        (None, "nobody", False),  # no /proc
    ],
)
def test_the_hosts_pid_namespace(monkeypatch, inode, second, expected):
    def stat(path):
        if inode is None:
            raise FileNotFoundError(path)
        return os.stat_result([0, inode, *[0] * 8])

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(attribution, "name_of", lambda pid: None if second == "nobody" else second)
    monkeypatch.setattr(attribution, "exists", lambda pid: second != "nobody")
    assert in_host_pid_namespace() is expected


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0
    except FileNotFoundError:
        return False


OWN_PIDS = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c")


@pytest.mark.skipif(not works(*OWN_PIDS, ""), reason="this user may make no PID namespace")
def test_a_namespace_of_its_own_is_not_the_hosts():
    code = "from supervisor.gpu.attribution import in_host_pid_namespace as it; print(it())"
    done = subprocess.run([*OWN_PIDS, code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def hidden(how: int, code: str) -> list[str]:
    """Run ``code`` as nobody, where ``/proc`` hides the processes of others."""
    nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --"
    shell = f'mount -t proc -o hidepid={how} proc /proc && exec {nobody} "$@"'
    return ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", code]


@pytest.mark.skipif(not works(*hidden(1, "import supervisor.gpu.attribution")), reason="only root may hide processes")
@pytest.mark.parametrize("how", [1, 2])
def test_a_process_that_is_hidden_is_unknown(how):
    code = f"""
from supervisor.gpu.attribution import Attribution, in_host_pid_namespace
from supervisor.gpu.records import GpuProcess, GpuSample
print(in_host_pid_namespace(), *Attribution(on_host=True).attribute([GpuSample("", processes=(GpuProcess({US}),))], {{}}))
"""
    done = subprocess.run(hidden(how, code), capture_output=True, text=True, cwd=ROOT)
    expected = GpuSample("", processes=(GpuProcess(US, visible=False),))
    assert done.stdout == f"{in_host_pid_namespace()} {expected}\n", done.stderr
