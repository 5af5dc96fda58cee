"""An engine over real pipes whose workers and template are played by the test; time is the test's own."""

import asyncio
import contextlib
import os
import socket
from functools import partial

import pytest

from supervisor.config.resolve import make_settings
from supervisor.engine.engine import Engine
from supervisor.engine.turns import Clock
from supervisor.gpu.records import Gpu
from supervisor.job import JobRequest
from supervisor.pool.interfaces import Place
from supervisor.pool.local import LocalPool
from supervisor.pool.slots.rules import Rules
from supervisor.pool.template.launch import fork_worker
from supervisor.protocol.responses import status_body
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store
from supervisor.wire import messages as wire
from tests.fakes.template import PlayedTemplate, PlayedWorker

DEADLINE_S = 30.0
GPU = Gpu(0, "GPU-0", "played")


class ManualClock(Clock):
    """Monotonic time stands still unless a test moves it; wall time ticks a millisecond a look."""

    def __init__(self):
        self.now = 1000.0
        self.wall = 1_700_000_000_000

    def monotonic(self):
        return self.now

    def wall_ms(self):
        self.wall += 1
        return self.wall


class Worker(PlayedWorker):
    """A worker that is waited for, by turns of its house."""

    def __init__(self, template, *given):
        super().__init__(template, *given)
        self._house = template.house

    def write_raw(self, data):
        """Bytes, as many at a time as the pipe takes, with turns of the supervisor between."""
        view = memoryview(data)
        with self._socket() as pipe:
            while view:
                with contextlib.suppress(BlockingIOError):
                    view = view[pipe.send(view, socket.MSG_DONTWAIT) :]
                    continue
                self._house.settle()

    def write(self, *messages):
        """As ``say``, but of any length and number."""
        for message in messages:
            self.write_raw(wire.frame(self._codec.encode(message)))

    def reads_on(self):
        """Take what is in its pipe, whatever it is."""
        with self._socket() as pipe, contextlib.suppress(BlockingIOError):
            while pipe.recv(1 << 20, socket.MSG_DONTWAIT):
                pass

    def _socket(self):
        return socket.socket(fileno=os.dup(self._pipes.worker_connection.fileno()))

    def ready(self, kind="function", capacity=1):
        self.say(wire.Ready(self.pid, kind, capacity))

    def heard(self):
        """The next message, waited for."""
        self._house.until(lambda: self._pipes.worker_connection.poll(0))
        return self._codec.decode(self._pipes.worker_connection.recv_bytes())

    def hears_nothing(self):
        return not self._pipes.worker_connection.poll(0)


class PlayedMemory:
    """GPUs of which is learned what the test says."""

    def __init__(self):
        self.samples = {}
        self.learned = []
        self._pipe = os.pipe()

    def fileno(self):
        return self._pipe[0]

    def before_fork(self, place):
        pass

    def forked(self, slot, pid):
        pass

    def measure(self, place, now):
        pass

    def release(self, place, now):
        pass

    def unwatch(self, slot):
        self.learned = []

    def collect(self, now):
        learned, self.learned = self.learned, []
        return learned

    def deadline(self):
        return 0.0

    def close(self):
        for descriptor in self._pipe:
            os.close(descriptor)


class House:
    """Engine, pool, store and played processes, with the means to drive them turn by turn."""

    def __init__(self, tmp_path, loop, slots=1, store=None, memory=None, limit=2**31, **options):
        self.loop = loop
        self.clock = ManualClock()
        self.settings = make_settings("test:handler", store=tmp_path / "jobs.db", **options)
        self.store = store or Store.open(self.settings.store)
        self.secrets = SecretFiles(tmp_path / "secrets")
        self.template = PlayedTemplate(Worker)
        self.template.house = self
        self.engine = Engine(self.settings, self.store, self.secrets, loop, status_body, self.clock)
        places = [
            Place(f"cpu{index}", index, (GPU,) if memory else (), {"SUPERVISE_SLOT": f"cpu{index}"})
            for index in range(slots)
        ]
        client = self.template.client(loop, self.engine.wake)
        self.pool = LocalPool(
            places,
            Rules.of(self.settings),
            client,
            memory,
            loop,
            self.engine.wake,
            partial(fork_worker, client, loop, limit),
        )
        self.engine.attach(self.pool)
        self.faults = []
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.told = []
        self.engine.observe(self.told.append)

    def start(self, *, ready=True, kind="function", capacity=1):
        self.engine.start()
        self.until(lambda: len(self.template.workers) == len(self.pool.slots))
        if ready:
            for worker in self.template.workers.values():
                worker.ready(kind, capacity)
            self.until(lambda: all(slot.state.value == "idle" for slot in self.pool.slots.values()))

    def until(self, reached):
        """Run the loop until ``reached()``, with a deadline."""

        async def wait():
            deadline = self.loop.time() + DEADLINE_S
            while not reached():
                assert not self.faults
                assert self.loop.time() < deadline, "it did not come to that"
                self.engine.wake()
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    def settle(self):
        """Some turns: what was written to a pipe before is in it, so each finds all there is."""
        for _ in range(10):
            self.engine.wake()
            self.loop.run_until_complete(asyncio.sleep(0))

    def wait(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, DEADLINE_S))

    def submit(self, job_id="a", value=b'{"n":1}', **fields):
        return self.wait(self.engine.submit(JobRequest(id=job_id, input=value, **fields)))

    def worker(self, slot="cpu0"):
        return self.template.workers[slot]

    def ended(self, job_id="a"):
        return self.wait(self.engine.wait(job_id, DEADLINE_S))

    def close(self):
        self.engine.close()
        self.store.close()
        self.template.end()


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def make_house(tmp_path, loop):
    """``make_house(slots=1, **options)``: an engine that has not started."""
    houses = []

    def make(**options):
        houses.append(House(tmp_path, loop, **options))
        return houses[-1]

    yield make
    for house in houses:
        house.close()


@pytest.fixture
def played_memory():
    memory = PlayedMemory()
    yield memory
    memory.close()


@pytest.fixture
def house(make_house):
    """One slot, its worker ready."""
    house = make_house()
    house.start()
    return house
