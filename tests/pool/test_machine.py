"""Every slot state and event: what happens, and what cannot."""

import signal

import pytest

from supervisor import cause as c
from supervisor import notice
from supervisor.host.processes import STACK_SIGNAL
from supervisor.pool.slots import steps
from supervisor.pool.slots.ending import ASK_S, KILL_S, STACK_S
from supervisor.pool.slots.machine import BACKOFF_S, BROKEN_RETRY_S, StateMachine
from supervisor.pool.slots.rules import IllegalStepError, Rules
from supervisor.pool.slots.slot import EndStep, Next, Slot, SlotState
from supervisor.wire import messages as wire

S = SlotState
KILLED, TERMINATED, CRASHED, EXITED = c.Signalled(9), c.Signalled(15), c.Signalled(11), c.Exited(1)
NONSENSE = c.ProtocolBroken("nonsense")
HELD = c.MemoryStaysInUse((c.HeldGpu(900),))
LOST = c.GpusLost((c.LostGpu(0),))
MACHINE = StateMachine(Rules(grace=5.0))
EVENTS = {
    "start": steps.Start(),
    "forked": steps.WorkerForked(7),
    "unforked": steps.Unforked(),
    "fork_failed": steps.WorkerForkFailed(c.ForkRefused("no memory")),
    "ready": steps.WorkerLoaded(1),
    "capacity": steps.CapacityChanged(3),
    "assign": steps.Assign("new"),
    "job_done": steps.JobDone("job"),
    "cancel": steps.CancelJob("job", gently=False),
    "refresh": steps.RefreshRequested(c.RefreshCause(c.RefreshBy.HAND)),
    "changed": steps.HandlerChanged(),
    "pause": steps.PauseRequested(c.PausedByHand()),
    "resume": steps.ResumeRequested(),
    "misbehaved": steps.ProtocolViolated(NONSENSE),
    "measured": steps.Measured(),
    "overgrown": steps.MemoryExceeded(900, 99.0),
    "died": steps.WorkerExited(KILLED),
    "swept": steps.TreeSwept(),
    "released": steps.Released(12),
    "held": steps.MemoryHeld(HELD),
    "template_gone": steps.TemplateDied(),
    "gpu_lost": steps.GpuLost(LOST),
    "gpu_back": steps.GpuBack(),
    "remarked": steps.Remarked(notice.ProgramXid("gpu0", 0, 13)),
    "stop": steps.Stop(),
    "tick": steps.Tick(),
}


def slot(state, **changes):
    running = ("job",) if state is S.BUSY else ()
    return Slot(
        **{"name": "gpu0", "index": 0, "state": state, "generation": 3, "pid": 7, "running": running, **changes}
    )


#: The state after each event; "-" where the event cannot happen. Those left out leave the state as it is.
TABLE = {
    S.PARKED: dict(start=S.STARTING, ready="-", assign="-", job_done="-", cancel="-", refresh="-", misbehaved="-")
    | dict(died="-", swept="-", fork_failed="-"),
    S.STARTING: dict(
        gpu_lost=S.ENDING, start="-", fork_failed=S.BACKOFF, ready=S.IDLE, assign="-", job_done="-", cancel="-"
    )
    | dict(
        refresh=S.ENDING,
        misbehaved=S.ENDING,
        died=S.ENDING,
        swept="-",
        released="-",
        held="-",
        template_gone=S.RELEASING,
        stop=S.ENDING,
    ),
    S.IDLE: dict(
        gpu_lost=S.ENDING,
        start="-",
        fork_failed="-",
        ready="-",
        assign=S.BUSY,
        job_done="-",
        cancel="-",
        refresh=S.ENDING,
    )
    | dict(
        misbehaved=S.ENDING, died=S.ENDING, swept="-", released="-", held="-", template_gone=S.RELEASING, stop=S.ENDING
    ),
    S.BUSY: dict(gpu_lost=S.ENDING, start="-", fork_failed="-", ready="-", assign="-", job_done=S.IDLE, cancel=S.ENDING)
    | dict(
        misbehaved=S.ENDING, died=S.ENDING, swept="-", released="-", held="-", template_gone=S.RELEASING, stop=S.ENDING
    ),
    S.ENDING: dict(start="-", assign="-", job_done="-", cancel="-", refresh="-", swept="-", released="-", held="-")
    | dict(fork_failed=S.RELEASING, template_gone=S.RELEASING),
    S.RELEASING: dict(
        gpu_lost=S.LOST,
        start="-",
        fork_failed="-",
        ready="-",
        assign="-",
        job_done="-",
        cancel="-",
        refresh="-",
        misbehaved="-",
    )
    | dict(died="-", swept="-", released=S.STARTING, held=S.HELD),
    S.BACKOFF: dict(
        gpu_lost=S.LOST,
        start=S.STARTING,
        fork_failed="-",
        ready="-",
        assign="-",
        job_done="-",
        cancel="-",
        refresh=S.STARTING,
    )
    | dict(misbehaved="-", died="-", swept="-", released="-", held="-", stop=S.PARKED),
    S.BROKEN: dict(
        gpu_lost=S.LOST,
        start=S.STARTING,
        fork_failed="-",
        ready="-",
        assign="-",
        job_done="-",
        cancel="-",
        refresh=S.STARTING,
    )
    | dict(misbehaved="-", died="-", swept="-", released="-", held="-", stop=S.PARKED),
    S.LOST: dict(
        start="-", fork_failed="-", ready="-", assign="-", job_done="-", cancel="-", refresh="-", misbehaved="-"
    )
    | dict(died="-", swept="-", gpu_back=S.STARTING, stop=S.PARKED),
    S.HELD: dict(
        gpu_lost=S.LOST,
        start=S.STARTING,
        fork_failed="-",
        ready="-",
        assign="-",
        job_done="-",
        cancel="-",
        refresh=S.STARTING,
    )
    | dict(misbehaved="-", died="-", swept="-", released=S.STARTING, stop=S.PARKED),
}

