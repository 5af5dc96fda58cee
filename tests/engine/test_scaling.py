"""How many workers there are: which slots start because jobs wait and stop because none came, and what never changes that."""

import asyncio
from types import SimpleNamespace

import pytest

from supervisor.cause import GpusLost, LostGpu, PausedByHand, SpareCause
from supervisor.engine.scaling import Scaling, ScalingAction, bounds, check_bounds
from supervisor.errors import UsageError
from supervisor.notice import SlotPaused
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import OUT_OF_SERVICE, Slot, SlotState
from supervisor.wire import messages as wire

S = SlotState
NOW = 1000.0
DEADLINE_S = 30.0
IDLE = SpareCause(idle_s=60.0)


def settings(least=None, most=None, idle_timeout=60.0, scale_after=4.0):
    return SimpleNamespace(min_workers=least, max_workers=most, idle_timeout=idle_timeout, scale_after=scale_after)


# --- the numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (None, None, (4, 4)),
        (0, None, (0, 4)),
        (4, None, (4, 4)),
        (None, 1, (1, 1)),
        (None, 9, (4, 4)),
        (2, 3, (2, 3)),
    ],
)
def test_bounds(least, most, expected):
    assert bounds(settings(least, most), 4) == expected


@pytest.mark.parametrize(
    ("least", "most", "slots", "message"),
    [
        (5, None, 4, "--min-workers 5: there are 4 slots; give a number from 0 to 4"),
        (2, None, 1, "--min-workers 2: there is 1 slot; give a number from 0 to 1"),
        (3, 2, 4, "--min-workers 3: more than --max-workers 2 allows; there are 4 slots"),
    ],
)
def test_numbers_that_are_wrong(least, most, slots, message):
    with pytest.raises(UsageError) as refusal:
        check_bounds(settings(least, most), slots)
    assert str(refusal.value) == message


# --- decisions -------------------------------------------------------------------------------------------------------------


def idle(since):
    return {"state": S.IDLE, "idle_slot_since": NOW - since}


def leaving(state, **changes):
    return {"state": state, "pause_cause": SpareCause(), **changes}


BUSY = {"state": S.BUSY, "running": ("job",)}
PARKED = leaving(S.PARKED)
PAUSED = {"state": S.PARKED, "pause_cause": PausedByHand()}
NEW = idle(0)

