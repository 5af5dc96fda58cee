"""Whatever workers, clients, disk, clocks and GPUs do, in any order: each accepted job ends once, and what was seen stays so."""

import asyncio
import hashlib
import itertools
import sys
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from supervisor import cause as c
from supervisor.engine.scaling import bounds
from supervisor.errors import RequestError
from supervisor.job import HOST_KILL_STARTS, JobRequest, JobStatus
from supervisor.pool.slots import steps
from supervisor.pool.slots.slot import OUT_OF_SERVICE, SlotState
from supervisor.wire import messages as wire

URL = "http://receiver.test"
IDS = st.sampled_from("abcdefgh")
SLOTS = st.integers(0, 1)
RARE = st.sampled_from((False,) * 5 + (True,))
THEN = st.sampled_from(("settle", "settle", "one turn", "nothing"))
ROUNDS = 300
"""In so many rounds, a minute each, everything ends once all goes well again."""


class Record:
    """What is known of an accepted job: how often it was accepted, how it ended, what it printed and who got its chunks."""

    def __init__(self):
        self.acceptances = 1
        self.end = None
        self.printed = ""
        self.log_known = True
        self.handed = set()
        self.chunks_known = True


class Life(RuleBasedStateMachine):
    """Deeds of all kinds; some take effect in one turn together."""

    house_class = None

    def __init__(self):
        super().__init__()
        self.house = None
        self.records = {}
        self.asked = []
        self.takes = []
        self.unsure = set()
        self.unsure_retries = set()
        self.cancelled = set()
        self.purged = False
        self.queued = []
        self.seen = {}
        self.numbers = itertools.count()

    @initialize(
        slots=st.integers(1, 2),
        gpus=st.booleans(),
        slow=st.booleans(),
        options=st.fixed_dictionaries(
            {
                "max_attempts": st.integers(1, 3),
                "on_restart": st.sampled_from(("requeue", "requeue", "fail")),
                "requeue_streams": st.booleans(),
                "refresh_after_jobs": st.sampled_from((0, 0, 2)),
                "start_timeout": st.sampled_from((0, 20)),
                "max_queue": st.sampled_from((0, 0, 3)),
                "min_workers": st.sampled_from((None, None, 0, 1)),
                "max_workers": st.sampled_from((None, None, 1)),
                "idle_timeout": st.sampled_from((0, 5, 60)),
                "scale_after": st.sampled_from((0, 4)),
            }
        ),
    )
    def begins(self, slots, gpus, slow, options):
        self.house = self.house_class(slots, gpus, slow, **options)
        self.then("settle")
        self.are_ready("coroutine" if slow else "function", 2, "settle")
        for number in range(3):
            self.submits(None, False, number == 1, number == 2, None, 10_000 if number else None, False, "settle")

    @property
    def busy(self):
        return [worker for worker in self.house.workers if worker.jobs]

    def ids(self, *statuses):
        """The ids of jobs that were last seen in these states."""
        return sorted(job for job, status in self.seen.items() if status in statuses)

    # --- clients

    @rule(
        job=st.none() | IDS,
        low=st.booleans(),
        secret=st.booleans(),
        hook=st.booleans(),
        timeout=st.sampled_from((None, None, 3_000)),
        ttl=st.sampled_from((None, None, 10_000)),
        large=st.booleans(),
        then=THEN,
    )
    def submits(self, job, low, secret, hook, timeout, ttl, large, then):
        job = job or next((job for job in "abcdefgh" if job not in self.records), "a")
        extras = b'{"webhook":"%b"}' % URL.encode() if hook else None
        value = b'"%b"' % (b"x" * (3000 if large else 1))
        request = JobRequest(
            job, value, extras, b'{"key":"k"}' if secret else None, low, timeout_ms=timeout, ttl_ms=ttl
        )
        self.ask("submit", job, lambda: self.house.engine.submit(request))
        self.then(then)

    @precondition(lambda self: self.ids(JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS))
    @rule(pick=st.integers(0, 7), really=RARE, then=THEN)
    def cancels(self, pick, really, then):
        live = self.ids(JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)
        job = live[pick % len(live)] if really else "abcdefgh"[pick]
        self.ask("cancel", job, lambda: self.house.engine.cancel(job))
        self.then(then)

    @precondition(lambda self: self.ids(JobStatus.FAILED, JobStatus.TIMED_OUT))
    @rule(pick=st.integers(0, 7), then=THEN)
    def retries(self, pick, then):
        ended = self.ids(JobStatus.FAILED, JobStatus.TIMED_OUT)
        job = ended[pick % len(ended)]
        self.ask("retry", job, lambda: self.house.engine.retry(job))
        self.then(then)

    @rule(really=RARE, then=THEN)
    def purges(self, really, then):
        if really:
            self.ask("purge", None, self.house.engine.purge)
        self.then(then)

    @precondition(lambda self: self.ids(*JobStatus))
    @rule(pick=st.integers(0, 7), arrives=st.booleans(), then=THEN)
    def takes_chunks(self, pick, arrives, then):
        jobs = self.ids(JobStatus.IN_PROGRESS) or self.ids(*JobStatus)
        job = jobs[pick % len(jobs)]
        task = asyncio.ensure_future(self.house.engine.streams.take(job, 0), loop=self.house.loop)
        self.takes.append((job, task, arrives))
        self.then(then)

    @rule(job=IDS, then=THEN)
    def reads_chunks(self, job, then):
        task = asyncio.ensure_future(self.house.engine.streams.read(job, 0, 0), loop=self.house.loop)
        self.takes.append((job, task, None))
        self.then(then)

    @rule(slot=SLOTS, order=st.sampled_from(("refresh", "pause", "resume", "resume", "reload")), then=THEN)
    def orders_by_hand(self, slot, order, then):
        if order == "reload":
            self.house.engine.reload()
        else:
            step = getattr(self.house.engine.slots, order)
            self.asked.append((order, None, step(f"slot{slot % self.house.slots}")))
        self.then(then)

    def ask(self, what, job, call):
        refused = None
        try:
            self.asked.append((what, job, call()))
        except RequestError as error:
            refused = error.status
        assert refused in (None, 503 if self.house.engine._loop.refusal else 429)

    # --- workers

    def worker(self, slot):
        worker = self.house.worker(f"slot{slot % self.house.slots}")
        if worker is not None:
            worker.listen()
        return worker

    @precondition(lambda self: any(not worker.ready for worker in self.house.workers))
    @rule(kind=st.sampled_from(("function", "coroutine")), capacity=st.integers(1, 3), then=THEN)
    def are_ready(self, kind, capacity, then):
        for worker in self.house.workers:
            worker.listen()
            if not worker.ready:
                self.make_ready(worker, kind, capacity)
        self.then(then)

    @staticmethod
    def make_ready(worker, kind="function", capacity=1):
        worker.ready, worker.kind, worker.capacity = True, kind, 1 if kind == "function" else capacity
        worker.say(wire.Ready(worker.pid, kind, worker.capacity))

    @rule(status=st.sampled_from(("COMPLETED", "FAILED")), then=THEN)
    def all_do_what_they_should(self, status, then):
        for worker in self.house.workers:
            if worker.doomed:
                worker.dies(-15)
            elif not worker.ready:
                self.make_ready(worker)
        for slot in range(len(self.busy)):
            self.says_something(slot, 0, "chunk", "nothing")
            self.says_something(slot, 0, "print", "nothing")
        while self.busy:
            self.ends_a_job(0, 0, status, False, "nothing")
        self.then(then)

    @precondition(lambda self: self.busy)
    @rule(
        slot=SLOTS,
        pick=st.integers(0, 2),
        status=st.sampled_from(("COMPLETED", "COMPLETED", "FAILED")),
        refresh=RARE,
        then=THEN,
    )
    def ends_a_job(self, slot, pick, status, refresh, then):
        if self.busy:
            worker = self.busy[slot % len(self.busy)]
            job = list(worker.jobs)[pick % len(worker.jobs)]
            del worker.jobs[job]
            if job in worker.cancelled:
                status = "CANCELLED"
            error = "why" if status == "FAILED" else None
            worker.say(wire.Done(job, status, b"%d" % next(self.numbers), error, refresh=refresh))
        self.then(then)

    @precondition(lambda self: self.busy)
    @rule(slot=SLOTS, pick=st.integers(0, 2), what=st.sampled_from(("chunk", "progress", "print")), then=THEN)
    def says_something(self, slot, pick, what, then):
        if self.busy:
            worker = self.busy[slot % len(self.busy)]
            job = list(worker.jobs)[pick % len(worker.jobs)]
            number = next(self.numbers)
            if what == "chunk":
                worker.say(wire.Chunk(job, worker.jobs[job], b"%d" % number))
                worker.jobs[job] += 1
            elif what == "progress":
                worker.say(wire.Progress(job, b"%d" % number))
            elif worker.prints(f"line {number}\n") and job in self.records:
                active = self.house.engine._jobs.active.get(job)
                if worker.capacity == 1 and active is not None and active.slot == worker.slot:
                    self.records[job].printed += f"line {number}\n"
                else:
                    self.records[job].log_known = False
        self.then(then)

    @rule(
        slot=SLOTS,
        job=IDS,
        what=st.sampled_from(("garbage", "wrong end", "wrong chunk", "half", "ready", "load failed", "capacity")),
        really=RARE,
        then=THEN,
    )
    def talks_nonsense(self, slot, job, what, really, then):
        worker = self.worker(slot)
        if worker is None or not really:
            return
        if what == "garbage":
            worker.put(b"\x00\x00\x00\x03abc")
        elif what == "half":
            worker.put(b"\x00\x00\x10\x00abc")  # and never the rest
            worker.doomed = True
        elif what == "wrong end":
            worker.say(wire.Done(job, "COMPLETED"))
        elif what == "wrong chunk":
            worker.say(wire.Chunk(job, 77, b"1"))
        elif what == "ready":
            worker.say(wire.Ready(worker.pid, "coroutine", 3))
        elif what == "load failed":
            worker.say(wire.LoadFailed("raised", "no"))
        else:
            worker.say(wire.Capacity(2))
        worker.capacity = 3  # perhaps: nobody can tell who prints
        self.then(then)

    @rule(slot=SLOTS, status=st.sampled_from((-9, -11, 0, 1)), really=RARE, then=THEN)
    def dies(self, slot, status, really, then):
        worker = self.worker(slot)
        if worker is not None and really:
            worker.dies(status)
        self.then(then)

    @precondition(lambda self: any(worker.doomed for worker in self.house.workers))
    @rule(then=THEN)
    def those_told_to_end_do(self, then):
        for worker in self.house.workers:
            worker.listen()
            if worker.doomed:
                worker.dies(-15)
        self.then(then)

    @rule(really=RARE, then=THEN)
    def the_template_dies(self, really, then):
        if really:
            self.house.template.dies()
        self.then(then)

    @rule(refuses=st.booleans(), then=THEN)
    def forks_are_refused(self, refuses, then):
        self.house.template.refuses = refuses
        self.then(then)

    # --- GPUs, disk and clocks

    @precondition(lambda self: self.house.gpus)
    @rule(slot=SLOTS, what=st.sampled_from(("released",) * 4 + ("unverified", "held", "lost", "back", "overgrown")))
    def a_gpu_says(self, slot, what):
        name = f"slot{slot % self.house.slots}"
        memory = self.house.memory
        releasing = name in memory.releasing
        if what == "lost":
            memory.learn(name, steps.GpuLost(c.GpusLost((c.LostGpu(0),))))
        elif what == "back":
            memory.learn(name, steps.GpuBack())
        elif what == "overgrown":
            memory.learn(name, steps.MemoryExceeded(900, self.house.loop.now))
        elif releasing and what == "held":
            memory.learn(name, steps.MemoryHeld(c.MemoryStaysInUse((c.HeldGpu(900),))))
        elif releasing:
            unknown = () if what == "released" else (c.UnknownGpu(c.Unknown.NO_READING),)
            memory.learn(name, steps.Released(12, what == "released", unknown))
        self.then("settle")

    @rule(refuses=st.booleans())
    def the_disk(self, refuses):
        self.house.refusing = refuses
        self.house.loop.now += 0.6
        self.then("settle")

    @rule(seconds=st.sampled_from((0.1, 0.6, 1.1, 3.0, 6.0, 30.0)), then=THEN)
    def time_passes(self, seconds, then):
        self.house.loop.now += seconds
        self.house.clock.wall += int(seconds * 1000)
        self.then(then)

    @rule(seconds=st.sampled_from((-3600, -5, 5, 60)))
    def the_clock_is_set(self, seconds):
        self.house.clock.wall += seconds * 1000
        self.then("settle")

    @rule(turns=st.integers(0, 6), really=RARE)
    def is_killed_and_started_again(self, turns, really):
        if not really:
            return
        house = self.house
        house.spin(turns)
        self.look_at_answers(killed=True)
        house.kill()
        house.refusing = False
        for record in self.records.values():
            record.log_known = record.chunks_known = False
        house.begin()
        self.then("settle")

    @rule(hurry=st.booleans(), obedient=st.booleans(), really=RARE)
    def is_stopped_and_started_again(self, hurry, obedient, really):
        """A drain: jobs may end for 5 seconds, then all workers go and what still ran is queued again."""
        if not really:
            return
        house = self.house
        house.settle()
        self.look_at_answers()
        at_once = asyncio.Event()
        drain = asyncio.ensure_future(house.engine.drain(5.0, at_once), loop=house.loop)
        for second in range(60):
            house.settle()
            if drain.done():
                break
            if hurry and second == 2:
                at_once.set()
            for worker in house.workers:
                if obedient:
                    self.behave(worker)
            house.loop.now += 1
        drain.result()
        assert house.engine._loop.refusal is not None or not house.store.running()
        self.look_at_answers(killed=True)
        house.kill()
        house.refusing = False
        for record in self.records.values():
            record.log_known = record.chunks_known = False
        house.begin()
        self.then("settle")

    # --- what must hold

    def then(self, then):
        if then == "settle":
            self.house.settle()
            self.check()
            for worker in self.house.workers:
                worker.listen()
        elif then == "one turn":
            self.house.spin(1)

    def check(self):
        house = self.house
        assert not house.faults, house.faults
        self.look_at_answers()
        refused = house.engine._loop.refusal is not None
        for job_id in "abcdefgh":
            job = house.store.get(job_id)
            if job is None:
                assert job_id not in self.records, "an accepted job is gone"
                continue
            if job_id not in self.records:  # nobody was told of it
                assert job_id in self.unsure, "a job that nobody submitted"
                self.records[job_id] = Record()
            self.seen[job_id] = job.status
            self.check_job(job, self.records[job_id])
            if not refused:
                shown = house.engine.job(job_id)
                assert shown.replace(input=b"") == job.replace(input=b"")
        self.check_webhooks()
        if not refused:
            self.check_whole()

    def check_job(self, job, record):
        ended = (job.status, job.output, job.error, job.cause, job.ended_ms, record.acceptances)
        same = record.end is not None and record.end[-1] == record.acceptances
        if same and ended != record.end and job.id in self.unsure_retries:
            self.unsure_retries.discard(job.id)
            self.accepted_again(record)
            record.log_known = record.chunks_known = False
            ended = (*ended[:-1], record.acceptances)
        if record.end is not None and record.end[-1] == record.acceptances:
            assert ended == record.end, "an end that was seen has changed"
        if job.status.terminal:
            record.end = ended
        assert job.attempts <= max(HOST_KILL_STARTS, self.house.settings.max_attempts)
        if job.status in (JobStatus.COMPLETED, JobStatus.FAILED) and record.log_known:
            assert self.house.engine.logs.read(job.id).text == record.printed.encode()

    def check_webhooks(self):
        waiting = Counter(webhook.job for webhook in self.house.store.outbox.waiting(URL, 1000))
        for job_id, record in self.records.items():
            job = self.house.store.get(job_id)
            ends = record.acceptances if job.status.terminal else record.acceptances - 1
            assert waiting[job_id] == (ends if job.extras else 0), "not one webhook for each end"

    def check_whole(self):
        """Memory and store agree, nobody waits for nothing, the queue keeps its order, no secret outlives its job."""
        house = self.house
        jobs = [house.store.get(job_id) for job_id in self.records]
        at = {status: {job.id for job in jobs if job.status is status} for status in JobStatus}
        active, backlog = house.engine._jobs.active, house.engine._jobs.backlog
        assert set(active) == at[JobStatus.IN_PROGRESS]
        assert len(backlog) == len(at[JobStatus.IN_QUEUE])
        for job_id, running in active.items():
            slots = [slot.name for slot in house.pool.slots.values() if job_id in slot.running]
            assert running.slot in slots
            assert not [
                name for name in slots if name != running.slot and job_id not in house.pool.slots[name].cancelling
            ]
        assert not (backlog and any(slot.room for slot in house.pool.slots.values())), "a job and a worker wait"
        self.check_scaling(bool(backlog))
        counts, stored = house.engine.snapshot().jobs, house.store.counts()
        ended = Counter({status: len(ids) for status, ids in at.items()})
        assert dict(stored.jobs) == {status: ended[status] for status in JobStatus}
        assert (counts.completed, counts.failed, counts.in_progress, counts.in_queue, counts.retried) == (
            ended[JobStatus.COMPLETED],
            ended[JobStatus.FAILED] + ended[JobStatus.TIMED_OUT],
            ended[JobStatus.IN_PROGRESS],
            ended[JobStatus.IN_QUEUE],
            stored.retried,
        )
        live = {job.id for job in jobs if job.has_s3_config and not job.status.terminal}
        assert house.secret_files() == {hashlib.sha256(job_id.encode()).hexdigest() for job_id in live}
        self.check_order({job.id: job for job in jobs})

    def check_scaling(self, jobs_wait):
        slots = self.house.pool.slots.values()
        least, most = bounds(self.house.settings, len(slots))
        in_service = [slot for slot in slots if slot.state not in OUT_OF_SERVICE]
        staying = [slot for slot in in_service if not slot.pausing]
        spare = [slot for slot in slots if slot.spare and slot.state is SlotState.PARKED]
        assert all(slot.pausing for slot in slots if slot.spare)
        assert len(staying) <= most or all(slot.running for slot in staying), "more than --max-workers"
        if spare and len(in_service) < most:
            assert len(staying) >= least, "fewer than --min-workers"
            assert staying or not jobs_wait, "a job waits, and no worker starts"

    def check_order(self, jobs):
        """Of those that waited at the last look, none was started before an older one of its lane, or of the lane before."""
        passed = [
            place
            for place, job_id, retries in self.queued
            if jobs[job_id].retries == retries and jobs[job_id].started_ms is not None
        ]
        left = [
            place
            for place, job_id, retries in self.queued
            if jobs[job_id].retries == retries and jobs[job_id].status is JobStatus.IN_QUEUE
        ]
        assert not passed or not left or max(passed) < min(left), "a job was overtaken"
        self.queued = [
            ((job.low_priority, job.seq), job.id, job.retries)
            for job in jobs.values()
            if job.status is JobStatus.IN_QUEUE
        ]

    def look_at_answers(self, *, killed=False):
        asked, self.asked = self.asked, []
        refused = []
        for what, job_id, answer in asked:
            if not answer.done():
                self.look_at_no_answer(what, job_id, killed=killed)
                if not killed:
                    self.asked.append((what, job_id, answer))
            elif answer.exception() is not None:
                assert isinstance(answer.exception(), RequestError)
                assert answer.exception().status in (503, 409)
                if answer.exception().status == 503:
                    refused.append((what, job_id, str(answer.exception())))
            else:
                self.look_at_answer(what, job_id, answer.result())
        for refusal in refused:
            self.look_at_refusal(*refusal)
        takes, self.takes = self.takes, []
        for job_id, task, arrives in takes:
            if task.done():
                self.look_at_chunks(job_id, task.result(), arrives)
            elif killed:
                task.cancel()
            else:
                self.takes.append((job_id, task, arrives))

    def look_at_no_answer(self, what, job_id, *, killed):
        """Only while the disk refuses may one be missing. What it was about may have happened all the same."""
        house = self.house
        assert killed or house.engine._loop.refusal is not None or house.engine._loop.commands.purging, (
            f"{what}: no answer"
        )
        if what == "submit":
            self.unsure.add(job_id)
        elif what == "retry" and killed:
            self.unsure_retries.add(job_id)
        elif what == "cancel" and killed:
            self.cancelled.add(job_id)
        elif what == "purge":
            self.purged = True

    def look_at_refusal(self, what, job_id, text):
        """What was refused did not happen."""
        if what == "purge" and "were cancelled before" in text:
            self.purged = True
        job = self.house.engine.job(job_id) if what == "cancel" else None
        if job is not None and not self.purged and job_id not in {*self.cancelled, *(asked[1] for asked in self.asked)}:
            assert job.status is not JobStatus.CANCELLED, "refused, and done"
        if what in ("submit", "retry"):
            self.look_at_no_answer(what, job_id, killed=True)

    def look_at_answer(self, what, job_id, answer):
        if what == "submit":
            assert self.house.store.get(job_id) is not None, "answered and not on disk"
            self.records.setdefault(job_id, Record())
        elif what == "retry" and answer is not None:
            assert answer.status is JobStatus.IN_QUEUE
            self.unsure_retries.discard(job_id)
            self.accepted_again(self.records[job_id])
        elif what == "cancel" and answer is not None:
            assert answer.status.terminal
            self.cancelled.add(job_id)
        elif what == "purge":
            self.purged = True

    @staticmethod
    def accepted_again(record):
        record.acceptances += 1
        record.printed, record.log_known = "", True
        record.handed, record.chunks_known = set(), True

    def look_at_chunks(self, job_id, found, arrives):
        if found is None or arrives is None:
            return
        record = self.records.setdefault(job_id, Record())
        assert not record.handed & set(found.chunks.values), "a chunk was handed out twice"
        if arrives:
            record.handed |= set(found.chunks.values)
            found.confirm()
        else:
            found.release()
            self.house.settle()

    # --- the end

    def teardown(self):
        if self.house is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.all_goes_well()
        finally:
            self.house.close()

    def all_goes_well(self):
        house = self.house
        house.refusing = house.template.refuses = False
        for _ in range(ROUNDS):
            house.settle()
            self.check()
            jobs = [house.store.get(job_id) for job_id in self.records]
            if all(job.status.terminal for job in jobs) and all(
                slot.state is SlotState.IDLE or (slot.spare and slot.state is SlotState.PARKED)
                for slot in house.pool.slots.values()
            ):
                break
            for worker in house.workers:
                self.behave(worker)
            for name, slot in house.pool.slots.items():
                if slot.pausing and not slot.spare:
                    house.engine.slots.resume(name)
                if slot.state is SlotState.LOST:
                    house.memory.learn(name, steps.GpuBack())
                elif house.memory is not None and name in house.memory.releasing:
                    house.memory.learn(name, steps.Released(12))
            house.loop.now += 60
        else:
            states = [(slot.name, slot.state, slot.cause) for slot in house.pool.slots.values()]
            pytest.fail(f"it does not come to rest: {states}, {[(job.id, job.status) for job in jobs]}")
        assert not self.asked
        for job_id, record in self.records.items():
            self.check_chunks(job_id, record)

    def check_chunks(self, job_id, record):
        """What was not handed out before is handed out now."""
        house = self.house
        task = asyncio.ensure_future(house.engine.streams.take(job_id, 0), loop=house.loop)
        house.settle()
        found = set(task.result().chunks.values)
        every = {value for _, value in house.store.chunks(house.store.get(job_id).seq)}
        assert found <= every - record.handed
        assert found == every - record.handed or not record.chunks_known, "a chunk reached nobody"

    @staticmethod
    def behave(worker):
        worker.listen()
        if worker.doomed:
            worker.dies(0)
        elif not worker.ready:
            Life.make_ready(worker)
        else:
            for job in worker.jobs:
                worker.say(wire.Done(job, "CANCELLED" if job in worker.cancelled else "COMPLETED"))
            worker.jobs.clear()


def test_every_accepted_job_ends_once_whatever_happens(played_house, examples):
    machine = type("Life", (Life,), {"house_class": played_house})
    run_state_machine_as_test(machine, settings=examples(12, steps=40), _min_steps=30)
