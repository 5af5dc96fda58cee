"""When GPUs are read and what is concluded, with a reader that the test plays."""

import pytest

from supervisor.cause import GpusLost, HeldGpu, LostGpu, MemoryHolder, MemoryStaysInUse, Unknown, UnknownGpu
from supervisor.gpu.client import ReaderFailed
from supervisor.gpu.records import Gpu, GpuProcess, GpuSample, Listing, Reading, Unwatched, WorkerRef, Xid
from supervisor.notice import RefreshAboveBlind, XidsUnwatched
from supervisor.pool.interfaces import Place
from supervisor.pool.release.watcher import HELD_S, IDLE_S, RELEASE_S, GpuMemory
from supervisor.pool.slots import steps

GPU = Gpu(0, "GPU-0", "played")
PLACE = Place("gpu0", 0, (GPU,), {})
TIMEOUT = 30.0


class PlayedReader:
    """A reader whose answers are the test's."""

    def __init__(self):
        self.asked = []
        self.said = []
        self.due = None

    def fileno(self):
        return 99

    def request(self, workers, now):
        self.asked.append(dict(workers))
        return len(self.asked)

    def receive(self, now):
        said, self.said = self.said, []
        return said

    def tick(self, now):
        return []

    def deadline(self):
        return self.due


def sample(used, *processes):
    return GpuSample("GPU-0", memory_used_mib=used, memory_total_mib=80_000, processes=processes)


OURS = GpuProcess(7, 900, "python", "gpu0")


class Watched:
    """The memory of one GPU, its reader, and the time."""

    def __init__(self, *places, refresh_above=0):
        self.reader = PlayedReader()
        self.memory = GpuMemory(self.reader, TIMEOUT, places or [PLACE], refresh_above)
        self.now = 100.0

    def read(self, used, *processes, error=None):
        """The answer to all that was asked so far."""
        samples = () if error else (sample(used, *processes),)
        self.reader.said.append(Reading(len(self.reader.asked), self.now, samples, error))
        return self.memory.collect(self.now)

    def run_a_worker(self):
        """From before its fork to the moment when it holds 900 MiB."""
        self.memory.collect(self.now)
        self.read(100)
        self.memory.before_fork(PLACE)
        self.memory.forked("gpu0", 7)
        self.now += IDLE_S
        self.memory.collect(self.now)
        self.read(1000, OURS)

    def end_it(self):
        self.now += 0.1
        self.memory.release(PLACE, self.now)


@pytest.fixture
def watched():
    return Watched()


def test_the_gpus_are_read_once_a_second_and_who_runs_there_is_said(watched):
    watched.run_a_worker()
    assert watched.reader.asked == [{}, {"gpu0": WorkerRef(7, ("GPU-0",))}]
    assert watched.memory.samples["GPU-0"].memory_used_mib == 1000
    assert watched.memory.deadline() == watched.now + IDLE_S
    assert watched.memory.collect(watched.now + IDLE_S - 0.01) == []
    assert len(watched.reader.asked) == 2


def test_the_readers_own_deadline_counts(watched):
    watched.run_a_worker()
    watched.reader.due = watched.now + 0.2
    assert watched.memory.deadline() == watched.now + 0.2


def test_a_worker_is_measured_by_a_reading_that_was_begun_afterwards(watched):
    watched.run_a_worker()
    under_way = len(watched.reader.asked)
    watched.memory.measure(PLACE, watched.now)
    watched.reader.said.append(Reading(under_way, watched.now, (sample(1000, OURS),)))
    assert watched.memory.collect(watched.now) == []
    assert watched.read(1000, OURS) == [("gpu0", steps.Measured())]
    assert watched.read(1000, OURS) == []  # said once


def test_a_reader_that_dies_while_it_measures_delays_nothing(watched):
    watched.run_a_worker()
    watched.memory.measure(PLACE, watched.now)
    watched.reader.said.append(ReaderFailed("NVML did not answer within 5 s"))
    assert watched.memory.collect(watched.now) == [("gpu0", steps.Measured())]
    assert watched.read(1000, OURS) == []  # said once


