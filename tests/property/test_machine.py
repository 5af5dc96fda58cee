"""Whatever template, worker, memory, GPU, user and clock do to a slot, in any order: its state makes sense and leads on."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from supervisor import cause as c
from supervisor.pool.slots import steps
from supervisor.pool.slots.machine import StateMachine
from supervisor.pool.slots.rules import IllegalStepError, Rules
from supervisor.pool.slots.slot import EndStep, Slot, SlotState

S = SlotState
UNKNOWN = (c.UnknownGpu(c.Unknown.NO_READING),)
WITH_WORKER = (S.STARTING, S.IDLE, S.BUSY, S.ENDING)
AT_REST = (S.IDLE, S.PARKED, S.LOST, S.HELD, S.BROKEN, S.BACKOFF)
RARE = st.sampled_from((False, False, True))
BOUND = 40
"""Steps after which a slot is at rest when all that it asks for is done."""


class SlotLife(RuleBasedStateMachine):
    """One slot and what surrounds it: ``worker`` is None, ``asked`` for, ``loading``, ``ready`` or ``dead`` but not swept."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.worker = None
        self.memory_free = True
        self.watching = False
        self.measuring = False
        self.generations = [0]
        self.ends = {}
        self.cancelled = set()
        self.wants_refresh = False

    @initialize(
        gpu=st.booleans(),
        rules=st.builds(
            Rules,
            grace=st.sampled_from((0.0, 0.5, 5.0)),
            start_timeout=st.sampled_from((0.0, 20.0)),
            refresh_worker=st.booleans(),
            refresh_after_jobs=st.sampled_from((0, 0, 2)),
            refresh_above=st.sampled_from((0, 500)),
            refresh_on_oom=st.booleans(),
        ),
    )
    def begins(self, gpu, rules):
        self.rules = rules
        self.machine = StateMachine(rules)
        self.slot = Slot("gpu0", 0, has_gpu=gpu)
        self.step(steps.Start())

    # --- a step, and what it asks for

    def step(self, event):
        self.slot, actions = self.machine.step(self.slot, event, self.now)
        if self.slot.state not in (S.RELEASING, S.HELD):
            self.watching = False
        for action in actions:
            getattr(self, f"on_{type(action).__name__}", lambda _: None)(action)

    def on_ForkWorker(self, action):  # noqa: N802 - the action's name
        assert self.worker is None, "two workers in one slot"
        assert self.memory_free, "a worker before the memory of the last one is free"
        assert action.generation == self.slot.generation > self.generations[-1]
        self.generations.append(action.generation)
        self.worker = "asked"
        self.wants_refresh = False

    def on_WatchRelease(self, _):  # noqa: N802
        assert self.worker is None
        self.watching = self.slot.state in (S.RELEASING, S.HELD)

    def on_Measure(self, _):  # noqa: N802
        assert self.slot.has_gpu
        self.measuring = True

    def on_ReportJobLost(self, action):  # noqa: N802
        self.job_ends(action.job)

    def on_Refreshed(self, report):  # noqa: N802
        assert min(report.end_s, report.release_s, report.start_s) >= 0

    def on_StartFailed(self, action):  # noqa: N802
        assert self.slot.deadline == self.now + action.retry_s
        assert action.end == self.slot.cause

    on_SlotBroken = on_StartFailed  # noqa: N815

    def job_ends(self, job):
        self.ends[job] += 1
        assert self.ends[job] == 1, "a job ended twice"

    def by_hand(self, event):
        """A person may ask for anything; what cannot be changes nothing."""
        before = self.slot
        try:
            self.step(event)
        except IllegalStepError:
            assert self.slot is before
            return False
        return True

    def worker_is(self, *states):
        return self.worker in states

    # --- the template and the worker

    @precondition(lambda self: self.worker == "asked")
    @rule()
    def is_forked(self):
        self.worker = "loading"
        self.memory_free = False
        self.step(steps.WorkerForked(40))

    @precondition(lambda self: self.worker == "asked")
    @rule()
    def cannot_be_forked(self):
        self.worker = None
        self.step(steps.WorkerForkFailed(c.ForkRefused("no memory")))

    @precondition(lambda self: self.worker == "loading")
    @rule(capacity=st.sampled_from((-1, 1, 2, 3)))
    def is_ready(self, capacity):
        self.worker = "ready"
        self.step(steps.WorkerLoaded(capacity))

    @precondition(lambda self: self.worker == "ready")
    @rule(capacity=st.integers(-1, 3))
    def changes_its_capacity(self, capacity):
        self.step(steps.CapacityChanged(capacity))

    @precondition(lambda self: self.worker in ("loading", "ready"))
    @rule(really=RARE)
    def dies(self, really=True):
        if really:
            self.worker = "dead"
            self.step(steps.WorkerExited(c.Signalled(9)))

    @precondition(lambda self: self.worker == "dead")
    @rule()
    def is_swept(self):
        self.worker = None
        self.step(steps.TreeSwept())

    @precondition(lambda self: self.worker in ("loading", "ready"))
    @rule(really=RARE)
    def breaks_the_protocol(self, really=True):
        if really:
            self.step(steps.ProtocolViolated(c.ProtocolBroken("wrote nonsense")))

    @rule(really=RARE)
    def the_template_dies(self, really=True):
        if really:
            self.worker = None
            self.step(steps.TemplateDied())

    # --- jobs

    @precondition(lambda self: self.slot.room > 0)
    @rule(count=st.integers(1, 3))
    def gets_jobs(self, count):
        for _ in range(min(count, self.slot.room)):
            job = f"job-{len(self.ends)}"
            self.ends[job] = 0
            self.step(steps.Assign(job))

    @precondition(lambda self: self.worker == "ready" and self.slot.running)
    @rule(pick=st.integers(0, 2), refresh=st.booleans(), full=st.booleans())
    def ends_a_job(self, pick, refresh, full):
        job = self.slot.running[pick % len(self.slot.running)]
        if job not in self.cancelled:
            self.job_ends(job)
        self.wants_refresh = self.wants_refresh or refresh
        self.step(steps.JobDone(job, c.RefreshCause(c.RefreshBy.HANDLER) if refresh else None, full))

    @precondition(lambda self: self.slot.running)
    @rule(pick=st.integers(0, 2), gently=st.booleans(), stuck=st.booleans())
    def is_told_to_cancel(self, pick, gently, stuck):
        job = self.slot.running[pick % len(self.slot.running)]
        if job not in self.cancelled:
            self.cancelled.add(job)
            self.job_ends(job)
        self.step(steps.CancelJob(job, gently, stuck))

    # --- memory and GPUs

    @precondition(lambda self: self.measuring)
    @rule()
    def is_measured(self):
        self.measuring = False
        self.step(steps.Measured())

    @precondition(lambda self: self.watching)
    @rule(verified=st.booleans())
    def its_memory_is_free(self, verified):
        self.memory_free = True
        self.step(steps.Released(12 if verified else None, verified, () if verified else UNKNOWN))

    @precondition(lambda self: self.watching and self.slot.has_gpu)
    @rule()
    def its_memory_is_held(self):
        self.step(steps.MemoryHeld(c.MemoryStaysInUse((c.HeldGpu(900),))))

    @precondition(lambda self: self.slot.has_gpu)
    @rule(ago=st.sampled_from((0.0, 5.0)))
    def holds_too_much(self, ago):
        self.step(steps.MemoryExceeded(900, self.now - ago))

    @precondition(lambda self: self.slot.has_gpu)
    @rule(really=RARE)
    def its_gpu_is_lost(self, really=True):
        if really:
            self.step(steps.GpuLost(c.GpusLost((c.LostGpu(0),))))

    @precondition(lambda self: self.slot.has_gpu)
    @rule()
    def its_gpu_is_back(self):
        if self.slot.state is S.LOST:
            self.memory_free = True  # a GPU that was reset holds nothing
        self.step(steps.GpuBack())

    # --- hand and clock

    @rule(
        event=st.sampled_from(
            (
                steps.RefreshRequested(c.RefreshCause(c.RefreshBy.HAND)),
                steps.HandlerChanged(),
                steps.PauseRequested(c.PausedByHand()),
                steps.PauseRequested(c.SpareCause(idle_s=60.0)),
                steps.ResumeRequested(),
            )
        )
    )
    def somebody_asks(self, event):
        if self.slot.state is S.HELD and isinstance(event, steps.RefreshRequested):
            self.memory_free = True  # overridden
        self.by_hand(event)

    @rule(seconds=st.sampled_from((0.0, 0.06, 0.2, 1.5, 6.0, 12.0, 400.0)))
    def time_passes(self, seconds):
        self.now += seconds
        self.step(steps.Tick())

    # --- what must hold

    @invariant()
    def makes_sense(self):
        slot = self.slot
        assert slot.room == 0 or slot.state in (S.IDLE, S.BUSY)
        assert not slot.running or slot.state in (S.BUSY, S.ENDING)
        assert slot.running or slot.state is not S.BUSY
        assert set(slot.cancelling) <= set(slot.running)
        assert len(set(slot.running)) == len(slot.running)
        assert slot.pid is None or slot.state in WITH_WORKER
        assert (self.worker is not None) == (slot.state in WITH_WORKER)
        assert (slot.end_step is EndStep.DEAD) == (self.worker == "dead") or slot.state is not S.ENDING
        assert {job for job, ends in self.ends.items() if not ends} == set(slot.running) - self.cancelled
        assert not self.wants_refresh or slot.room == 0, "a worker that is to be replaced takes jobs"
        assert not slot.pausing or slot.room == 0, "a paused worker takes jobs"
        assert not slot.spare or slot.pausing
        assert slot.state is not S.HELD or isinstance(slot.reason, c.MemoryStaysInUse)
        assert slot.state is not S.LOST or isinstance(slot.reason, c.GpusLost)
        assert slot.obstacle is None or slot.state in (S.HELD, S.ENDING, S.PARKED)
        assert slot.reason is not None or slot.state not in (S.ENDING, S.BACKOFF, S.BROKEN, S.HELD, S.LOST)

    @invariant()
    def something_will_wake_it(self):
        slot = self.slot
        assert {
            S.STARTING: (slot.deadline is not None or not self.rules.start_timeout)
            and self.worker in ("asked", "loading"),
            S.IDLE: slot.deadline is None,
            S.BUSY: (slot.deadline is not None) == bool(slot.cancelling),
            # The last step has nothing behind it but the worker's death, which a call into a driver can put off.
            S.ENDING: slot.end_step is EndStep.DEAD or slot.deadline is not None or slot.end_step is EndStep.KILL,
            S.RELEASING: self.watching,
            S.HELD: self.watching,
            S.BACKOFF: slot.deadline is not None,
            S.BROKEN: slot.deadline is not None,
            S.LOST: slot.has_gpu,  # NVML will say when it is back
            S.PARKED: True,  # whoever stopped or paused it
        }[slot.state]

    # --- where it leads

    def comes_to(self, *states):
        """Do what the slot asks for, and let its deadlines pass, until it is in one of ``states``."""
        for _ in range(BOUND):
            if self.slot.state in states:
                return
            if self.worker == "dead":
                self.is_swept()
            elif self.watching:
                self.its_memory_is_free(True)
            elif self.slot.state is S.ENDING and self.worker == "asked":
                self.cannot_be_forked()
            elif self.slot.state is S.ENDING and (self.slot.end_step is EndStep.KILL or self.slot.deadline is None):
                self.dies()
            elif self.slot.state is S.STARTING:
                self.is_forked() if self.worker == "asked" else self.is_ready(1)
            elif self.slot.state is S.BUSY and not self.slot.cancelling:
                self.ends_a_job(0, False, False)
            elif self.slot.state is S.LOST:
                self.its_gpu_is_back()
            else:
                self.time_passes(max(0.0, self.slot.deadline - self.now))
            self.makes_sense()
            self.something_will_wake_it()
        raise AssertionError(f"after {BOUND} steps: {self.slot}")

    def teardown(self):
        if not hasattr(self, "slot"):
            return
        self.comes_to(*AT_REST)
        if self.slot.state is not S.PARKED:
            self.by_hand(steps.PauseRequested(c.PausedByHand()))
            self.comes_to(S.PARKED)
        assert self.by_hand(steps.ResumeRequested()) == (self.slot.state is S.STARTING)
        if self.slot.state is not S.PARKED:
            self.comes_to(S.IDLE)
            self.gets_jobs(1)
        if self.slot.state is not S.PARKED:
            self.step(steps.Stop(at_once=bool(len(self.ends) % 2)))
            self.comes_to(S.PARKED)
        assert self.worker is None
        assert all(ends == 1 for ends in self.ends.values()), "a job never ended"


def test_a_slot_makes_sense_whatever_happens_to_it(examples):
    run_state_machine_as_test(SlotLife, settings=examples(50, steps=40))


class Stopped(SlotLife):
    """The same with a supervisor that stops at any moment."""

    stopped = False

    @rule(at_once=st.booleans())
    def the_supervisor_stops(self, at_once):
        if self.slot.state is not S.PARKED:
            self.stopped = True
            self.step(steps.Stop(at_once))

    def by_hand(self, event):
        return not self.stopped and super().by_hand(event)

    def teardown(self):
        if hasattr(self, "slot"):
            if self.slot.state is not S.PARKED:
                self.step(steps.Stop())
            self.comes_to(S.PARKED)


def test_a_slot_that_is_stopped_is_parked_in_the_end(examples):
    run_state_machine_as_test(Stopped, settings=examples(25, steps=30))
