"""Is the memory free? One table: what was in use before, while the worker lived, and after it died."""

from __future__ import annotations

import pytest

from supervisor.cause import HeldGpu, MemoryHolder, Unknown, UnknownGpu
from supervisor.gpu.records import Gpu, GpuProcess, GpuSample, Reading
from supervisor.pool.release.verdict import Release, Verdict, attributes_memory
from supervisor.protocol import wording

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


def unseen(mib, pid=4190000):
    """Named by NVML and not seen in this PID namespace: anybody's."""
    return GpuProcess(pid, mib, visible=False)


def dead(mib, pid=10):
    """Ours, listed after its death: nobody can tell the slot any more."""
    return GpuProcess(pid, mib)


def reading(at, *samples):
    return Reading(0, at, samples)


def sample(used, *processes, gpu=GPU, total=24576):
    listed = None if processes == (None,) else processes
    return GpuSample(gpu.uuid, memory_used_mib=used, memory_total_mib=total, processes=listed)


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
    # numbers that are no pids here: it may be ours that they name
    "listed as unseen, and freed": (EMPTY, [sample(500, unseen(500))], [EMPTY], False, [FREE]),
    "listed as unseen, and held": (
        EMPTY,
        [sample(500, unseen(500))],
        [sample(500, unseen(500))],
        False,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "listed as unseen, and held, where workers have been listed": (
        EMPTY,
        [sample(500, unseen(500))],
        [sample(500, unseen(500))],
        True,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "listed as unseen after its death only": (
        EMPTY,
        [EMPTY],
        [sample(500, unseen(500))],
        True,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "listed as unseen, without memory": (
        EMPTY,
        [sample(500, unseen(None))],
        [sample(500, unseen(None))],
        True,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "an unseen one was there before": (
        sample(3000, unseen(3000)),
        [sample(5000, us(2000), unseen(3000))],
        [sample(5000, unseen(3000)), sample(3000, unseen(3000))],
        False,
        [WAIT, FREE],
    ),
    "an unseen one was there before, and ours is held": (
        sample(3000, unseen(3000)),
        [sample(5000, us(2000), unseen(3000))],
        [sample(5000, unseen(3000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "an unseen one grew": (
        sample(3000, unseen(3000)),
        [sample(5000, us(2000), unseen(3000))],
        [sample(4000, unseen(4000))],
        False,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "an unseen one grew, and ours is held": (
        sample(3000, unseen(3000)),
        [sample(5000, us(2000), unseen(3000))],
        [sample(6000, unseen(4000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "an unseen one left, and ours is held": (
        sample(3000, unseen(3000)),
        [sample(5000, unseen(3000), unseen(2000, pid=4190001))],
        [sample(2000, unseen(2000, pid=4190001))],
        False,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "an unseen one left, and ours is free": (
        sample(3000, unseen(3000)),
        [sample(5000, unseen(3000), unseen(2000, pid=4190001))],
        [EMPTY],
        False,
        [FREE],
    ),
    # figures that are missing
    "a total of 0, and nothing in use": (
        sample(0, total=0),
        [sample(0, total=0)],
        [sample(0, total=0)],
        True,
        [UNVERIFIED],
    ),
    "a total of 0 after its death": (EMPTY, LIVING, [sample(0, total=0)], True, [WAIT, WAIT, UNVERIFIED]),
    "a total of 0 for a moment": (EMPTY, LIVING, [sample(0, total=0), sample(0)], True, [WAIT, FREE]),
    "no counter for a moment": (EMPTY, LIVING, [sample(None), sample(0)], True, [WAIT, FREE]),
    "no counter, and unreadable for a moment": (None, [], [unreadable(), sample(None)], True, [WAIT, UNVERIFIED]),
    "no counter, but while it lived there was one": (
        sample(None),
        LIVING,
        [sample(None), sample(0)],
        True,
        [WAIT, FREE],
    ),
    "no counter, whatever is listed": (sample(None), [sample(None, us(900))], [sample(None)], True, [UNVERIFIED]),
    "no list before the worker came": (
        sample(3000, None),
        [sample(5000, us(2000), stranger(3000))],
        [sample(5000, stranger(3000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "no list while a stranger left": (
        sample(3000, stranger(3000)),
        [sample(5000, us(2000), stranger(3000))],
        [sample(2000, None), sample(2000)],
        False,
        [WAIT, WAIT, HELD],
    ),
    "a stranger's memory became known": (
        sample(3000, stranger(None)),
        [sample(5000, us(2000), stranger(3000))],
        [sample(5000, stranger(3000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "a stranger left, of unknown size": (
        sample(3000, stranger(None)),
        [sample(5000, us(2000), stranger(None))],
        [sample(2000)],
        False,
        [WAIT, WAIT, UNVERIFIED],
    ),
    "a stranger of unknown size stayed": (
        sample(3000, stranger(None)),
        [sample(5000, us(2000), stranger(None))],
        [sample(3000, stranger(None))],
        False,
        [FREE],
    ),
    "ours is listed still, though less is in use than before": (
        sample(3000),
        [sample(5000, us(2000))],
        [sample(2000, dead(2000))],
        False,
        [WAIT, WAIT, HELD],
    ),
    "ours is listed still, its memory unknown": (
        EMPTY,
        [sample(2000, us(2000))],
        [sample(0, dead(None))],
        False,
        [WAIT, WAIT, UNVERIFIED],
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
    "a GPU without memory of its own": (sample(None), [sample(None)], [sample(None)], True, [UNVERIFIED]),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name):
    before, living, after, attributes, expected = CASES[name]
    verdicts = [judgement.verdict for judgement in judge(before, living, after, attributes=attributes)]
    assert verdicts[: len(expected)] == expected


def test_freed_and_held_and_by_whom():
    free = judge(sample(500), [sample(2500, us(2000))], [sample(510)])[0]
    assert (free.freed_mib, free.held, free.unknown) == (1990, (), ())
    held = judge(sample(500), [sample(2500, us(2000))], [sample(800, dead(300))])[-1]
    assert (held.freed_mib, held.held) == (1700, (HeldGpu(300, (MemoryHolder(10),)),))
    nobody = judge(EMPTY, LIVING, [sample(2000)])[-1]
    assert (nobody.freed_mib, nobody.held) == (0, (HeldGpu(2000),))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (EMPTY, sample(500, None), "500 MiB more in use than before, and NVML lists no processes"),
        (EMPTY, sample(500), "500 MiB more in use than before, and NVML does not show whose it is"),
        (
            EMPTY,
            sample(500, unseen(500)),
            "500 MiB more in use than before, and NVML lists pid 4190000, unknown here",
        ),
        (
            sample(900, unseen(900)),
            sample(1400, unseen(900)),
            "500 MiB more in use than before, and NVML does not show whose it is",
        ),
        (sample(None), sample(None), "NVML has no counter of this GPU's memory"),
        (sample(0, total=0), sample(0, total=0), "NVML has no counter of this GPU's memory"),
        (EMPTY, sample(0, total=0), "NVML gave no reading of its memory"),
    ],
)
def test_why_a_release_is_unverified(before, after, reason):
    last = judge(before, [], [after])[-1]
    assert (last.verdict, wording.unknown_memory(last.unknown)) == (UNVERIFIED, reason)


def test_what_may_be_anothers_is_not_said_to_be_held():
    held = judge(sample(500), [sample(2500, us(2000))], [sample(5500, dead(2000), unseen(3000))])[-1]
    assert (held.verdict, held.held) == (HELD, (HeldGpu(2000, (MemoryHolder(10),)),))


def test_freed_counts_what_no_sample_of_the_living_showed():
    assert judge(EMPTY, [EMPTY], [sample(1500), sample(0)])[1].freed_mib == 1500


def test_freed_is_unknown_without_a_reading():
    last = judge(None, [], [sample(0)])[-1]
    assert (last.verdict, last.freed_mib) == (UNVERIFIED, None)
    assert last.unknown == (UnknownGpu(Unknown.NO_BASELINE),)


@pytest.mark.parametrize(
    ("after", "unknown"),
    [
        (None, UnknownGpu(Unknown.NO_READING)),
        (sample(2000, None), UnknownGpu(Unknown.NO_PROCESSES, 2000)),
        (sample(2000), UnknownGpu(Unknown.NOT_SHOWN, 2000)),
    ],
)
def test_why_it_is_not_known_whose_it_is(after, unknown):
    last = judge(EMPTY, [sample(2000)], [after], attributes=True)[-1]
    assert (last.verdict, last.held, last.unknown) == (UNVERIFIED, (), (unknown,))


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
    "listed as unseen": (EMPTY, sample(2000, unseen(2000)), False, True, 2000),
    "listed as unseen, beside a sibling": (EMPTY, sample(2000, unseen(2000)), False, False, None),
    "listed as unseen, without memory": (EMPTY, sample(2000, unseen(None)), False, True, 2000),
    "an unseen one was there, without memory": (sample(9, unseen(None)), sample(2000, unseen(None)), False, True, None),
    "an unseen one came where workers are listed": (EMPTY, sample(2000, unseen(2000)), True, True, None),
    "an unseen one was there where workers are listed": (
        sample(900, unseen(900)),
        sample(900, unseen(900)),
        True,
        True,
        0,
    ),
    "no list where workers are listed": (EMPTY, sample(2000, None), True, True, None),
    "listed without memory where others are": (EMPTY, sample(2000, us(None)), True, True, 2000),
    "listed, on a GPU without a counter": (sample(None), sample(None, us(900)), False, True, 900),
    "a total of 0": (sample(0, total=0), sample(0, total=0), False, True, None),
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
    assert [[gpu.mib for gpu in judgement.held] for judgement in judgements] == [[], [2000], [900], [900], []]
    assert judgements[-1].freed_mib == 1990


def test_a_reading_begun_before_the_death_does_not_count():
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=False, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(reading(DIED - 0.001, EMPTY), DIED).verdict is WAIT
    assert release.observe(reading(DIED, EMPTY), DIED).verdict is FREE


def test_every_gpu_of_the_slot_must_be_free():
    release = Release("gpu0+1", [GPU, OTHER], both(1.0, 0, 0), attributes=True, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(both(DIED, 0, 3000), DIED).verdict is WAIT
    held = release.observe(
        both(DIED + 31, 5000, 3000), DIED + 31
    )  # the first one was free: what came since is not ours
    assert (held.verdict, held.held) == (HELD, (HeldGpu(3000, gpu="gpu1"),))
    assert release.observe(both(DIED + 32, 5000, 0), DIED + 32).verdict is FREE


def both(at, first, second):
    return reading(at, sample(first), sample(second, gpu=OTHER))


def test_a_gpu_without_a_counter_does_not_hide_that_the_other_is_in_use():
    release = Release("gpu0+1", [GPU, OTHER], both(1.0, None, 0), attributes=True, timeout=TIMEOUT)
    release.living(both(50.0, None, 3000), measured=True)
    release.died(DIED)
    assert release.observe(both(DIED, None, 3000), DIED).verdict is WAIT
    assert release.deadline() == DIED + TIMEOUT
    last = release.observe(both(DIED + 1, None, 0), DIED + 1)
    assert (last.verdict, last.freed_mib) == (UNVERIFIED, None)
    assert last.unknown == (UnknownGpu(Unknown.NO_COUNTER, gpu="gpu0"),)


def test_a_gpu_without_a_counter_keeps_no_slot_held_once_the_other_is_free():
    release = Release("gpu0+1", [GPU, OTHER], both(1.0, None, 0), attributes=True, timeout=TIMEOUT)
    release.died(DIED)
    assert release.observe(both(DIED, None, 3000), DIED).verdict is WAIT
    held = release.observe(both(DIED + 31, None, 3000), DIED + 31)
    assert (held.verdict, held.held) == (HELD, (HeldGpu(3000, gpu="gpu1"),))
    assert release.observe(both(DIED + 32, None, 0), DIED + 32).verdict is UNVERIFIED


def test_what_was_held_may_have_gone_when_only_an_unseen_process_is_left():
    release = Release("gpu0", [GPU], reading(1.0, EMPTY), attributes=True, timeout=TIMEOUT)
    release.living(reading(50.0, *LIVING))
    release.died(DIED)
    for after in (0.0, 31.0):
        judged = release.observe(reading(DIED + after, sample(2000)), DIED + after)
    assert judged.verdict is HELD
    assert release.observe(reading(DIED + 40, sample(2000, None)), DIED + 40).verdict is HELD  # no list for a moment
    assert release.observe(reading(DIED + 50, sample(4000, unseen(2000))), DIED + 50).verdict is HELD
    assert release.observe(reading(DIED + 60, sample(2000, unseen(2000))), DIED + 60).verdict is UNVERIFIED


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
