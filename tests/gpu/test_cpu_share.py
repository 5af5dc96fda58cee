"""Shares of the cores: pure, over folders that stand in for ``/sys``."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.gpu import cpu_share
from supervisor.gpu.records import Gpu

EIGHT = range(8)


def gpu(index: int, pci: str | None = None) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name="a GPU", pci=pci)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Four cores with two threads each, n and n + 4; two GPUs near the first two, one near the others, one that has no place."""
    for cpu in EIGHT:
        write(tmp_path / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    for address, near in (("0000:01:00.0", "0-1,4-5"), ("0000:02:00.0", "0-1,4-5"), ("0000:81:00.0", "2-3,6-7")):
        write(tmp_path / "bus/pci/devices" / address / "local_cpulist", f"{near}\n")
    return tmp_path


def test_cores_near_the_gpu(system):
    slots = {
        "gpu0": [gpu(0, "0000:01:00.0")],
        "gpu1": [gpu(1, "0000:02:00.0")],
        "gpu2": [gpu(2, "0000:81:00.0")],
    }
    assert cpu_share.share_out(slots, EIGHT, system) == {"gpu0": (0, 4), "gpu1": (1, 5), "gpu2": (2, 3, 6, 7)}


def test_worker_on_several_gpus_may_be_near_any(system):
    slots = {"gpu0+2": [gpu(0, "0000:01:00.0"), gpu(2, "0000:81:00.0")]}
    assert cpu_share.share_out(slots, EIGHT, system) == {"gpu0+2": tuple(EIGHT)}


def test_near_cores_that_are_not_allowed_are_no_help(system):
    assert cpu_share.share_out({"gpu2": [gpu(2, "0000:81:00.0")]}, {0, 1}, system) == {"gpu2": (0, 1)}


@pytest.mark.parametrize(
    ("slots", "cpus", "shares"),
    [
        (1, EIGHT, [tuple(EIGHT)]),
        (2, EIGHT, [(0, 1, 4, 5), (2, 3, 6, 7)]),
        (3, EIGHT, [(0, 4), (1, 2, 5), (3, 6, 7)]),
        (3, {1, 2}, [(1,), (2,), (1,)]),
        (2, {3}, [(3,), (3,)]),
    ],
)
def test_even_shares_of_whole_cores(system, slots, cpus, shares):
    names = [f"cpu{number}" for number in range(slots)]
    assert cpu_share.share_out(dict.fromkeys(names, ()), cpus, system) == dict(zip(names, shares, strict=True))


def test_no_system_to_ask(tmp_path):
    slots = {"gpu0": [gpu(0, "0000:01:00.0")], "gpu1": [gpu(1)]}
    assert cpu_share.share_out(slots, EIGHT, tmp_path) == {"gpu0": (0, 1, 2, 3), "gpu1": (4, 5, 6, 7)}


@pytest.mark.parametrize(
    ("groups", "quotas", "usable"),
    [
        ("0::/a/b\n", {"a/b": "max 100000"}, 8),
        ("0::/a/b\n", {"a/b": "250000 100000", "a": "400000 100000"}, 2.5),
        ("0::/a/b\n", {"a/b": "max 100000", "a": "400000 100000"}, 4),
        ("0::/\n", {"": "50000 100000"}, 0.5),
        ("0::/\n", {}, 8),
        ("4:cpu:/x\n", {"x": "100000 100000"}, 8),
        ("4:cpu:/x\n0::/y\n", {"y": "100000 100000\n"}, 1),
        ("", {}, 8),
    ],
)
def test_quota_of_control_groups(tmp_path, groups, quotas, usable):
    for group, quota in quotas.items():
        write(tmp_path / group / "cpu.max", quota)
    assert cpu_share.usable(EIGHT, groups, tmp_path) == usable


@pytest.mark.parametrize(
    ("slots", "most", "pinned", "threads"),
    [
        (1, 8, (), None),  # it has the machine to itself
        (2, 8, (), 4),
        (3, 8, (), 2),
        (9, 8, (), 1),
        (1, 2.5, (), 2),
        (2, 2.5, (), 1),
        (2, 8, (0, 1), 2),
        (2, 2, (0, 1, 2, 3), 1),
    ],
)
def test_threads(slots, most, pinned, threads):
    assert cpu_share.threads(EIGHT, slots, pinned, most) == threads