def test_released_memory_is_watched_closely_and_seen_free(watched):
    watched.run_a_worker()
    watched.end_it()
    assert watched.read(600) == []
    assert watched.memory.deadline() == pytest.approx(watched.now + RELEASE_S)
    watched.now += RELEASE_S
    assert watched.read(100) == [("gpu0", steps.Released(900, verified=True))]
    assert watched.read(100) == []


def test_a_reading_from_before_the_death_proves_nothing(watched):
    watched.run_a_worker()
    watched.end_it()
    watched.reader.said.append(Reading(len(watched.reader.asked), watched.now - 0.05, (sample(100),)))
    assert watched.memory.collect(watched.now) == []


def test_after_a_second_it_is_looked_at_less_often(watched):
    watched.run_a_worker()
    watched.end_it()
    watched.now += 1.0
    watched.read(1000)
    watched.read(1000)  # the answer to what was asked by then
    assert watched.memory.deadline() == pytest.approx(watched.now + HELD_S)


def test_held_on_evidence_once_and_free_when_it_clears(watched):
    watched.run_a_worker()
    watched.end_it()
    watched.read(1000, OURS)
    watched.now += TIMEOUT
    held = MemoryStaysInUse((HeldGpu(900, (MemoryHolder(7, "python"),)),))
    assert watched.read(1000, OURS) == [("gpu0", steps.MemoryHeld(held))]
    watched.now += HELD_S
    assert watched.read(1000, OURS) == []
    assert watched.read(100) == [("gpu0", steps.Released(900, verified=True))]


def test_held_memory_that_nobody_waits_for_is_forgotten(watched):
    watched.run_a_worker()
    watched.end_it()
    watched.read(1000, OURS)
    watched.now += TIMEOUT
    watched.read(1000, OURS)
    watched.memory.unwatch("gpu0")
    assert watched.read(100) == []


@pytest.mark.parametrize("answer", ["none", "errors", "a dead reader"])
def test_without_readings_the_slot_goes_on_after_the_timeout_unverified(watched, answer):
    watched.run_a_worker()
    watched.end_it()
    if answer == "errors":
        assert watched.read(0, error="driver not loaded") == []
    elif answer == "a dead reader":
        watched.reader.said.append(ReaderFailed("it exited"))
        assert watched.memory.collect(watched.now) == []
    died, watched.now = watched.now, watched.now + TIMEOUT - 0.001
    assert watched.memory.collect(watched.now) == []
    watched.now = died + TIMEOUT + 0.001
    ((slot, released),) = watched.memory.collect(watched.now)
    assert (slot, released.verified) == ("gpu0", False)
    assert released.unknown == (UnknownGpu(Unknown.NO_READING),)
    assert watched.memory.collect(watched.now) == []


def test_a_slot_whose_worker_never_was_forked_is_free_at_the_next_reading(watched):
    watched.memory.collect(watched.now)
    watched.read(100)
    watched.end_it()
    assert watched.read(100) == [("gpu0", steps.Released(None, verified=True))]


@pytest.mark.parametrize("end", ["killed before it read the worker", "killed while it measured", "too late"])
def test_a_reader_that_did_not_measure_the_worker_makes_no_claim_about_what_was_freed(watched, end):
    watched.memory.collect(watched.now)
    watched.read(100)
    watched.memory.before_fork(PLACE)
    watched.memory.forked("gpu0", 7)
    if end != "killed before it read the worker":
        watched.read(100)
        watched.memory.measure(PLACE, watched.now)
    if end != "too late":
        watched.reader.said.append(ReaderFailed("it exited"))
        watched.memory.collect(watched.now)
    watched.end_it()
    assert watched.read(100) == [("gpu0", steps.Released(None, verified=True))]


def test_what_the_end_of_a_worker_freed_is_what_it_held_then(watched):
    watched.run_a_worker()
    watched.memory.measure(PLACE, watched.now)
    assert watched.read(150, GpuProcess(7, 50, "python", "gpu0")) == [("gpu0", steps.Measured())]
    watched.end_it()
    assert watched.read(100) == [("gpu0", steps.Released(50, verified=True))]