#: Least and most workers, the slots, how long jobs wait; what is started, what is stopped, and in how many seconds to look again.
DECISIONS = {
    "nobody waits": (1, 2, [NEW, PARKED], [], [], [], None),
    "one job waits, not long enough": (1, 2, [BUSY, PARKED], [1.0], [], [], 3.0),
    "one job has waited": (1, 2, [BUSY, PARKED], [4.0], [1], [], None),
    "one slot for each, the lowest first": (1, 4, [PARKED, BUSY, PARKED, PARKED], [9, 5, 1], [0, 2], [], 3.0),
    "not more than there are": (1, 4, [BUSY, BUSY, PARKED, PAUSED], [9, 8, 7], [2], [], 60.0),
    "not more than the most": (1, 2, [BUSY, PARKED, PARKED], [9, 9, 9], [1], [], None),
    "the most are in service": (1, 2, [BUSY, BUSY, PARKED], [9, 9], [], [], 60.0),
    "a worker comes for the first": (1, 3, [{"state": S.STARTING}, PARKED, PARKED], [9], [], [], None),
    "and not for the second": (1, 3, [{"state": S.STARTING}, PARKED, PARKED], [9, 9], [1], [], None),
    "nor for it yet": (1, 3, [{"state": S.STARTING}, PARKED, PARKED], [9, 1], [], [], 3.0),
    "one that is refreshed comes, too": (1, 2, [{"state": S.RELEASING}, PARKED], [9], [], [], None),
    "one that backs off does not": (1, 2, [{"state": S.BACKOFF}, PARKED], [9], [1], [], None),
    "no worker at all": (0, 2, [PARKED, PARKED], [0.0, 0.0], [0], [], 4.0),
    "nor a job": (0, 2, [PARKED, PARKED], [], [], [], None),
    "the only one is lost": (0, 2, [{"state": S.LOST}, PARKED], [0.0], [1], [], 4.0),
    "in place of one that is lost": (1, 2, [{"state": S.LOST}, PARKED], [], [1], [], None),
    "in place of one that is held": (1, 2, [{"state": S.HELD}, PARKED], [], [1], [], None),
    "in place of one that is broken": (1, 2, [{"state": S.BROKEN}, PARKED], [], [1], [], None),
    "in place of one that is paused": (1, 2, [PAUSED, PARKED], [], [1], [], None),
    "of one that is being paused": (
        1,
        2,
        [{"state": S.ENDING, "pause_cause": PausedByHand()}, PARKED],
        [],
        [1],
        [],
        None,
    ),
    "but not before it is gone": (1, 1, [{"state": S.ENDING, "pause_cause": PausedByHand()}, PARKED], [], [], [], None),
    "what is paused stays so": (0, 2, [PAUSED, PAUSED], [9], [], [], None),
    "another while the last is stopped": (0, 2, [leaving(S.ENDING), PARKED], [0.0], [1], [], 4.0),
    "that one, where there is no other": (0, 1, [leaving(S.ENDING), PARKED], [0.0], [0], [], 4.0),
    "also while its memory goes": (0, 2, [leaving(S.RELEASING), PAUSED], [0.0], [0], [], 4.0),
    "not while it is held": (0, 1, [leaving(S.HELD)], [0.0], [], [], None),
    "idle for too long": (1, 2, [NEW, idle(60)], [], [], [1], None),
    "not yet": (1, 2, [idle(59), idle(50)], [], [], [], 1.0),
    "the highest first": (1, 3, [idle(60), idle(61), idle(60)], [], [], [2, 1], None),
    "the lower one, where it is the one": (1, 2, [idle(60), NEW], [], [], [0], None),
    "the next one in time": (0, 3, [idle(60), idle(40), NEW], [], [], [0], 20.0),
    "as many as there must be": (2, 3, [idle(99), idle(99), PARKED], [], [], [], None),
    "one that is refreshed counts": (1, 2, [{"state": S.STARTING}, idle(60)], [], [], [1], None),
    "one that is paused does not": (1, 2, [PAUSED, idle(60)], [], [], [], None),
    "one that works is not idle": (0, 2, [{**BUSY, "idle_slot_since": NOW - 99}, NEW], [], [], [], 60.0),
    "one that was never ready is not": (0, 2, [{"state": S.STARTING}, BUSY], [], [], [], 60.0),
    "one too many goes, ready or not": (1, 1, [{"state": S.STARTING}, NEW], [], [], ["0 in its place"], None),
    "the last of them": (1, 1, [NEW, NEW], [], [], ["1 in its place"], None),
    "which does not come back": (1, 1, [leaving(S.ENDING), BUSY], [9], [], [], None),
    "when it has no job": (1, 1, [BUSY, BUSY], [], [], [], None),
}


@pytest.mark.parametrize(
    ("least", "most", "slots", "waits", "start", "stop", "again"), DECISIONS.values(), ids=DECISIONS.keys()
)
def test_decisions(least, most, slots, waits, start, stop, again):
    scaling = Scaling(settings(least, most))
    given = [Slot(name=str(index), index=index, **changes) for index, changes in enumerate(slots)]
    actions = scaling.decide(given, lambda count: sorted(waits, reverse=True)[:count], NOW)
    too_many = SpareCause(most=most)
    stops = [
        ScalingAction(which[0], too_many) if isinstance(which, str) else ScalingAction(str(which), IDLE)
        for which in stop
    ]
    assert actions == [ScalingAction(str(index)) for index in start] + stops
    assert scaling.deadline == (None if again is None else NOW + again)


def test_a_worker_that_is_to_stop_at_once_is_waited_for_without_a_busy_loop():
    scaling = Scaling(settings(0, idle_timeout=0.0))
    assert scaling.decide([Slot(name="0", index=0, **BUSY), Slot(name="1", index=1, **PARKED)], lambda _: [], NOW) == []
    assert scaling.deadline is None


def test_with_all_slots_in_service_nothing_is_decided_or_looked_at():
    scaling = Scaling(settings())
    slots = [Slot(name=str(index), index=index, **changes) for index, changes in enumerate([idle(99), PAUSED])]
    assert scaling.decide(slots, lambda count: pytest.fail("the queue was asked"), NOW) == []


# --- the engine ------------------------------------------------------------------------------------------------------------