for _state, _row in TABLE.items():
    _row["unforked"] = S.RELEASING if _state is S.ENDING else "-"
    _row["resume"] = "-"  # none of them is paused
    _row["pause"] = {
        S.PARKED: "-",
        S.STARTING: S.ENDING,
        S.IDLE: S.ENDING,
        S.BACKOFF: S.PARKED,
        S.BROKEN: S.PARKED,
    }.get(_state, _state)
    _row["changed"] = {
        S.STARTING: S.ENDING,
        S.IDLE: S.ENDING,
        S.BACKOFF: S.STARTING,
        S.BROKEN: S.STARTING,
    }.get(_state, _state)


@pytest.mark.parametrize(("state", "name"), [(state, name) for state in TABLE for name in EVENTS])
def test_table(state, name):
    expected = TABLE[state].get(name, state)
    before = slot(state)
    if expected == "-":
        with pytest.raises(IllegalStepError, match=f"gpu0 is {state.value}"):
            MACHINE.step(before, EVENTS[name], 100.0)
    else:
        after, _ = MACHINE.step(before, EVENTS[name], 100.0)
        assert after.state is expected


def play(machine, before, *events, now=100.0):
    actions = []
    for event in events:
        before, more = machine.step(before, event, now)
        actions += more
    return before, actions


def test_a_refresh_goes_through_its_steps_in_order():
    after, actions = play(
        MACHINE, slot(S.BUSY, has_gpu=True), steps.JobDone("job", refresh=c.RefreshCause(c.RefreshBy.HANDLER))
    )
    assert (after.state, actions) == (S.ENDING, [steps.Measure()])
    after, actions = play(MACHINE, after, steps.Measured(), now=100.002)
    assert actions == [steps.Send(wire.Exit())]
    assert after.deadline == pytest.approx(100.002 + ASK_S)
    after, actions = play(MACHINE, after, steps.WorkerExited(c.Exited(0)), steps.TreeSwept(), now=100.01)
    assert (after.state, actions) == (S.RELEASING, [steps.WatchRelease()])
    after, actions = play(MACHINE, after, steps.Released(812), now=100.5)
    assert (after.state, actions) == (S.STARTING, [steps.ForkWorker(4)])
    after, actions = play(MACHINE, after, steps.WorkerForked(8), steps.WorkerLoaded(1), now=100.51)
    assert after.state is S.IDLE
    assert (after.refreshes, after.restarts, after.jobs) == (1, 0, 1)
    (report,) = actions
    assert report.cause == c.RefreshCause(c.RefreshBy.HANDLER)
    assert (report.end_s, report.release_s, report.start_s) == pytest.approx((0.01, 0.49, 0.01))
    assert (report.freed_mib, report.verified) == (812, True)


