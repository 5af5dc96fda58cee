from __future__ import annotations

import pytest

from supervisor.errors import GpuError
from supervisor.gpu.pinning import environment, plan_slots, select
from supervisor.gpu.records import Gpu

A, B, C = (Gpu(i, uuid, "NVIDIA L4") for i, uuid in enumerate(["GPU-aa11", "GPU-aa22", "GPU-bb33"]))
M0, M1 = (Gpu(1, f"MIG-{i}f", "NVIDIA H100 MIG 3g.40gb", mig=i, parent="GPU-cc44") for i in (0, 1))
S0, S1 = (Gpu(i, f"SIM-{i}", "Simulated GPU", simulated=True) for i in (0, 1))
ABC = [A, B, C]


@pytest.mark.parametrize(
    ("spec", "gpus", "visible", "expected"),
    [
        ("auto", ABC, None, ABC),
        ("auto", [], None, []),
        ("none", ABC, None, []),
        ("all", ABC, None, ABC),
        ("0,2", ABC, None, [A, C]),
        ("2, 0", ABC, None, [C, A]),
        ("0,GPU-aa11,0", ABC, None, [A]),
        ("GPU-b", ABC, None, [C]),
        ("gpu-AA2", ABC, None, [B]),
        ("MIG-1f", [A, M0, M1], None, [M1]),
        ("1", [A, M0, M1], None, [M0, M1]),
        ("GPU-cc44", [A, M0, M1], None, [M0, M1]),
        # The parent's own CUDA_VISIBLE_DEVICES
        ("auto", ABC, "2,0", [A, C]),
        ("auto", ABC, "GPU-aa22", [B]),
        ("auto", ABC, "GPU-b,0", [A, C]),
        ("auto", ABC, "", []),
        ("auto", ABC, "-1", []),
        ("auto", ABC, "NoDevFiles", []),
        ("auto", ABC, "1,-1,2", [B]),
        ("auto", ABC, "1,7,2", [B]),
        ("auto", ABC, "0,GPU-a,2", [A]),
        ("auto", ABC, " 1 , 2 ", [B, C]),
        ("auto", [M0, M1], "MIG-1f", [M1]),
        ("all", ABC, "1", [B]),
        ("2", ABC, "2,1", [C]),
        ("auto", [S0, S1], "1", [S1]),
        ("auto", [S0, S1], "", [S0, S1]),
        ("auto", [S0, S1], "-1", [S0, S1]),
    ],
)
def test_select(spec, gpus, visible, expected):
    assert select(spec, gpus, visible) == expected


@pytest.mark.parametrize(
    ("spec", "gpus", "visible", "words"),
    [
        ("5", ABC, None, ["GPU 5 does not exist", "0 (NVIDIA L4, GPU-aa11)", "2 (NVIDIA L4, GPU-bb33)"]),
        ("GPU-aa", ABC, None, ["GPU-aa means more than one"]),
        ("MIG-", [M0, M1], None, ["MIG- means more than one", "1 MIG 0"]),
        ("0", ABC, "2", ["GPU 0 is hidden", "CUDA_VISIBLE_DEVICES=2 leaves 2 (NVIDIA L4, GPU-bb33)"]),
        ("all", ABC, "", ["CUDA_VISIBLE_DEVICES= hides all", "--gpus none"]),
        ("all", [], None, ["shows no GPU", "--gpus none"]),
        ("0", [], None, ["GPU 0 does not exist", "shows no GPU"]),
        ("0,,1", ABC, None, ["is not a list"]),
        ("", ABC, None, ["is not a list"]),
        ("first", ABC, None, ["first does not exist"]),
        ("GPU-ffff", ABC, None, ["GPU-ffff does not exist"]),
        ("all", ABC, "9", ["CUDA_VISIBLE_DEVICES=9 hides all"]),
        ("-1", ABC, None, ["-1 does not exist"]),
    ],
)
def test_select_refuses(spec, gpus, visible, words):
    with pytest.raises(GpuError) as caught:
        select(spec, gpus, visible)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("spec", "gpus", "reason", "words"),
    [
        (
            "0",
            [],
            "the NVIDIA driver is not loaded",
            "GPU 0 does not exist; this machine shows no GPU (the NVIDIA driver is not",
        ),
        ("all", [], "the NVIDIA driver is not loaded", "shows no GPU (the NVIDIA driver is not loaded); --gpus none"),
        ("3", ABC, "GPU 3 cannot be read: GPU is lost", "GPU-bb33); GPU 3 cannot be read: GPU is lost"),
        ("all", ABC, "GPU 3 cannot be read: GPU is lost", "GPU 3 cannot be read: GPU is lost; --gpus auto"),
    ],
)
def test_a_refusal_says_why_one_is_missing(spec, gpus, reason, words):
    with pytest.raises(GpuError) as caught:
        select(spec, gpus, None, reason)
    assert words in str(caught.value)


@pytest.mark.parametrize(("spec", "visible"), [("auto", None), ("2,0", None), ("all", "0,2")])
def test_one_that_cannot_be_read_does_not_stop_who_does_not_ask_for_it(spec, visible):
    assert {A, C} <= set(select(spec, ABC, visible, "GPU 3 cannot be read: GPU is lost"))


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        (ABC, {}, {"gpu0": [A], "gpu1": [B], "gpu2": [C]}),
        ([C, A], {"workers": 5}, {"gpu2": [C], "gpu0": [A]}),
        ([M0, M1], {}, {"gpu1m0": [M0], "gpu1m1": [M1]}),
        ([], {}, {"cpu0": []}),
        ([], {"workers": 3}, {"cpu0": [], "cpu1": [], "cpu2": []}),
        ([B, C], {"gpus_per_worker": 2}, {"gpu1+2": [B, C]}),
        ([A, B], {"workers_per_gpu": 2}, {"gpu0.0": [A], "gpu0.1": [A], "gpu1.0": [B], "gpu1.1": [B]}),
        ([A, B], {"gpus_per_worker": 2, "workers_per_gpu": 2}, {"gpu0+1.0": [A, B], "gpu0+1.1": [A, B]}),
    ],
)
def test_plan_slots(gpus, options, expected):
    plans = plan_slots(gpus, **options)
    assert {plan.name: list(plan.gpus) for plan in plans} == expected
    assert [plan.name for plan in plans] == list(expected)
    assert [plan.index for plan in plans] == list(range(len(plans)))


@pytest.mark.parametrize(("gpus", "words"), [(ABC, "1 would be left over"), ([M0, M1], "one MIG instance only")])
def test_plan_slots_refuses(gpus, words):
    with pytest.raises(GpuError, match=words):
        plan_slots(gpus, gpus_per_worker=2)


@pytest.mark.parametrize(
    ("gpus", "pin_by", "expected"),
    [
        ([B], "index", "1"),
        ([B], "uuid", "GPU-aa22"),
        ([B, C], "index", "1,2"),
        ([M1], "index", "MIG-1f"),
        ([S1], "index", "1"),
        ([S1], "uuid", "1"),
        ([], "index", ""),
    ],
)
def test_environment(gpus, pin_by, expected):
    assert environment(gpus, pin_by) == {"CUDA_VISIBLE_DEVICES": expected, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