def begin(house, *slots):
    """Start ``house``, in which just these ``slots`` get workers, and have them ready."""
    house.engine.start()
    house.until(lambda: set(house.template.workers) >= set(slots))
    house.settle()
    assert set(house.template.workers) == set(slots)
    for slot in slots:
        house.worker(slot).ready()
        comes_to(house, "idle", slot)


def comes_to(house, state, slot="cpu0"):
    house.until(lambda: house.pool.slots[slot].state.value == state)


def states(house):
    return [slot.state.value for slot in house.pool.slots.values()]


def time_passes(house, seconds):
    house.clock.now += seconds
    house.clock.wall += int(seconds * 1000)
    house.settle()


def in_service(house):
    return [name for name, slot in house.pool.slots.items() if slot.state not in OUT_OF_SERVICE]


def leaves(house, slot="cpu0"):
    """The worker in ``slot`` is asked to end and does."""
    assert isinstance(house.worker(slot).heard(), wire.Exit)
    house.worker(slot).dies(0)
    comes_to(house, "parked", slot)


def runs(house, job_id, slot):
    heard = house.worker(slot).heard()
    assert isinstance(heard, wire.Run)
    assert heard.job == job_id


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ({}, 3),
        ({"min_workers": 0}, 1),
        ({"min_workers": 1}, 1),
        ({"min_workers": 2}, 2),
        ({"max_workers": 2}, 2),
        ({"min_workers": 0, "max_workers": 1}, 1),
    ],
)
def test_the_first_slots_start_with_the_program(make_house, options, started):
    house = make_house(slots=3, **options)
    begin(house, *[f"cpu{index}" for index in range(started)])
    assert states(house) == ["idle"] * started + ["parked"] * (3 - started)
    assert {slot.cause for slot in house.pool.slots.values()} <= {None, SpareCause()}
    assert [view.spare for view in house.engine.snapshot().workers] == [False] * started + [True] * (3 - started)
    assert house.engine.ready


def test_the_first_load_of_those_that_started_decides(make_house):
    house = make_house(slots=3, min_workers=2)
    house.engine.start()
    house.until(lambda: len(house.template.workers) == 2)
    for slot in ("cpu0", "cpu1"):
        assert not house.engine.first_load.done()
        house.worker(slot).say(wire.LoadFailed("raised", "no"))
        house.worker(slot).dies(1)
        house.settle()
    first = house.wait(house.engine.first_load)
    assert not first.ok
    assert first.failed.message == "no"
    assert set(house.template.workers) == {"cpu0", "cpu1"}


def test_a_pause_is_no_answer_to_how_the_handler_loads(make_house):
    house = make_house(slots=2, min_workers=1)
    house.engine.start()
    house.until(lambda: "cpu0" in house.template.workers)
    house.wait(house.engine.slots.pause("cpu0"))
    house.until(lambda: "cpu1" in house.template.workers)
    house.worker("cpu0").dies(-15)
    comes_to(house, "parked")
    assert not house.engine.first_load.done()
    house.worker("cpu1").ready()
    assert house.wait(house.engine.first_load).ok


def test_a_job_that_has_waited_gets_a_worker_of_its_own(make_house):
    house = make_house(slots=3, min_workers=1)
    begin(house, "cpu0")
    for job_id in "abc":
        house.submit(job_id)
    runs(house, "a", "cpu0")
    time_passes(house, 3.9)
    assert states(house) == ["busy", "parked", "parked"]
    time_passes(house, 0.2)
    assert states(house) == ["busy", "starting", "starting"]
    assert [slot.cause for slot in house.pool.slots.values()] == [None] * 3
    for slot, job_id in (("cpu1", "b"), ("cpu2", "c")):
        house.worker(slot).ready()
        runs(house, job_id, slot)


def test_the_time_alone_starts_it(make_house):
    house = make_house(slots=2, min_workers=1, scale_after=0.05)
    begin(house, "cpu0")
    house.submit("a")
    house.submit("b")
    assert 0 < house.engine._loop._scaling.deadline - house.clock.now <= 0.05
    house.clock.now += 0.05
    house.clock.wall += 50
    give_up = house.loop.time() + DEADLINE_S
    while "cpu1" not in house.template.workers:  # without a wake from here
        assert house.loop.time() < give_up
        house.loop.run_until_complete(asyncio.sleep(0))


def test_a_worker_that_comes_is_counted_on(make_house):
    house = make_house(slots=3, min_workers=1)
    house.engine.start()
    house.until(lambda: "cpu0" in house.template.workers)
    house.submit("a")
    time_passes(house, 5)
    assert states(house) == ["starting", "parked", "parked"]
    house.submit("b")
    time_passes(house, 5)
    assert states(house) == ["starting", "starting", "parked"]