def test_a_worker_that_does_not_exit_is_terminated_then_killed():
    after, actions = play(MACHINE, slot(S.IDLE), steps.RefreshRequested(c.RefreshCause(c.RefreshBy.HAND)))
    assert actions == [steps.Send(wire.Exit())]
    after, actions = play(MACHINE, after, steps.Tick(), now=100.0 + ASK_S)
    assert actions == [steps.SendSignal(signal.SIGTERM)]
    after, actions = play(MACHINE, after, steps.Tick(), now=100.0 + ASK_S + 4.9)
    assert actions == []
    after, actions = play(MACHINE, after, steps.Tick(), now=100.0 + ASK_S + 5.0)
    assert actions == [steps.SendSignal(STACK_SIGNAL)]  # where it hangs
    after, actions = play(MACHINE, after, steps.Tick(), now=100.0 + ASK_S + 5.0 + STACK_S)
    assert actions == [steps.KillTree()]
    assert after.next is Next.REFRESH


def test_a_worker_that_survives_sigkill_is_spoken_of_and_waited_for():
    after, _ = play(MACHINE, slot(S.BUSY, pid=41), steps.ProtocolViolated(NONSENSE))
    after, actions = play(MACHINE, after, steps.Tick(), now=100.0 + KILL_S)
    (warning,) = actions
    assert warning == notice.WorkerStuck("gpu0", c.StuckInKernel(41, KILL_S))
    assert (after.state, after.reason, after.cause, after.deadline) == (S.ENDING, warning.obstacle, NONSENSE, None)
    after, lost = play(MACHINE, after, steps.WorkerExited(KILLED), steps.TreeSwept(), steps.Released(), now=500.0)
    assert (after.state, after.reason) == (S.STARTING, NONSENSE)
    assert lost[0] == steps.ReportJobLost("job", NONSENSE, charged=True)


def test_a_crash_costs_the_job_an_attempt_and_counts_as_restart():
    after, actions = play(MACHINE, slot(S.BUSY), steps.WorkerExited(CRASHED))
    assert actions == [steps.ReportJobLost("job", CRASHED, charged=True)]
    after, actions = play(MACHINE, after, steps.TreeSwept(), steps.Released())
    assert (after.state, after.restarts, after.refreshes, after.failures) == (S.STARTING, 1, 0, 0)


def test_a_cancelled_coroutine_is_told_first_and_loses_its_worker_after_the_grace():
    after, actions = play(MACHINE, slot(S.BUSY), steps.CancelJob("job", gently=True))
    assert (after.state, actions, after.deadline) == (S.BUSY, [steps.Send(wire.Cancel("job"))], 105.0)
    assert after.room == 0
    ended, actions = play(MACHINE, after, steps.JobDone("job"))
    assert (ended.state, ended.deadline, actions) == (S.IDLE, None, [])
    stubborn, actions = play(MACHINE, after, steps.Tick(), now=105.0)
    assert (stubborn.state, actions) == (S.ENDING, [steps.SendSignal(STACK_SIGNAL)])
    stubborn, actions = play(MACHINE, stubborn, steps.Tick(), now=105.0 + STACK_S)
    assert actions == [steps.SendSignal(signal.SIGTERM)]
    _, actions = play(MACHINE, stubborn, steps.Tick(), now=111.0)
    assert actions == [steps.KillTree()]  # its stacks were shown
    gone, actions = play(MACHINE, stubborn, steps.WorkerExited(TERMINATED))
    assert actions == []  # the job has ended as cancelled already
    assert gone.restarts == 1


def test_a_sibling_of_a_cancelled_job_is_not_charged():
    both = slot(S.BUSY, capacity=2, running=("job", "sibling"))
    after, _ = play(MACHINE, both, steps.CancelJob("job", gently=False))
    _, actions = play(MACHINE, after, steps.WorkerExited(TERMINATED))
    assert actions == [steps.ReportJobLost("sibling", TERMINATED, charged=False)]


def test_a_worker_that_breaks_the_protocol_is_killed_and_its_job_blamed():
    after, actions = play(MACHINE, slot(S.BUSY), steps.ProtocolViolated(NONSENSE))
    assert (actions, after.end_step) == ([steps.KillTree()], EndStep.KILL)
    _, actions = play(MACHINE, after, steps.WorkerExited(KILLED))
    assert actions == [steps.ReportJobLost("job", NONSENSE, charged=True)]


def test_the_death_of_the_template_charges_nobody():
    after, actions = play(MACHINE, slot(S.BUSY), steps.TemplateDied())
    lost, release = actions
    assert (lost.charged, release) == (False, steps.WatchRelease())
    assert after.next is Next.RESTART


