"""How long the properties are tested, and an engine whose workers, template, GPUs, disk and clocks the test plays.

The suite draws a few examples, always the same. ``PROPERTY_EXAMPLES=2000`` draws that many for each property, others each time
(``--hypothesis-seed`` repeats a run).
"""

import asyncio
import math
import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from supervisor.config.resolve import make_settings
from supervisor.engine.engine import Engine
from supervisor.engine.turns import Clock
from supervisor.errors import StoreError
from supervisor.gpu.records import Gpu
from supervisor.pool.interfaces import Place
from supervisor.pool.local import LocalPool
from supervisor.pool.slots.rules import Rules
from supervisor.pool.slots.steps import Measured, Released
from supervisor.pool.template.launch import fork_worker
from supervisor.protocol.responses import status_body
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.wire import messages as wire
from tests.api.conftest import Site
from tests.fakes.template import PlayedTemplate, PlayedWorker

LONG = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
TURNS = 10
"""Rounds of the loop after which nothing is left to do: word, turn, commit, perform, and what came of that at once."""

_ALWAYS = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
if LONG:
    settings.register_profile("properties", max_examples=LONG, **_ALWAYS)
else:
    settings.register_profile("properties", derandomize=True, **_ALWAYS)


@pytest.fixture(scope="session")
def examples():
    """``examples(few, steps=None)``: settings for as ``few`` examples as the suite has time for, or for a long run."""

    def examples(few, steps=None):
        longer = {} if steps is None else {"stateful_step_count": steps}
        return settings(settings.get_profile("properties"), max_examples=LONG or few, **longer)

    return examples


def pytest_collection_modifyitems(items):
    """A long run takes as long as it takes."""
    if LONG:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


# --- time ------------------------------------------------------------------------------------------------------------------


class PlayedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still unless the test moves it, and so its timers come when the test says."""

    def __init__(self):
        self.now = 1000.0
        super().__init__()

    def time(self):
        return self.now


class PlayedClock(Clock):
    """Monotonic time is the loop's; wall time is moved by the test alone."""

    def __init__(self, loop):
        self._loop = loop
        self.wall = 1_700_000_000_000

    def monotonic(self):
        return self._loop.now

    def wall_ms(self):
        return self.wall


# --- processes -------------------------------------------------------------------------------------------------------------


