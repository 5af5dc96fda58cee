"""When a slot has lost a GPU, and when it has it back."""

from __future__ import annotations

import pytest

from supervisor.cause import GpusLost, LostGpu
from supervisor.gpu.records import Gpu, GpuSample, Reading, Xid
from supervisor.notice import ProgramXid
from supervisor.pool.interfaces import Place
from supervisor.pool.release.faults import BACK_S, LONGEST_BACK_S, Faults
from supervisor.pool.slots import steps

GPUS = [Gpu(index, f"GPU-{index}", "played") for index in range(2)]


def lost(*gpus):
    """GPUs of these indices, each with its Xid or what NVML says."""
    described = [LostGpu(gpu, by) if isinstance(by, int) else LostGpu(gpu, error=by) for gpu, by in gpus]
    return steps.GpuLost(GpusLost(tuple(described)))


LOST = lost((0, 79))


def faults(*groups):
    """Of slots with these GPUs."""
    return Faults([Place(f"slot{i}", i, tuple(GPUS[gpu] for gpu in group), {}) for i, group in enumerate(groups)])


def reading(at, **errors):
    """Every GPU answers, or says ``gpu0="…"``; in capitals: that it is lost."""
    samples = []
    for index, gpu in enumerate(GPUS):
        error = errors.get(f"gpu{index}")
        samples.append(
            GpuSample(gpu.uuid, memory_used_mib=None if error else 0, error=error, lost=bool(error and error.isupper()))
        )
    return Reading(0, at, tuple(samples))


@pytest.mark.parametrize("code", [13, 31, 43, 45, 68, 109])
def test_an_error_of_the_program_is_said_and_changes_nothing(code):
    judge = faults([0], [0])
    assert judge.xid(Xid("GPU-0", code, 1.0)) == [("slot0", steps.Remarked(ProgramXid("slot0", 0, code)))]
    assert judge.read(reading(2.0)) == []


def test_an_error_of_the_gpu_loses_it_for_every_slot_once():
    judge = faults([0], [0], [1])
    assert judge.xid(Xid("GPU-0", 79, 1.0)) == [("slot0", LOST), ("slot1", LOST)]
    assert judge.xid(Xid("GPU-0", 48, 1.1)) == []
    assert judge.xid(Xid("GPU-9", 79, 1.2)) == []  # nobody's
    assert judge.xid(Xid("GPU-1", 777, 1.3)) == [("slot2", lost((1, 777)))]


def test_it_is_back_when_nvml_has_answered_for_a_while():
    judge = faults([0, 1])
    judge.xid(Xid("GPU-0", 79, 10.0))
    assert judge.read(reading(9.9)) == []  # begun before it
    assert judge.read(reading(10.0 + BACK_S)) == []
    assert judge.read(reading(11.0 + BACK_S, gpu0="Unknown Error")) == []
    assert judge.read(reading(12.0 + BACK_S)) == []
    assert judge.read(reading(12.0 + 2 * BACK_S, gpu1="Unknown Error")) == [("slot0", steps.GpuBack())]
    assert judge.read(reading(13.0 + 2 * BACK_S)) == []


def test_not_while_nvml_says_that_it_is_lost():
    judge = faults([0])
    judge.xid(Xid("GPU-0", 48, 10.0))
    for second in range(100):
        assert judge.read(reading(11.0 + second, gpu0="RESET REQUIRED")) == []
    assert judge.read(reading(200.0)) == []
    assert judge.read(reading(200.0 + BACK_S)) == [("slot0", steps.GpuBack())]


def test_lost_by_nvmls_word_alone_it_is_back_at_once():
    judge = faults([0])
    assert judge.read(reading(1.0, gpu0="LOST")) == [("slot0", lost((0, "LOST")))]
    assert judge.read(reading(2.0)) == [("slot0", steps.GpuBack())]


def test_a_slot_is_back_with_the_last_of_its_gpus():
    judge = faults([0, 1])
    assert judge.read(reading(1.0, gpu0="LOST", gpu1="GONE")) == [("slot0", lost((0, "LOST"), (1, "GONE")))]
    assert judge.read(reading(2.0, gpu1="GONE")) == []
    assert judge.read(reading(3.0)) == [("slot0", steps.GpuBack())]


def test_one_that_fails_again_and_again_is_trusted_later_and_later():
    judge, now, pauses = faults([0]), 0.0, []
    for _ in range(9):
        judge.xid(Xid("GPU-0", 79, now))
        failed, back = now, []
        while not back:
            back = judge.read(reading(now))
            now += 1.0
        pauses.append(now - 1.0 - failed)
    assert pauses == [min(BACK_S * 2**n, LONGEST_BACK_S) for n in range(9)]
    now += 10 * LONGEST_BACK_S
    assert judge.xid(Xid("GPU-0", 79, now)) != []
    assert judge.read(reading(now)) == []
    assert judge.read(reading(now + BACK_S)) == [("slot0", steps.GpuBack())]