def test_the_death_of_the_template_is_a_restart_whatever_became_of_the_last_worker():
    after, _ = play(
        MACHINE, slot(S.BUSY), steps.WorkerExited(CRASHED), steps.TreeSwept(), steps.Released(), steps.WorkerLoaded(1)
    )
    after, _ = play(MACHINE, after, steps.TemplateDied())
    assert after.restarts == 2
    after, _ = play(MACHINE, slot(S.BUSY), steps.WorkerExited(CRASHED), steps.TemplateDied())
    assert after.restarts == 1  # it was counted


def test_failed_starts_back_off_longer_and_longer_and_then_the_slot_is_broken():
    after = slot(S.STARTING, failures=0)
    for count, pause in enumerate((*BACKOFF_S, BROKEN_RETRY_S), start=1):
        after, actions = play(MACHINE, after, steps.WorkerExited(EXITED), steps.TreeSwept(), steps.Released())
        kind = notice.SlotBroken if count > len(BACKOFF_S) else notice.StartFailed
        assert actions[-1] == kind("gpu0", EXITED, pause)
        assert after.deadline == 100.0 + pause
        before_time, _ = play(MACHINE, after, steps.Tick(), now=100.0 + pause - 0.1)
        assert before_time.state is after.state
        after, _ = play(MACHINE, after, steps.Tick(), now=100.0 + pause)
        assert after.state is S.STARTING
    assert after.restarts == 0


def test_a_worker_that_is_given_a_job_forgives_failed_starts():
    after, _ = play(MACHINE, slot(S.IDLE, failures=4), steps.Assign("job"), steps.CancelJob("job", gently=False))
    after, actions = play(MACHINE, after, steps.WorkerExited(TERMINATED), steps.TreeSwept(), steps.Released())
    assert (after.state, actions[-1]) == (S.STARTING, steps.ForkWorker(4))


def test_a_worker_that_still_loads_is_replaced_by_a_refresh_at_once():
    after, actions = play(MACHINE, slot(S.STARTING), steps.RefreshRequested(c.RefreshCause(c.RefreshBy.RELOAD)))
    assert (after.state, actions) == (S.ENDING, [steps.SendSignal(signal.SIGTERM)])
    after, actions = play(MACHINE, after, steps.WorkerExited(TERMINATED), steps.TreeSwept(), steps.Released())
    assert (after.state, after.restarts, after.failures, actions[-1]) == (S.STARTING, 0, 0, steps.ForkWorker(4))


@pytest.mark.parametrize("moment", range(4))
def test_a_slot_does_not_back_off_from_a_handler_that_has_changed(moment):
    """Whenever that is on the way from the death to the next start."""
    way = [steps.WorkerExited(c.HandlerNotLoaded("a slip")), steps.TreeSwept(), steps.Released()]
    events = [*way[:moment], steps.HandlerChanged(), *way[moment:]]
    after, actions = play(MACHINE, slot(S.STARTING, failures=4), *events)
    assert (after.state, after.failures, after.restarts, actions[-1]) == (S.STARTING, 0, 0, steps.ForkWorker(4))


def test_a_handler_that_changes_while_its_slot_is_being_paused_is_loaded_when_it_is_resumed():
    events = [steps.PauseRequested(c.PausedByHand()), steps.HandlerChanged(), steps.ResumeRequested()]
    after, actions = play(MACHINE, slot(S.BUSY), *events)
    assert (after.refresh_cause, after.room, actions) == (c.RefreshCause(c.RefreshBy.RELOAD), 0, [])
    after, actions = play(MACHINE, after, steps.JobDone("job"))
    assert (after.state, after.next, actions) == (S.ENDING, Next.REFRESH, [steps.Send(wire.Exit())])


def test_stopped_at_once_between_the_death_and_the_sweep():
    after, _ = play(MACHINE, slot(S.BUSY), steps.WorkerExited(CRASHED), steps.Stop(at_once=True))
    assert (after.end_step, after.next) == (EndStep.DEAD, Next.PARK)
    after, actions = play(MACHINE, after, steps.TreeSwept(), steps.Released())
    assert (after.state, actions) == (S.PARKED, [])