def test_a_worker_that_holds_too_much_is_said_with_every_reading():
    watched = Watched(refresh_above=500)
    watched.run_a_worker()
    assert watched.read(1000, OURS) == [("gpu0", steps.MemoryExceeded(900, watched.now))]
    assert watched.read(600, GpuProcess(7, 500, "python", "gpu0")) == []  # as much as it may
    watched.memory.measure(PLACE, watched.now)
    assert watched.read(1000, OURS) == [("gpu0", steps.Measured()), ("gpu0", steps.MemoryExceeded(900, watched.now))]
    watched.end_it()
    assert watched.read(1000, OURS) == []


def test_where_processes_are_hidden_it_is_told_by_the_memory_in_use():
    watched = Watched(refresh_above=500)
    watched.memory.collect(watched.now)
    watched.read(100)
    watched.memory.before_fork(PLACE)
    watched.memory.forked("gpu0", 7)
    assert watched.read(600) == []
    assert watched.read(1000) == [("gpu0", steps.MemoryExceeded(900, watched.now))]


@pytest.mark.parametrize("when", ["ended since", "was ending"])
@pytest.mark.parametrize(
    ("before", "listed", "verified"), [(2000, False, False), (2000, True, True), (50, False, True), (None, False, True)]
)
def test_memory_that_a_neighbour_gave_back_proves_nothing_where_it_is_not_listed(when, before, listed, verified):
    """Two workers on one GPU, and lists that a container hides: what one gave back, the other may have kept."""
    neighbour = Place("gpu0.1", 1, (GPU,), {})
    theirs, ours = GpuProcess(8, 2000, "python", "gpu0.1"), GpuProcess(7, 2000, "python", "gpu0")
    watched = Watched(PLACE, neighbour)
    watched.memory.collect(watched.now)
    first, second = (PLACE, neighbour) if before is None else (neighbour, PLACE)
    watched.read(0)
    watched.memory.before_fork(first)
    watched.read(before or 0, *([theirs] if listed else []))
    if when == "was ending" and before is not None:
        watched.memory.release(neighbour, watched.now)
    watched.memory.before_fork(second)
    watched.read(2000 + (before or 0), *([theirs, ours] if listed else []))
    if when == "ended since" or before is None:
        watched.memory.release(neighbour, watched.now)
    watched.read(2000, *([ours] if listed else []))
    watched.end_it()
    now_used = before if before and not verified else 0
    ((slot, released),) = [it for it in watched.read(now_used) if it[0] == "gpu0"]
    assert (slot, released.verified, bool(released.unknown)) == ("gpu0", verified, not verified)


def test_that_it_cannot_be_told_is_said_once():
    neighbour = Place("gpu0.1", 1, (GPU,), {})
    watched = Watched(PLACE, neighbour, refresh_above=500)
    watched.memory.collect(watched.now)
    watched.read(100)
    for place, pid in ((PLACE, 7), (neighbour, 8)):
        watched.memory.before_fork(place)
        watched.memory.forked(place.name, pid)
    assert watched.read(100) == []  # nobody uses the GPU
    watched.reader.said.append(
        Reading(len(watched.reader.asked), watched.now, (GpuSample("GPU-0", error="Unknown Error"),))
    )
    assert watched.memory.collect(watched.now) == []  # it may be told later
    assert watched.read(2000) == [("gpu0", steps.Remarked(RefreshAboveBlind("gpu0", 500)))]
    assert watched.read(2000) == []


def test_that_it_cannot_be_told_is_not_said_where_workers_are_listed():
    watched = Watched(refresh_above=500)
    watched.run_a_worker()
    assert watched.read(1000, GpuProcess(1 << 22, 900, visible=False)) == []  # nobody knows whose that is
    assert watched.read(1000, OURS) == [("gpu0", steps.MemoryExceeded(900, watched.now))]


def test_where_memory_is_not_counted_the_slot_goes_on_at_once_unverified(watched):
    watched.memory.collect(watched.now)
    watched.read(None)
    watched.memory.before_fork(PLACE)
    watched.memory.forked("gpu0", 7)
    watched.read(None, OURS)
    watched.end_it()
    unknown = (UnknownGpu(Unknown.NO_COUNTER),)
    assert watched.read(None) == [("gpu0", steps.Released(None, verified=False, unknown=unknown))]
    assert watched.read(None) == []