class Worker(PlayedWorker):
    """A worker: it hears what it is told and remembers it, and speaks when the test has it speak."""

    def __init__(self, *given):
        super().__init__(*given)
        self.doomed = False
        self.ready = False
        self.capacity = 1
        self.kind = "function"
        self.jobs = {}
        self.cancelled = set()

    def is_told(self, signum):
        self.doomed = self.doomed or signum in (9, 15, "tree")

    def listen(self):
        """Take what was said: jobs to run, each with how many chunks it has yielded; the ids of those."""
        taken = []
        connection = self._pipes.worker_connection
        while self.alive and not connection.closed and connection.poll(0):
            try:
                message = self._codec.decode(connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                self.doomed = True
                break
            if isinstance(message, wire.Run):
                assert message.job not in self.jobs, "a worker was given a job that it runs"
                self.jobs[message.job] = 0
                taken.append(message.job)
            elif isinstance(message, wire.Cancel):
                self.cancelled.add(message.job)
            else:
                self.doomed = True
        return taken


class PlayedMemory:
    """GPUs of which is learned what the test says; a reading before a worker's end comes at once."""

    def __init__(self, loop):
        self.samples = {}
        self.releasing = set()
        self._loop = loop
        self._learned = []
        self._ours, self._theirs = socket.socketpair()

    def fileno(self):
        return self._ours.fileno()

    def learn(self, slot, event):
        if isinstance(event, Released):
            self.releasing.discard(slot)
        self._learned.append((slot, event))
        self._theirs.send(b"x")

    def before_fork(self, place):
        self.releasing.discard(place.name)

    def forked(self, slot, pid):
        pass

    def measure(self, place, now):
        self.learn(place.name, Measured())

    def release(self, place, now):
        self.releasing.add(place.name)

    def unwatch(self, slot):
        self.releasing.discard(slot)
        self._learned = [learned for learned in self._learned if learned[0] != slot]

    def collect(self, now):
        learned, self._learned = self._learned, []
        if learned:
            self._ours.recv(65536)
        return learned

    def deadline(self):
        return self._loop.now + 3600

    def close(self):
        self._ours.close()
        self._theirs.close()


# --- the house -------------------------------------------------------------------------------------------------------------


class PlayedHouse:
    """Engine, pool and store over played processes. ``kill`` and ``begin`` restart the supervisor on the same files."""

    def __init__(self, slots=1, gpus=False, slow=False, **options):
        self.folder = Path(tempfile.mkdtemp(prefix="property-"))
        self.loop = PlayedLoop()
        self.clock = PlayedClock(self.loop)
        self.settings = make_settings("test:handler", store=self.folder / "jobs.db", retention=30 * 86_400, **options)
        self.slots, self.gpus, self.slow = slots, gpus, slow
        self.faults = []
        self.refusing = False
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.begin()

    def begin(self):
        loop, options = self.loop, self.settings
        self.store = Store.open(options.store, durability=options.durability, deliver=self.loop.call_soon_threadsafe)
        self._commit, self.store.commit = self.store.commit, self._commit_to_disk
        self.secrets = SecretFiles(self.folder / "secrets")
        self.template = PlayedTemplate(Worker)
        self.memory = PlayedMemory(loop) if self.gpus else None
        self.engine = Engine(options, self.store, self.secrets, loop, status_body, self.clock)
        gpus = (Gpu(0, "GPU-0", "played"),) if self.gpus else ()
        places = [Place(f"slot{index}", index, gpus, {}) for index in range(self.slots)]
        client = self.template.client(loop, self.engine.wake)
        self.pool = LocalPool(
            places,
            Rules.of(options),
            client,
            self.memory,
            loop,
            self.engine.wake,
            partial(fork_worker, client, loop, 2**20),
        )
        self.engine.attach(self.pool)
        decide = self.engine._loop._decide
        self.engine._loop._decide = lambda *given: self._leaves_memory_alone(decide, given)
        self.engine.start()

    def _leaves_memory_alone(self, decide, given):
        """No decision changes memory, so that a turn which the disk refuses leaves nothing to take back."""
        kept = [lane._last_seq for lane in self.lanes]
        before = self.memory_of_the_engine(kept)
        turn = decide(*given)
        assert self.memory_of_the_engine(kept) == before, "a decision has changed memory"
        return turn

    @property
    def lanes(self):
        return [self.engine._jobs.backlog.lane(low) for low in (False, True)]

    def memory_of_the_engine(self, kept=(math.inf, math.inf)):
        """All that is decided about, as it can be compared. Of the queue, up to the numbers ``kept``: a look may load more."""
        jobs, engine = self.engine._jobs, self.engine
        return (
            dict(jobs.active),
            [
                (lane.count, {job.seq: job for job in lane._window.values() if job.seq <= last})
                for lane, last in zip(self.lanes, kept, strict=True)
            ],
            (dict(jobs.timeouts._at), jobs._expiry_ms, jobs.next_seq, dict(jobs.to_delete)),
            dict(engine.logs._open),
            (engine.overview.statistics.totals(), engine.snapshot().jobs),
            [(purge, purge.removed) for purge in engine._loop.commands._purges],
            dict(self.pool.slots),
        )

    def _commit_to_disk(self, batch, done):
        """At once, or two rounds later on a slow disk, whose store is this one until then."""
        store = self.store

        def write():
            if self.refusing:
                done(StoreError("the disk is full"))
            elif self.store is store:
                self._commit(batch, done)

        if self.slow:
            self.loop.call_soon(lambda: self.loop.call_soon(write))
        else:
            write()

    def kill(self):
        """As ``kill -9`` does it: what is not on disk is gone."""
        self.engine.close()
        self.store.close()
        self.store = None
        self.template.end()
        if self.memory is not None:
            self.memory.close()

    def spin(self, turns):
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))

    def settle(self):
        """Until all that was said is heard and decided, on disk (unless that refuses), and carried out."""
        self.loop.now += 0.002  # those who gather
        for _ in range(20):
            self.spin(TURNS)
            refused = self.engine._loop.refusal is not None
            if self.faults or (self.refusing if refused else not self.engine._loop.pending):
                return
            self.loop.now += 0.6 if refused else 0
        raise AssertionError("a commit never ended")

    def worker(self, slot):
        worker = self.template.workers.get(slot)
        return worker if worker is not None and worker.alive else None

    @property
    def workers(self):
        return [worker for worker in self.template.workers.values() if worker.alive]

    def secret_files(self):
        folder = self.folder / "secrets"
        return {file.name for file in folder.iterdir()} if folder.exists() else set()

    def close(self):
        self.kill()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def played_house():
    """The class of engines to be played with."""
    return PlayedHouse


@pytest.fixture
def make_site():
    """Makes servers over an engine that is told what happens, and stops them after the test."""
    sites = []

    def make(**options):
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