def test_start_timeout():
    machine = StateMachine(Rules(start_timeout=60.0))
    after, _ = play(machine, slot(S.PARKED), steps.Start())
    assert after.deadline == 160.0
    after, actions = play(machine, after, steps.Tick(), now=160.0)
    assert actions == [steps.SendSignal(STACK_SIGNAL)]
    assert after.cause == c.StartTimedOut(60.0)
    after, actions = play(machine, after, steps.Tick(), now=161.0)
    assert actions == [steps.SendSignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("rules", "jobs_before", "refreshed"),
    [
        (Rules(), 0, None),
        (Rules(refresh_worker=True), 0, c.RefreshCause(c.RefreshBy.EACH_JOB)),
        (Rules(refresh_after_jobs=3), 1, None),
        (Rules(refresh_after_jobs=3), 2, c.RefreshCause(c.RefreshBy.SOME_JOBS)),
    ],
)
def test_refresh_by_option(rules, jobs_before, refreshed):
    after, _ = play(StateMachine(rules), slot(S.BUSY, jobs_in_worker=jobs_before), steps.JobDone("job"))
    assert after.refresh_cause == refreshed
    assert after.state is (S.ENDING if refreshed else S.IDLE)


def test_a_full_gpu_refreshes_the_worker_if_that_is_wanted():
    full = steps.JobDone("job", out_of_memory=True)
    assert play(MACHINE, slot(S.BUSY), full)[0].state is S.IDLE
    after, _ = play(StateMachine(Rules(refresh_on_oom=True)), slot(S.BUSY), full)
    assert (after.state, after.refresh_cause) == (S.ENDING, c.RefreshCause(c.RefreshBy.FULL_GPU))
    sticky = steps.JobDone("job", c.RefreshCause(c.RefreshBy.CUDA_ERROR, "launch failure"), out_of_memory=True)
    after, _ = play(StateMachine(Rules(refresh_on_oom=True)), slot(S.BUSY), sticky)
    assert after.refresh_cause == c.RefreshCause(c.RefreshBy.CUDA_ERROR, "launch failure")


ABOVE = StateMachine(Rules(refresh_above=500))


def test_what_the_worker_holds_is_read_when_its_job_has_ended_and_may_be_too_much():
    after, actions = play(ABOVE, slot(S.BUSY, has_gpu=True), steps.JobDone("job"))
    assert (after.state, actions) == (S.IDLE, [steps.Measure()])
    before_the_end = steps.MemoryExceeded(900, 99.9)
    after, actions = play(ABOVE, after, before_the_end, now=100.1)
    assert (after.state, actions) == (S.IDLE, [])
    after, actions = play(ABOVE, after, steps.MemoryExceeded(900, 100.0), now=100.1)
    assert (after.state, after.refresh_cause, actions) == (
        S.ENDING,
        c.RefreshCause(c.RefreshBy.HELD_MEMORY),
        [steps.Measure()],
    )
    assert after.since == 100.1


def test_a_job_that_comes_before_the_reading_runs_and_its_end_is_read_again():
    idle, _ = play(ABOVE, slot(S.BUSY, has_gpu=True), steps.JobDone("job"))
    busy, actions = play(ABOVE, idle, steps.Assign("next"), steps.MemoryExceeded(900, 100.0))
    assert (busy.state, busy.refresh_cause, actions) == (S.BUSY, None, [])
    after, actions = play(ABOVE, busy, steps.JobDone("next"), steps.MemoryExceeded(900, 100.5), now=101.0)
    assert (after.state, actions) == (S.IDLE, [steps.Measure()])


def test_a_worker_that_holds_too_much_without_a_job_is_said_once_and_stays():
    ready, actions = play(ABOVE, slot(S.STARTING, has_gpu=True), steps.WorkerLoaded(1))
    assert actions == [steps.Measure()]
    after, actions = play(ABOVE, ready, steps.MemoryExceeded(900, 100.0), steps.MemoryExceeded(901, 100.1))
    assert (after.state, actions) == (S.IDLE, [notice.HoldsWithoutJob("gpu0", 900, 500)])
    # Nor is the next generation's, which the end of a job brings.
    after, _ = play(ABOVE, after, steps.Assign("job"), steps.JobDone("job"), steps.MemoryExceeded(900, 100.0))
    assert (after.state, after.cause) == (S.ENDING, c.RefreshCause(c.RefreshBy.HELD_MEMORY))
    ended = (
        steps.Measured(),
        steps.WorkerExited(c.Exited(0)),
        steps.TreeSwept(),
        steps.Released(900),
        steps.WorkerLoaded(1),
    )
    after, actions = play(ABOVE, after, *ended, steps.MemoryExceeded(900, 100.0))
    assert (after.state, after.refreshes, after.jobs_in_worker) == (S.IDLE, 1, 0)
    assert not [action for action in actions if isinstance(action, notice.HoldsWithoutJob)]


