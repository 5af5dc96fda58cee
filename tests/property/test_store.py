"""Whatever legal and illegal batches come, and whenever the process is killed: the store is what a model in plain Python is."""

import shutil
import tempfile
from pathlib import Path
from queue import SimpleQueue

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from supervisor.errors import StoreError, TransitionError
from supervisor.job import Job, JobRequest, JobStatus, Outcome
from supervisor.store.store import Store
from supervisor.store.writes import (
    LARGE_INPUT,
    AddChunk,
    AddLog,
    AddWebhook,
    DeleteJob,
    DropWebhook,
    End,
    Insert,
    Probe,
    PutOffWebhook,
    Requeue,
    Retry,
    ShowChunks,
    StartJob,
    TakeChunks,
)
from tests.protocol.causes import JOB_CAUSES
from tests.store.numbered import numbered
from tests.store.transitions import TRANSITIONS

RARE = st.sampled_from((False, False, True))
SEQS = st.integers(1, 6)
TIMES = st.integers(1, 50)
VALUES = st.sampled_from((b"1", b'"' + b"x" * LARGE_INPUT + b'"'))
OUTCOMES = st.builds(
    Outcome,
    st.sampled_from([status for status in JobStatus if status.terminal]),
    st.none() | VALUES,
    st.none() | st.just("why"),
) | st.builds(Outcome, st.just(JobStatus.FAILED), cause=st.sampled_from([cause for cause, _, _ in JOB_CAUSES]))


class Illegal(Exception):  # noqa: N818 - what the model says to a batch
    pass


class Model:
    """The store in plain Python: jobs by number with their chunks and logs, and webhooks."""

    def __init__(self):
        self.jobs = {}
        self.chunks = {}
        self.logs = {}
        self.webhooks = {}
        self.highest = 0

    def copy(self):
        other = Model()
        other.jobs, other.webhooks, other.highest = dict(self.jobs), dict(self.webhooks), self.highest
        other.chunks = {seq: list(values) for seq, values in self.chunks.items()}
        other.logs = {seq: list(pieces) for seq, pieces in self.logs.items()}
        return other

    def apply(self, write):
        """Raises Illegal, and may then be half done."""
        getattr(self, f"on_{type(write).__name__}")(write)

    def in_status(self, seq, *statuses):
        job = self.jobs.get(seq)
        if job is None or job.status not in statuses:
            raise Illegal
        return job

    def on_Insert(self, write):  # noqa: N802 - the write's name
        request = write.request
        if write.seq in self.jobs or any(job.id == request.id for job in self.jobs.values()):
            raise Illegal
        started = write.started_ms is not None
        self.jobs[write.seq] = Job(
            write.seq,
            request.id,
            JobStatus.IN_PROGRESS if started else JobStatus.IN_QUEUE,
            request.input,
            write.created_ms,
            extras=request.extras,
            has_s3_config=request.s3_config is not None,
            low_priority=request.low_priority,
            attempts=int(started),
            started_ms=write.started_ms,
            worker_id=write.worker_id,
            timeout_ms=write.timeout_ms,
            expires_ms=write.expires_ms,
        )
        self.chunks[write.seq], self.logs[write.seq] = [], []
        self.highest = max(self.highest, write.seq)

    def on_StartJob(self, write):  # noqa: N802
        job = self.in_status(write.seq, JobStatus.IN_QUEUE)
        self.jobs[job.seq] = job.replace(
            status=JobStatus.IN_PROGRESS,
            attempts=job.attempts + 1,
            started_ms=write.started_ms,
            worker_id=write.worker_id,
        )

    def on_End(self, write):  # noqa: N802
        job = self.in_status(write.seq, JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)
        outcome = write.outcome
        if outcome.status not in TRANSITIONS[job.status]:
            raise Illegal
        self.jobs[job.seq] = job.replace(
            status=outcome.status,
            output=outcome.output,
            error=outcome.error,
            cause=outcome.cause,
            ended_ms=write.ended_ms,
        )

    def back(self, job, **changes):
        self.chunks[job.seq] = []
        self.jobs[job.seq] = job.replace(
            status=JobStatus.IN_QUEUE,
            retries=job.retries + 1,
            started_ms=None,
            worker_id=None,
            chunks=0,
            chunks_taken=0,
            streamed=False,
            **changes,
        )

    def on_Requeue(self, write):  # noqa: N802
        job = self.in_status(write.seq, JobStatus.IN_PROGRESS)
        self.back(job, attempts=job.attempts - (not write.charged))

    def on_Retry(self, write):  # noqa: N802
        job = self.in_status(write.seq, JobStatus.FAILED, JobStatus.TIMED_OUT)
        self.logs[job.seq] = []
        created, expires = write.created_ms, write.expires_ms
        self.back(
            job, attempts=0, ended_ms=None, output=None, error=None, cause=None, created_ms=created, expires_ms=expires
        )

    def on_AddChunk(self, write):  # noqa: N802
        job = self.in_status(write.seq, JobStatus.IN_PROGRESS)
        if job.attempts != write.attempt or job.chunks != write.index:
            raise Illegal
        self.chunks[job.seq].append(write.value)
        self.jobs[job.seq] = job.replace(chunks=job.chunks + 1)

    def on_TakeChunks(self, write):  # noqa: N802
        job = self.jobs.get(write.seq)
        if job is None or write.taken > job.chunks:
            raise Illegal
        self.jobs[job.seq] = job.replace(chunks_taken=write.taken, streamed=True)

    def on_ShowChunks(self, write):  # noqa: N802
        if write.seq in self.jobs:
            self.jobs[write.seq] = self.jobs[write.seq].replace(streamed=True)

    def on_AddLog(self, write):  # noqa: N802
        if any(at == write.at for at, _ in self.logs[write.seq]):
            raise Illegal
        self.logs[write.seq].append((write.at, write.text))

    def on_AddWebhook(self, write):  # noqa: N802
        if write.id in self.webhooks:
            raise Illegal
        self.webhooks[write.id] = (write.job, 0, write.due_ms, write.body)

    def on_PutOffWebhook(self, write):  # noqa: N802
        if write.id in self.webhooks:
            job, tries, _, body = self.webhooks[write.id]
            self.webhooks[write.id] = (job, tries + 1, write.due_ms, body)

    def on_DropWebhook(self, write):  # noqa: N802
        self.webhooks.pop(write.id, None)

    def on_Probe(self, _):  # noqa: N802
        pass

    def on_DeleteJob(self, write):  # noqa: N802
        job = self.jobs.get(write.seq)
        if job is not None and job.status.terminal:
            for table in (self.jobs, self.chunks, self.logs):
                del table[write.seq]

    def retried(self):
        return sum(job.retries for job in self.jobs.values())


