from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config.resolve import make_settings
from supervisor.gpu import locks
from supervisor.gpu.claim import claim_gpus
from supervisor.gpu.records import Gpu, Listing

NO_DRIVER = "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)"


@pytest.mark.parametrize(
    ("listing", "visible", "said"),
    [
        (Listing(reason=NO_DRIVER), None, f"no GPU on this machine, serving on 1 CPU slot: {NO_DRIVER}"),
        (Listing(), None, "no GPU on this machine, serving on 1 CPU slot: NVML shows none"),
        (
            Listing((Gpu(0, "GPU-aa11", "NVIDIA L4"),)),
            "",
            "CUDA_VISIBLE_DEVICES= hides every GPU of this machine: serving on 1 CPU slot",
        ),
    ],
)
def test_where_there_is_no_gpu_the_cpu_serves_and_a_narrow_screen_shows_it(
    tmp_path: Path, listing: Listing, visible: str | None, said: str
) -> None:
    settings = make_settings("json.tool", lock_dir=tmp_path)
    notes: list[str] = []
    assert claim_gpus(settings, listing, visible, locks.this_process("run", "json.tool"), notes.append) == ([], [])
    assert notes == [said]
