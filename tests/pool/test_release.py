"""Is the memory free? One table: what was in use before, while the worker lived, and after it died."""

from __future__ import annotations

import pytest

from supervisor.gpu.records import Gpu, GpuProcess, GpuSample, Reading
from supervisor.pool.release import Release, Verdict, attributes_memory

GPU, OTHER = Gpu(0, "GPU-a", "NVIDIA L4"), Gpu(1, "GPU-b", "NVIDIA L4")
TIMEOUT = 30.0
DIED = 100.0
WAIT, FREE, HELD, UNVERIFIED = Verdict


def us(mib, pid=10):
    return GpuProcess(pid, mib, "python", "gpu0")


def sibling(mib, pid=20):
    return GpuProcess(pid, mib, "python", "gpu0.1")


def stranger(mib, pid=30):
    return GpuProcess(pid, mib, "train")


def dead(mib, pid=10):
    """Ours, listed after its death: nobody can tell the slot any more."""
    return GpuProcess(pid, mib)


def reading(at, *samples):
    return Reading(0, at, samples)


def sample(used, *processes, gpu=GPU):
    listed = None if processes == (None,) else processes
    return GpuSample(gpu.uuid, memory_used_mib=used, memory_total_mib=24576, processes=listed)


def unreadable(lost=False):
    return GpuSample(GPU.uuid, error="Unknown Error", lost=lost)


def judge(before, living, after, *, attributes=False, times=None):
    """The judgements of the samples in ``after``, taken at the death, 1 s and 31 s later (the last one, again and again)."""
    release = Release("gpu0", [GPU], reading(1.0, before) if before else None, attributes=attributes, timeout=TIMEOUT)
    for seen in living:
        release.living(reading(50.0, seen))
    release.died(DIED)
    times = times or [DIED, DIED + 1.0, DIED + 31.0]
    after = [*after, *[after[-1]] * (len(times) - len(after))]
    return [release.observe(reading(now, seen) if seen else None, now) for now, seen in zip(times, after, strict=True)]


EMPTY = sample(0)
LIVING = [sample(2000, us(2000))]

