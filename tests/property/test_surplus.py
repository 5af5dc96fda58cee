"""Whatever NVML leaves out, what is really ours lies between the two figures of a surplus."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.gpu.records import GpuProcess, GpuSample
from supervisor.pool.release.surplus import surplus

OURS = 1
MIB = st.integers(0, 20_000)


@st.composite
def others(draw, pid: int):
    """Another's process in both samples: what it really has, and what NVML tells of it; ``None`` where it is not there."""
    had, has, visible = draw(st.none() | MIB), draw(st.none() | MIB), draw(st.booleans())
    if draw(st.booleans()):  # listed without its memory: it has what it had, or is gone
        has = draw(st.sampled_from([had, None])) if had is not None else None
        return (had, has), tuple(None if mib is None else GpuProcess(pid, visible=visible) for mib in (had, has))
    return (had, has), tuple(None if mib is None else GpuProcess(pid, mib, visible=visible) for mib in (had, has))


@st.composite
def samples(draw):
    """What was in use by nobody that is listed, ours now as it is listed or not, and the others: then and now."""
    base, leak = draw(MIB), draw(MIB)
    world = [draw(others(pid)) for pid in range(2, draw(st.integers(2, 6)))]
    listed = [[told[moment] for _, told in world if told[moment] is not None] for moment in (0, 1)]
    listing = draw(st.sampled_from(["ours", "unseen", "hidden"]))
    if listing != "hidden":
        listed[1].append(GpuProcess(OURS if listing == "ours" else 1 << 22, leak, visible=listing == "ours"))
    used = [base + sum(real[moment] or 0 for real, _ in world) for moment in (0, 1)]
    without_list = draw(st.sampled_from([None, 0, 1]))
    then, now = (
        GpuSample(
            "GPU-0",
            memory_used_mib=used[moment] + moment * leak,
            memory_total_mib=1 << 20,
            processes=None if moment == without_list else tuple(listed[moment]),
        )
        for moment in (0, 1)
    )
    return leak, now, then


@given(samples())
def test_what_is_ours_lies_between_the_two_figures(case):
    leak, now, then = case
    found = surplus(now, then, lambda process: process.pid == OURS)
    if now.processes is None or then.processes is None:  # then a list of others explains nothing that is in use
        assert found.most >= now.memory_used_mib - then.memory_used_mib
    else:
        assert found.least <= leak <= found.most