def test_a_clock_that_is_set_back_keeps_no_job_waiting(make_house):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    house.submit("a")
    house.submit("b")
    house.clock.wall -= 3_600_000
    house.settle()
    assert states(house) == ["busy", "starting"]


def test_what_is_purged_starts_nobody(make_house):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    house.submit("a")
    house.submit("b")
    house.clock.wall += 4_000
    assert house.wait(house.engine.purge()) == 1
    house.settle()
    assert states(house) == ["busy", "parked"]


@pytest.mark.parametrize("least", [0, 1])
def test_an_idle_worker_stops_and_its_memory_is_seen_to_be_free(make_house, played_memory, least):
    house = make_house(slots=2, memory=played_memory, min_workers=least)
    begin(house, "cpu0")
    time_passes(house, 59)
    house.wait(house.engine.slots.resume("cpu1"))  # a person may
    house.until(lambda: "cpu1" in house.template.workers)
    house.worker("cpu1").ready()
    comes_to(house, "idle", "cpu1")
    time_passes(house, 1)
    assert house.pool.slots["cpu0"].cause == IDLE
    played_memory.learned.append(("cpu0", steps.Measured()))
    assert isinstance(house.worker("cpu0").heard(), wire.Exit)
    house.worker("cpu0").dies(0)
    comes_to(house, "releasing", "cpu0")
    played_memory.learned.append(("cpu0", steps.Released(12)))
    comes_to(house, "parked", "cpu0")
    assert house.told[-1] == SlotPaused("cpu0", IDLE)
    time_passes(house, 3600)
    assert states(house) == ["parked", "idle" if least else "ending"]
    assert house.engine.ready
    assert [slot.restarts for slot in house.pool.slots.values()] == [0, 0]


@pytest.mark.parametrize("timeout", [0, 0.5, 2])
def test_a_worker_stops_so_long_after_its_last_job(make_house, timeout):
    house = make_house(min_workers=0, idle_timeout=timeout)
    house.engine.start()
    house.until(lambda: house.template.workers)
    house.submit("a")
    house.worker("cpu0").ready()
    runs(house, "a", "cpu0")
    time_passes(house, 100)
    assert states(house) == ["busy"]
    house.worker("cpu0").say(wire.Done("a", "COMPLETED"))
    house.until(lambda: not house.engine._jobs.active)
    time_passes(house, timeout)
    assert states(house) == ["ending"]


def test_a_job_wakes_the_last_worker_up_at_once(make_house):
    house = make_house(min_workers=0)
    begin(house, "cpu0")
    time_passes(house, 60)
    leaves(house)
    assert house.engine.ready
    time_passes(house, 1000)
    assert states(house) == ["parked"]
    house.submit()
    house.until(lambda: house.worker().generation == 2)
    house.worker().ready()
    runs(house, "a", "cpu0")


@pytest.mark.parametrize("others", [0, 1])
def test_a_job_that_comes_while_the_last_worker_is_stopped(make_house, others):
    house = make_house(slots=1 + others, min_workers=0, max_workers=1)
    begin(house, "cpu0")
    time_passes(house, 60)
    assert isinstance(house.worker().heard(), wire.Exit)
    house.submit()
    assert states(house)[0] == "ending"
    house.worker().dies(0)
    house.until(lambda: house.worker().generation == 2)
    assert house.pool.slots["cpu0"].cause is None
    house.worker().ready()
    runs(house, "a", "cpu0")
    assert states(house) == ["busy"] + ["parked"] * others
    assert house.pool.slots["cpu0"].restarts == 0


def test_what_keeps_no_worker_alive(make_house):
    """Neither polls nor a refresh nor a crash begin the idle time anew; a job does."""
    house = make_house(min_workers=0)
    begin(house, "cpu0")
    time_passes(house, 30)
    house.submit()
    runs(house, "a", "cpu0")
    time_passes(house, 100)
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    house.ended()
    for happening in ("a refresh", "a crash", "polls"):
        time_passes(house, 15)
        if happening == "a refresh":
            house.wait(house.engine.slots.refresh("cpu0"))
            assert isinstance(house.worker().heard(), wire.Exit)
            house.worker().dies(0)
            house.until(lambda: house.worker().generation == 2)
            house.worker().ready()
        elif happening == "a crash":
            house.worker().dies(-9)
            comes_to(house, "backoff")
            time_passes(house, 0.5)
            house.until(lambda: house.worker().generation == 3)
            house.worker().ready()
        else:
            house.engine.snapshot()
            house.engine.job("a")
            house.wait(house.engine.wait("a", 0))
        comes_to(house, "idle")
    time_passes(house, 14.4)
    assert states(house) == ["idle"]
    time_passes(house, 0.2)
    leaves(house)