CASES = {
    # name: before, while it lived, after its death, NVML attributes, verdicts
    "freed at once": (EMPTY, LIVING, [EMPTY], False, [FREE]),
    "never used": (sample(500), [sample(500)], [sample(500)], False, [FREE]),
    "freed a little later": (EMPTY, LIVING, [sample(2000), sample(0)], False, [WAIT, FREE]),
    "the tolerance is 64 MiB": (EMPTY, LIVING, [sample(65), sample(64)], False, [WAIT, FREE]),
    "held by nobody listed": (EMPTY, LIVING, [sample(2000)], False, [WAIT, WAIT, HELD]),
    "held by a process still listed": (EMPTY, LIVING, [sample(2000, dead(2000))], False, [WAIT, WAIT, HELD]),
    "held in part": (EMPTY, LIVING, [sample(300)], False, [WAIT, WAIT, HELD]),
    "less than before": (sample(9000), [sample(11000, us(2000))], [sample(8000)], False, [FREE]),
    # the list of processes
    "no list at all": (sample(0, None), [sample(2000, None)], [sample(2000, None)], True, [WAIT, WAIT, UNVERIFIED]),
    "no list, but free": (sample(0, None), [sample(2000, None)], [sample(0, None)], False, [FREE]),
    "an empty list, as in a container": (EMPTY, [sample(2000)], [sample(2000)], False, [WAIT, WAIT, UNVERIFIED]),
    "not listed though others were": (EMPTY, [sample(2000)], [sample(2000)], True, [WAIT, WAIT, UNVERIFIED]),
    "listed with 0 MiB": (EMPTY, [sample(2000, us(0))], [sample(2000)], False, [WAIT, WAIT, UNVERIFIED]),
    "listed without memory": (EMPTY, [sample(2000, us(None))], [sample(2000)], False, [WAIT, WAIT, UNVERIFIED]),
    "a stranger without memory": (EMPTY, LIVING, [sample(2000, stranger(None))], False, [WAIT, WAIT, UNVERIFIED]),
    "took it after the last sample": (EMPTY, [EMPTY], [sample(2000)], True, [WAIT, WAIT, HELD]),
    "took it after the last sample, in a container": (EMPTY, [EMPTY], [sample(2000)], False, [WAIT, WAIT, UNVERIFIED]),
    "died before any sample": (EMPTY, [], [sample(2000)], True, [WAIT, WAIT, HELD]),
    "died before any sample, in a container": (EMPTY, [], [sample(2000)], False, [WAIT, WAIT, UNVERIFIED]),
    "listed once, not at the end": (EMPTY, [*LIVING, sample(2000)], [sample(2000)], False, [WAIT, WAIT, HELD]),
    # others on the same GPU
    "a stranger grew": (
        sample(500, stranger(500)),
        [sample(2500, us(2000), stranger(500))],
        [sample(3000, stranger(3000))],
        False,
        [FREE],
    ),
    "a stranger came and ours is held": (
        EMPTY,
        LIVING,
        [sample(5000, stranger(3000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "a stranger left and ours is held": (
        sample(3000, stranger(3000)),
        [sample(5000, us(2000), stranger(3000))],
        [sample(2000)],
        False,
        [WAIT, WAIT, HELD],
    ),
    "a sibling started": (EMPTY, LIVING, [sample(4000, sibling(4000))], False, [FREE]),
    "a sibling is replaced": (
        sample(1000, sibling(1000)),
        [sample(3000, us(2000), sibling(1000))],
        [sample(1000, sibling(1000, pid=21))],
        False,
        [FREE],
    ),
    "a sibling's memory lingers": (
        sample(1000, sibling(1000)),
        [sample(3000, us(2000), sibling(1000))],
        [sample(1000), sample(0)],
        False,
        [WAIT, FREE],
    ),
    "an unlisted stranger grew while ours lived": (
        EMPTY,
        [sample(6000, us(2000))],
        [sample(4000)],
        False,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "an unlisted stranger grew, and ours is held": (
        EMPTY,
        [sample(6000, us(2000))],
        [sample(6000)],
        False,
        [WAIT, WAIT, HELD],
    ),
    "the slot's last worker was listed still": (
        sample(800, us(800, pid=9)),
        [sample(2800, us(2000), us(800, pid=9))],
        [sample(2000)],
        False,
        [WAIT, WAIT, HELD],
    ),
    # what cannot be read
    "no baseline, freed": (None, LIVING, [sample(2000), sample(0)], False, [WAIT, FREE]),
    "no baseline, held": (None, LIVING, [sample(2000)], False, [WAIT, WAIT, HELD]),
    "no baseline and not listed": (None, [sample(2000)], [sample(0)], True, [WAIT, WAIT, UNVERIFIED]),
    "an unreadable baseline": (unreadable(), LIVING, [sample(0)], False, [FREE]),
    "unreadable after": (EMPTY, LIVING, [unreadable()], True, [WAIT, WAIT, UNVERIFIED]),
    "lost after": (EMPTY, LIVING, [unreadable(lost=True)], True, [WAIT, WAIT, UNVERIFIED]),
    "the reader is gone": (EMPTY, LIVING, [None], True, [WAIT, WAIT, UNVERIFIED]),
    "not this GPU": (EMPTY, LIVING, [sample(0, gpu=OTHER)], True, [WAIT, WAIT, UNVERIFIED]),
    "a GPU without memory of its own": (sample(None), [sample(None)], [sample(None)], True, [WAIT, WAIT, UNVERIFIED]),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name):
    before, living, after, attributes, expected = CASES[name]
    verdicts = [judgement.verdict for judgement in judge(before, living, after, attributes=attributes)]
    assert verdicts[: len(expected)] == expected


def test_freed_and_held_and_by_whom():
    free = judge(sample(500), [sample(2500, us(2000))], [sample(510)])[0]
    assert (free.freed_mib, free.held_mib, free.by, free.reason) == (1990, 0, (), "")
    held = judge(sample(500), [sample(2500, us(2000))], [sample(800, dead(300))])[-1]
    assert (held.freed_mib, held.held_mib, [process.pid for process in held.by]) == (1700, 300, [10])
    assert held.reason == "300 MiB still in use by pid 10 (unknown)"
    nobody = judge(EMPTY, LIVING, [sample(2000)])[-1]
    assert (nobody.freed_mib, nobody.held_mib) == (0, 2000)
    assert nobody.reason == "2000 MiB still in use by no process that NVML lists"


def test_freed_counts_what_no_sample_of_the_living_showed():
    assert judge(EMPTY, [EMPTY], [sample(1500), sample(0)])[1].freed_mib == 1500


def test_freed_is_unknown_without_a_reading():
    last = judge(None, [], [sample(0)])[-1]
    assert (last.verdict, last.freed_mib) == (UNVERIFIED, None)
    assert last.reason == "NVML gave no reading from before the worker came"


@pytest.mark.parametrize(
    ("living", "measured", "freed"),
    [
        ([], False, None),  # the reader hung before it read the worker
        ([EMPTY], False, None),  # and before it measured it: a job may have come since
        ([EMPTY], True, 0),
        ([sample(2000, us(2000))], False, 2000),
        ([sample(2000, us(2000)), EMPTY], True, 0),  # it gave back itself what it held
    ],
)
def test_that_nothing_was_freed_is_known_of_a_measured_worker_only(living, measured, freed):
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=True, timeout=TIMEOUT)
    for number, seen in enumerate(living, start=1):
        release.living(reading(50.0, seen), measured=measured and number == len(living))
    release.died(DIED)
    judged = release.observe(reading(DIED, EMPTY), DIED)
    assert (judged.verdict, judged.freed_mib) == (FREE, freed)


def test_an_earlier_measurement_says_nothing_once_another_was_asked_for():
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=True, timeout=TIMEOUT)
    release.living(reading(50.0, EMPTY), measured=True)
    release.measure()
    release.died(DIED)
    assert release.observe(reading(DIED, EMPTY), DIED).freed_mib is None


HOLDS = {
    # name: before, now, NVML attributes, alone, MiB
    "listed": (sample(500), sample(2500, us(2000)), False, False, 2000),
    "two of its processes": (EMPTY, sample(3000, us(2000), us(900, pid=11)), False, False, 2900),
    "listed, and not those of others": (
        EMPTY,
        sample(9000, us(2000), sibling(4000), stranger(3000)),
        True,
        False,
        2000,
    ),
    "listed, no baseline": (None, sample(2000, us(2000)), False, False, 2000),
    "not listed where others are": (EMPTY, sample(4000, sibling(4000)), True, False, 0),
    "hidden": (sample(500), sample(2500), False, True, 2000),
    "hidden, beside a sibling": (sample(500), sample(2500), False, False, None),
    "hidden, next to nothing": (sample(500), sample(540), False, False, 0),
    "hidden, no baseline": (None, sample(2500), False, True, None),
    "listed with 0 MiB": (EMPTY, sample(2000, us(0)), False, True, 2000),
    "listed without memory": (EMPTY, sample(2000, us(None)), False, True, 2000),
    "a stranger without memory": (EMPTY, sample(2000, us(None), stranger(None)), False, True, None),
    "a listed stranger came": (EMPTY, sample(5000, us(None), stranger(3000)), False, True, 2000),
    "no list": (sample(0, None), sample(2000, None), False, True, 2000),
    "unreadable": (EMPTY, unreadable(), False, True, None),
}


@pytest.mark.parametrize("name", HOLDS)
def test_what_a_living_worker_holds(name):
    before, now, attributes, alone, expected = HOLDS[name]
    release = Release("gpu0", [GPU], reading(1.0, before) if before else None, attributes=False, timeout=TIMEOUT)
    assert release.holds(reading(50.0, now), alone=alone, attributes=attributes) == expected


def test_what_a_worker_holds_on_several_gpus_is_added_and_unknown_with_one_of_them():
    release = Release("gpu0+1", [GPU, OTHER], None, attributes=False, timeout=TIMEOUT)
    ours = GpuProcess(10, 2000, "python", "gpu0+1")
    both = reading(50.0, sample(2000, ours), sample(900, GpuProcess(10, 900, "python", "gpu0+1"), gpu=OTHER))
    assert release.holds(both, alone=True, attributes=True) == 2900
    assert release.holds(reading(50.0, sample(2000, ours)), alone=True, attributes=True) is None


def test_time_starts_anew_while_memory_falls():
    after = [sample(mib) for mib in (20000, 15000, 10000, 9950, 9900)]
    times = [DIED, DIED + 25, DIED + 50, DIED + 75, DIED + 81]
    verdicts = [judgement.verdict for judgement in judge(EMPTY, LIVING, after, times=times)]
    assert verdicts == [WAIT, WAIT, WAIT, WAIT, WAIT]  # 9900 is 100 less than 10000
    after[-1] = sample(9940)
    verdicts = [judgement.verdict for judgement in judge(EMPTY, LIVING, after, times=times)]
    assert verdicts == [WAIT, WAIT, WAIT, WAIT, HELD]


def test_time_alone_passes_judgement():
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=False, timeout=TIMEOUT)
    release.living(reading(50.0, *LIVING))
    release.died(DIED)
    assert release.observe(reading(DIED, sample(2000)), DIED).verdict is WAIT
    assert release.deadline() == DIED + TIMEOUT
    assert release.observe(None, DIED + TIMEOUT - 0.1).verdict is WAIT
    assert release.observe(None, DIED + TIMEOUT).verdict is HELD
    assert release.deadline() is None


def test_what_is_held_is_watched_until_it_clears():
    times = [DIED, DIED + 31, DIED + 60, DIED + 90, DIED + 300]
    judgements = judge(EMPTY, LIVING, [sample(2000), sample(2000), sample(900), unreadable(), sample(10)], times=times)
    assert [judgement.verdict for judgement in judgements] == [WAIT, HELD, HELD, HELD, FREE]
    assert [judgement.held_mib for judgement in judgements] == [0, 2000, 900, 900, 0]
    assert judgements[-1].freed_mib == 1990


def test_a_reading_begun_before_the_death_does_not_count():
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=False, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(reading(DIED - 0.001, EMPTY), DIED).verdict is WAIT
    assert release.observe(reading(DIED, EMPTY), DIED).verdict is FREE


def test_every_gpu_of_the_slot_must_be_free():
    def both(at, first, second):
        return reading(at, sample(first), sample(second, gpu=OTHER))

    release = Release("gpu0+1", [GPU, OTHER], both(1.0, 0, 0), attributes=True, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(both(DIED, 0, 3000), DIED).verdict is WAIT
    held = release.observe(
        both(DIED + 31, 5000, 3000), DIED + 31
    )  # the first one was free: what came since is not ours
    assert (held.verdict, held.held_mib) == (HELD, 3000)
    assert "gpu1" in held.reason
    assert "gpu0" not in held.reason
    assert release.observe(both(DIED + 32, 5000, 0), DIED + 32).verdict is FREE


def test_no_gpu_is_free():
    release = Release("cpu0", [], None, attributes=False, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(None, DIED).verdict is FREE


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ((us(100),), True),
        ((us(0),), False),
        ((us(None),), False),
        ((stranger(100),), False),
        ((None,), False),
        ((), False),
    ],
)
def test_nvml_attributes_memory_once_it_lists_one_of_ours(processes, expected):
    assert attributes_memory(reading(1.0, sample(500, *processes))) is expected
