"""Several GPUs for one worker, and several workers on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.nvml import FakeNvml

if TYPE_CHECKING:
    from conftest import Runs

SAYS_WHAT_IT_SEES = """
import os
print("sees", os.environ["SUPERVISE_SLOT"], os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
handler = repr
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpus-per-worker", "2"], {"gpu0+1": "0,1", "gpu2+3": "2,3"}),
        (["--workers-per-gpu", "2", "--gpus", "1"], {"gpu1.0": "1", "gpu1.1": "1"}),
    ],
)
def test_slots(supervise: Runs, tmp_path: Path, options: list[str], expected: dict[str, str]) -> None:
    fake = FakeNvml(tmp_path / "nvml", gpus=4)
    run = supervise(supervise.write("sees.py", SAYS_WHAT_IT_SEES), *options, env=fake.env()).listening()
    for slot, sees in expected.items():
        run.wait_for_line(rf"sees {slot.replace('+', '[+]')} {sees}$")
    gpus = {slot: [str(gpu) for gpu in worker["gpus"]] for slot, worker in run.workers().items()}
    assert gpus == {slot: sees.split(",") for slot, sees in expected.items()}


def test_groups_that_leave_a_gpu_over_are_refused(supervise: Runs, tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path / "nvml", gpus=3)
    refused = supervise.to_the_end(
        supervise.write("sees.py", SAYS_WHAT_IT_SEES), "--gpus-per-worker", "2", env=fake.env()
    )
    assert refused.returncode == 2
    assert "--gpus-per-worker 2 does not divide 3" in refused.stderr