def test_what_a_person_has_paused_stays_so(make_house):
    house = make_house(slots=3, min_workers=1)
    begin(house, "cpu0")
    house.wait(house.engine.slots.pause("cpu2"))  # a spare one
    house.wait(house.engine.slots.pause("cpu0"))  # and the one in service, in whose place another starts
    house.until(lambda: "cpu1" in house.template.workers)
    leaves(house)
    house.worker("cpu1").ready()
    for job_id in "abc":
        house.submit(job_id)
    time_passes(house, 10)
    assert states(house) == ["parked", "busy", "parked"]
    assert [slot.cause for slot in house.pool.slots.values()] == [PausedByHand(), None, PausedByHand()]
    house.wait(house.engine.slots.resume("cpu2"))
    house.until(lambda: "cpu2" in house.template.workers)


@pytest.mark.parametrize("again", ["back", "resumed"])
def test_there_are_never_more_than_the_most(make_house, played_memory, again):
    house = make_house(slots=2, memory=played_memory, max_workers=1)
    begin(house, "cpu0")
    if again == "back":
        played_memory.learned.append(("cpu0", steps.GpuLost(GpusLost((LostGpu(0),)))))
        comes_to(house, "ending")
        house.worker().dies(-9)
        comes_to(house, "lost")
    else:
        house.wait(house.engine.slots.pause("cpu0"))
        played_memory.learned.append(("cpu0", steps.Measured()))
        assert isinstance(house.worker().heard(), wire.Exit)
        house.settle()
        assert in_service(house) == ["cpu0"]
        house.worker().dies(0)
        comes_to(house, "releasing")
        played_memory.learned.append(("cpu0", steps.Released(12)))
    house.until(lambda: "cpu1" in house.template.workers)
    house.worker("cpu1").ready()
    comes_to(house, "idle", "cpu1")
    if again == "back":
        played_memory.learned.append(("cpu0", steps.GpuBack()))
    else:
        house.wait(house.engine.slots.resume("cpu0"))
    comes_to(house, "releasing")
    assert house.worker("cpu0").generation == 1, "a worker was forked that is one too many"
    played_memory.learned.append(("cpu0", steps.Released()))
    comes_to(house, "parked")
    assert house.pool.slots["cpu0"].cause == SpareCause(most=1)
    assert states(house) == ["parked", "idle"]


def test_a_new_template_starts_no_spare_slot(make_house):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    house.template.dies()
    house.until(lambda: house.worker().generation == 2)
    house.settle()
    assert states(house) == ["starting", "parked"]


def test_a_reload_starts_no_spare_slot(make_house):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    house.engine.reload()
    assert isinstance(house.worker().heard(), wire.Exit)
    house.worker().dies(0)
    house.until(lambda: house.worker().generation == 2)
    house.settle()
    assert states(house) == ["starting", "parked"]


def test_a_drain_starts_nobody(make_house):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    house.submit("a")
    house.submit("b")
    runs(house, "a", "cpu0")
    drain = asyncio.ensure_future(house.engine.drain(30.0, asyncio.Event()), loop=house.loop)
    time_passes(house, 10)
    assert states(house) == ["busy", "parked"]
    house.worker().say(wire.Done("a", "COMPLETED", b"1"))
    leaves(house)
    house.wait(drain)
    assert house.engine.job("b").status.value == "IN_QUEUE"
    assert set(house.template.workers) == {"cpu0"}


def test_jobs_of_the_last_run_have_waited(make_house, tmp_path):
    house = make_house(slots=2, min_workers=1)
    begin(house, "cpu0")
    for job_id in "abc":
        house.submit(job_id)
    house.engine.close()
    house.clock.wall += 10_000
    second = make_house(slots=2, min_workers=1, store=house.store)
    second.clock.wall = house.clock.wall
    second.engine.start()
    second.until(lambda: len(second.template.workers) == 2)