def test_what_nvml_lists_by_a_number_of_another_namespace_is_nobodys(watched):
    unseen = GpuProcess(1 << 22, 900, visible=False)
    watched.memory.collect(watched.now)
    watched.read(100)
    watched.memory.before_fork(PLACE)
    watched.memory.forked("gpu0", 7)
    watched.read(1000, unseen)
    watched.end_it()
    assert watched.read(1000, unseen) == []
    watched.now += TIMEOUT
    ((_, released),) = watched.read(1000, unseen)
    assert (released.verified, released.freed_mib) == (False, 0)


def test_what_was_held_goes_on_unverified_once_what_is_left_may_be_anothers(watched):
    watched.run_a_worker()
    watched.end_it()
    watched.read(1000, OURS)
    watched.now += TIMEOUT
    assert [type(event) for _, event in watched.read(1000, OURS)] == [steps.MemoryHeld]
    ((_, released),) = watched.read(1000, GpuProcess(1 << 22, 900, visible=False))
    assert released.verified is False
    assert watched.read(1000) == []


def test_a_list_of_gpus_is_no_reading(watched):
    watched.reader.said.append(Listing((GPU,)))
    assert watched.memory.collect(watched.now) == []
    assert watched.memory.samples == {}


def test_the_release_of_one_slot_says_nothing_about_another(watched):
    other = Place("gpu1", 1, (Gpu(1, "GPU-1", "played"),), {})
    watched.run_a_worker()
    watched.memory.before_fork(other)
    watched.memory.forked("gpu1", 8)
    watched.end_it()
    assert [slot for slot, _ in watched.read(100)] == ["gpu0"]
    assert watched.reader.asked[-1]["gpu1"] == WorkerRef(8, ("GPU-1",))


def test_a_lost_gpu_is_said_once_and_so_is_its_return(watched):
    watched.run_a_worker()
    lost = GpuSample("GPU-0", error="GPU is lost", lost=True)
    unreadable = GpuSample("GPU-0", error="Unknown Error")

    def learned(one):
        watched.reader.said.append(Reading(len(watched.reader.asked), watched.now, (one,)))
        return watched.memory.collect(watched.now)

    assert learned(unreadable) == []  # says nothing about the GPU
    assert learned(lost) == [("gpu0", steps.GpuLost(GpusLost((LostGpu(0, error="GPU is lost"),))))]
    assert learned(lost) == []
    assert learned(unreadable) == []
    assert learned(sample(100)) == [("gpu0", steps.GpuBack())]
    assert learned(sample(100)) == []


def test_a_gpu_with_a_hardware_xid_is_lost_and_comes_back(watched):
    watched.run_a_worker()
    watched.reader.said.append(Xid("GPU-0", 79, watched.now))
    lost = steps.GpuLost(GpusLost((LostGpu(0, 79),)))
    assert watched.memory.collect(watched.now) == [("gpu0", lost)]
    learned = []
    for _ in range(5):
        watched.now += IDLE_S
        learned += watched.read(1000, OURS)
    assert learned == [("gpu0", steps.GpuBack())]


def test_a_worker_that_starts_on_a_lost_gpu_is_told_so(watched):
    watched.run_a_worker()
    watched.reader.said.append(Xid("GPU-0", 79, watched.now))
    told = watched.memory.collect(watched.now)  # to a slot that was parked
    watched.memory.before_fork(PLACE)
    assert watched.memory.collect(watched.now) == told


def test_that_no_xids_are_watched_is_said_once(watched):
    watched.reader.said += [Unwatched("Not Supported"), Unwatched("Not Supported")]
    remark = steps.Remarked(XidsUnwatched("gpu0", "Not Supported"))
    assert watched.memory.collect(watched.now) == [("gpu0", remark)]


def test_what_is_learned_before_the_workers_start_is_not_forgotten(watched):
    watched.memory.prepare(watched.now)
    watched.reader.said.append(Unwatched("Not Supported"))
    watched.memory.prepare(watched.now)
    watched.reader.said.append(Xid("GPU-0", 79, watched.now))
    watched.memory.prepare(watched.now)
    assert [type(event) for _, event in watched.memory.collect(watched.now)] == [steps.Remarked, steps.GpuLost]
    assert watched.memory.collect(watched.now) == []