class StoreLife(RuleBasedStateMachine):
    """Batches, looks, and kills: what is on disk then is what the next process finds."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="property-"))
        self.store = None
        self.model = Model()
        self.batch = []
        self.draft = Model()
        self.illegal = 0
        self.delivered = SimpleQueue()

    @initialize(durability=st.sampled_from(("normal", "normal", "normal", "full")))
    def begins(self, durability):
        self.durability = durability
        self.open(self.folder / "jobs.db")
        for seq in range(1, 5):
            started = seq if seq > 1 else None
            request = JobRequest(f"job-{seq}", b"1", low_priority=seq == 4)
            self.write(Insert(seq, request, seq, started, started and "gpu0-1"))
        self.commits()

    def open(self, path):
        self.path = path
        self.store = Store.open(path, durability=self.durability, deliver=self.delivered.put)

    # --- writes, gathered in a batch

    def write(self, write):
        """Add it to the batch. An illegal one spoils all of it, so only every fourth of those is added."""
        if self.draft is not None:
            draft = self.draft.copy()
            try:
                draft.apply(write)
            except Illegal:
                self.illegal += 1
                if self.illegal % 4:
                    return
                draft = None
            self.draft = draft
        self.batch.append(write)

    def one(self, pick, *statuses):
        """The number of a job, mostly one in these states."""
        jobs = (self.draft or self.model).jobs.values()
        fitting = [job.seq for job in jobs if job.status in statuses]
        return fitting[pick % len(fitting)] if fitting and pick else pick + 1

    def attempts(self, seq):
        job = (self.draft or self.model).jobs.get(seq)
        return (job.attempts, job.chunks) if job is not None else (1, 0)

    @rule(
        seq=SEQS,
        fresh=st.booleans(),
        value=VALUES,
        low=st.booleans(),
        secret=st.booleans(),
        started=st.none() | TIMES,
        timeout=st.none() | TIMES,
        expires=st.none() | TIMES,
    )
    def inserts(self, seq, fresh, value, low, secret, started, timeout, expires):
        if fresh:
            seq = (self.draft or self.model).highest + 1
        if seq > 12:
            return
        request = JobRequest(
            f"job-{seq}", value, b'{"webhook":"http://x"}' if low else None, b"{}" if secret else None, low
        )
        self.write(Insert(seq, request, seq, started, started and "gpu0-1", timeout, expires))

    @rule(pick=SEQS, at=TIMES)
    def starts(self, pick, at):
        seq = self.one(pick, JobStatus.IN_QUEUE)
        self.write(StartJob(seq, at, "gpu0-2"))

    @rule(pick=SEQS, outcome=OUTCOMES, at=TIMES)
    def ends(self, pick, outcome, at):
        seq = self.one(pick, JobStatus.IN_PROGRESS)
        self.write(End(seq, outcome, at))

    @rule(pick=SEQS, charged=st.booleans())
    def requeues(self, pick, charged):
        seq = self.one(pick, JobStatus.IN_PROGRESS)
        self.write(Requeue(seq, charged))

    @rule(pick=SEQS, at=TIMES, expires=st.none() | TIMES)
    def retries(self, pick, at, expires):
        seq = self.one(pick, JobStatus.FAILED, JobStatus.TIMED_OUT)
        self.write(Retry(seq, at, expires))

    @rule(pick=SEQS, wrong=st.sampled_from((0, 0, 0, 1)), value=VALUES)
    def adds_a_chunk(self, pick, wrong, value):
        seq = self.one(pick, JobStatus.IN_PROGRESS)
        attempt, chunks = self.attempts(seq)
        self.write(AddChunk(seq, attempt, chunks + wrong, value))

    @rule(pick=SEQS, taken=st.integers(0, 2))
    def takes_chunks(self, pick, taken):
        seq = self.one(pick, JobStatus.IN_PROGRESS, JobStatus.COMPLETED, JobStatus.FAILED)
        self.write(TakeChunks(seq, taken))

    @rule(pick=SEQS)
    def shows_chunks(self, pick):
        seq = self.one(pick, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
        self.write(ShowChunks(seq))

    @rule(pick=SEQS, text=st.sampled_from((b"one\n", b"two\nthree\n")))
    def logs(self, pick, text):
        seq = self.one(pick, JobStatus.IN_PROGRESS)
        pieces = self.draft.logs.get(seq) if self.draft is not None else None
        if pieces is not None:
            at = pieces[-1][0] + len(pieces[-1][1]) if pieces else 0
            self.write(AddLog(seq, at, text))

    @rule(number=st.integers(0, 3), seq=SEQS, at=TIMES)
    def has_a_webhook(self, number, seq, at):
        if self.draft is not None and f"msg_{number}" not in self.draft.webhooks:
            self.write(AddWebhook(f"msg_{number}", f"job-{seq}", "https://x.test/y?z", at, b"body %d" % seq))

    @rule(number=st.integers(0, 3), at=TIMES, drop=st.booleans())
    def tried_a_webhook(self, number, at, drop):
        self.write(DropWebhook(f"msg_{number}") if drop else PutOffWebhook(f"msg_{number}", at))

    @rule(pick=SEQS)
    def deletes(self, pick):
        seq = self.one(pick, JobStatus.COMPLETED, JobStatus.FAILED)
        self.write(DeleteJob(seq))

    # --- commits and kills

    def answer(self):
        """What the store says to the batch."""
        answers = []
        self.store.commit(self.batch, answers.append)
        if not answers:
            assert self.durability == "full"
            self.delivered.get(timeout=20)()
        (answer,) = answers
        return answer

    @rule()
    def commits(self):
        if not self.batch:
            return
        answer = self.answer()
        if self.draft is None:
            assert isinstance(answer, StoreError), "an illegal batch was taken"
        else:
            assert answer is None, "a legal batch was refused"
            self.model = self.draft
        self.batch, self.draft = [], self.model.copy()
        self.look()

    @rule(seq=st.just(99), really=RARE)
    def refuses_what_is_not_there(self, seq, really):
        missing = (
            StartJob(seq, 1, "x"),
            Requeue(seq, True),
            Retry(seq, 1),
            TakeChunks(seq, 0),
            AddChunk(seq, 1, 0, b"1"),
        )
        batch = self.batch
        for write in missing if really else ():
            self.batch = [Probe(), write]
            assert isinstance(self.answer(), TransitionError)
        self.batch = batch

    @rule(before_ms=TIMES, limit=st.integers(1, 3), really=RARE)
    def retention_ends(self, before_ms, limit, really):
        if not really:
            return
        ended = sorted(
            (job.ended_ms, job.seq)
            for job in self.model.jobs.values()
            if job.status.terminal and job.ended_ms < before_ms
        )[:limit]
        assert self.store.retention.delete(before_ms, limit) == len(ended)
        if ended and self.durability == "full":
            self.delivered.get(timeout=20)()
        for _, seq in ended:
            self.model.apply(DeleteJob(seq))
        self.batch, self.draft = [], self.model.copy()
        self.look()

    @rule(really=RARE)
    def is_closed_and_opened(self, really):
        if not really:
            return
        self.store.close()
        self.open(self.path)
        self.batch, self.draft = [], self.model.copy()

    @rule(in_a_commit=st.booleans(), really=RARE)
    def is_killed_and_opened(self, in_a_commit, really):
        """A kill leaves the files as they are, perhaps in the middle of a transaction."""
        if not really:
            return
        if in_a_commit and self.durability == "normal":
            self.store._begin(lambda: [write.apply(self.store._cursor) for write in self.batch[:1]])
        elsewhere = Path(tempfile.mkdtemp(dir=self.folder))
        for file in self.path.parent.glob(f"{self.path.name}*"):
            shutil.copy(file, elsewhere)
        (elsewhere / f"{self.path.name}-shm").unlink(missing_ok=True)  # shared memory goes with its processes
        self.store.close()
        self.open(elsewhere / self.path.name)
        self.batch, self.draft = [], self.model.copy()
        self.look()

    # --- looks

    @invariant()
    def counts_are_right(self):
        if self.store is None:
            return
        counts = self.store.counts()
        for status in JobStatus:
            assert counts.jobs[status] == sum(job.status is status for job in self.model.jobs.values())
        assert counts.retried == self.model.retried()

    def look(self):
        """Everything that can be read."""
        store, jobs = self.store, self.model.jobs
        for seq in range(1, 13):
            job = jobs.get(seq)
            assert numbered(store, seq) == store.get(f"job-{seq}") == job
            assert store.facts(f"job-{seq}") == (job and job.replace(input=b"", output=None))
            assert store.chunks(seq) == list(enumerate(self.model.chunks.get(seq, ())))
            assert store.chunks(seq, 1, 1) == list(enumerate(self.model.chunks.get(seq, ())))[1:2]
            pieces = self.model.logs.get(seq, [])
            assert store.log(seq, 0) == pieces
            assert store.log(seq, 5) == [
                piece for piece in pieces if piece[0] >= max([at for at, _ in pieces if at <= 5])
            ]
            assert store.log_end(seq) == sum(len(text) for _, text in pieces)
        live = [job for job in jobs.values() if not job.status.terminal]
        for low in (False, True):
            queued = [job.seq for job in jobs.values() if job.status is JobStatus.IN_QUEUE and job.low_priority is low]
            assert [job.seq for job in store.queued(low, 0, 100)] == sorted(queued)
            assert [job.seq for job in store.queued(low, 2, 2)] == sorted(seq for seq in queued if seq > 2)[:2]
            assert store.queued_counts()[low] == len(queued)
        running = [(job.low_priority, job.seq) for job in live if job.status is JobStatus.IN_PROGRESS]
        assert [(job.low_priority, job.seq) for job in store.running()] == sorted(running)
        assert set(store.with_s3_config()) == {job.id for job in live if job.has_s3_config}
        expiring = [job for job in live if job.expires_ms is not None]
        assert store.next_expiry() == min((job.expires_ms for job in expiring), default=None)
        assert set(store.expired(25, 100)) == {job.id for job in expiring if job.expires_ms <= 25}
        ended = sorted(((job.ended_ms, job.seq) for job in jobs.values() if job.status.terminal), reverse=True)
        assert [(job.ended_ms, job.seq) for job in store.newest_ended(3)] == ended[:3]
        assert [job.seq for job in store.page(10, 2, None, 3)] == sorted(
            (seq for seq in jobs if 2 <= seq < 10), reverse=True
        )[:3]
        failed = [seq for seq, job in jobs.items() if job.status is JobStatus.FAILED]
        assert [job.seq for job in store.page(99, 0, JobStatus.FAILED, 99)] == sorted(failed, reverse=True)
        assert store.next_seq == self.model.highest + 1
        self.look_at_webhooks()

    def look_at_webhooks(self):
        outbox, webhooks = self.store.outbox, self.model.webhooks
        due = min((due_ms for _, _, due_ms, _ in webhooks.values()), default=None)
        assert outbox.receivers() == ([("https://x.test", due)] if webhooks else [])
        found = {
            hook.id: (hook.job, hook.tries, hook.due_ms, outbox.body(hook.id))
            for hook in outbox.waiting("https://x.test", 9)
        }
        assert found == webhooks
        assert outbox.count() == len(webhooks)

    def teardown(self):
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)


def test_the_store_is_what_its_model_is(examples):
    run_state_machine_as_test(StoreLife, settings=examples(10, steps=40))