@pytest.mark.parametrize(("rules", "has_gpu"), [(Rules(), True), (Rules(refresh_above=500), False)])
def test_nothing_is_read_where_it_means_nothing(rules, has_gpu):
    _, actions = play(StateMachine(rules), slot(S.BUSY, has_gpu=has_gpu), steps.JobDone("job"))
    assert actions == []


def test_a_refresh_waits_for_the_other_jobs_and_takes_no_new_ones():
    both = slot(S.BUSY, capacity=3, running=("job", "other"))
    after, _ = play(MACHINE, both, steps.JobDone("job", refresh=c.RefreshCause(c.RefreshBy.HANDLER)))
    assert (after.state, after.room) == (S.BUSY, 0)
    after, actions = play(MACHINE, after, steps.JobDone("other"))
    assert (after.state, actions) == (S.ENDING, [steps.Send(wire.Exit())])


@pytest.mark.parametrize("state", [S.IDLE, S.STARTING])
def test_a_refresh_that_memory_held_up_reports_who_asked_for_it(state):
    _, actions = play(
        MACHINE,
        slot(state),
        steps.RefreshRequested(c.RefreshCause(c.RefreshBy.HANDLER)),
        steps.Measured(),
        steps.WorkerExited(c.Exited(0)),
        steps.TreeSwept(),
        steps.MemoryHeld(HELD),
        steps.Released(900),
        steps.WorkerLoaded(1),
    )
    assert [action.cause for action in actions if isinstance(action, notice.Refreshed)] == [
        c.RefreshCause(c.RefreshBy.HANDLER)
    ]


def test_held_memory_keeps_the_slot_out_until_it_clears_or_by_hand():
    held = slot(S.HELD, next=Next.REFRESH, cause=c.RefreshCause(c.RefreshBy.HANDLER), obstacle=HELD)
    assert held.reason == HELD
    cleared, actions = play(MACHINE, held, steps.Released(900))
    assert (cleared.state, actions, cleared.refreshes, cleared.obstacle) == (S.STARTING, [steps.ForkWorker(4)], 1, None)
    forced, _ = play(MACHINE, held, steps.RefreshRequested(c.RefreshCause(c.RefreshBy.HAND)))
    assert (forced.state, forced.verified) == (S.STARTING, False)


def test_a_lost_gpu_ends_its_worker_and_comes_back():
    after, actions = play(MACHINE, slot(S.BUSY), steps.GpuLost(LOST))
    assert (after.state, actions) == (S.ENDING, [steps.KillTree()])
    after, actions = play(MACHINE, after, steps.WorkerExited(KILLED), steps.TreeSwept())
    assert actions == [steps.ReportJobLost("job", LOST, charged=True)]
    assert (after.state, after.cause, after.room) == (S.LOST, LOST, 0)
    after, actions = play(MACHINE, after, steps.GpuBack())
    assert (after.state, actions, after.restarts) == (S.STARTING, [steps.ForkWorker(4)], 1)


def test_a_gpu_that_is_back_before_its_worker_is_gone():
    after, _ = play(MACHINE, slot(S.IDLE), steps.GpuLost(LOST), steps.GpuBack())
    after, actions = play(MACHINE, after, steps.WorkerExited(KILLED), steps.TreeSwept())
    assert (after.state, actions) == (S.RELEASING, [steps.WatchRelease()])


def test_stop_parks_the_slot():
    after, actions = play(MACHINE, slot(S.BUSY), steps.Stop())
    assert actions == [steps.SendSignal(signal.SIGTERM)]
    after, actions = play(MACHINE, after, steps.WorkerExited(TERMINATED), steps.TreeSwept(), steps.Released())
    assert after.state is S.PARKED
    assert actions[0] == steps.ReportJobLost("job", TERMINATED, charged=False)
    _, actions = play(MACHINE, slot(S.BUSY), steps.Stop(at_once=True))
    assert actions == [steps.KillTree()]


def test_room_is_what_the_capacity_leaves():
    assert slot(S.IDLE, capacity=4).room == 4
    assert slot(S.BUSY, capacity=4).room == 3
    assert slot(S.STARTING, capacity=4).room == 0
    assert slot(S.BUSY, capacity=1, running=("one", "two")).room == 0  # it chose a smaller capacity meanwhile
