"""Workers that are reached by something other than a forked process's pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from supervisor.errors import WireError
from supervisor.pool import events
from supervisor.pool.interfaces import Place
from supervisor.pool.local import LocalPool
from supervisor.pool.pipes.log_pipe import LogPipe
from supervisor.pool.pipes.pipes import Link
from supervisor.pool.slots.rules import Rules
from supervisor.pool.slots.slot import SlotState
from supervisor.wire import messages as wire
from tests.fakes.template import PlayedTemplate

NOW = 100.0


class Door:
    """A ``Channel`` without a descriptor, such as a worker that calls by HTTP needs."""

    def __init__(self) -> None:
        self.told: list[wire.ToWorker] = []
        self.clogged = self.closed = self.let_go = False
        self._said: list[wire.FromWorker | WireError] = []
        self._reading = False
        self._readable: Callable[[], None]
        self._unclogged: Callable[[], None]

    @property
    def more(self) -> bool:
        return bool(self._said)

    def attach(self, readable: Callable[[], None], unclogged: Callable[[], None]) -> None:
        self._readable, self._unclogged = readable, unclogged

    def set_reading(self, reading: bool) -> None:
        self._reading = reading
        if reading and self._said:
            self._readable()

    def receive(self, budget: int = 0, most: int = 250) -> list[wire.FromWorker]:
        said, self._said = self._said[:most], self._said[most:]
        messages = [each for each in said if not isinstance(each, WireError)]
        if len(messages) < len(said):
            raise WireError("nonsense")
        return messages

    def send(self, message: wire.ToWorker) -> None:
        self.told.append(message)

    def close(self) -> None:
        self.let_go = True

    # --- what the test does with it

    def says(self, message: wire.FromWorker | WireError) -> None:
        self._said.append(message)
        if self._reading:
            self._readable()

    def reads(self, reading: bool) -> None:
        self.clogged = not reading
        if reading:
            self._unclogged()


class Launcher:
    """Gives each worker a door."""

    def __init__(self) -> None:
        self.doors: dict[str, Door] = {}
        self.envs: list[Mapping[str, str | None]] = []
        self.refusal: OSError | None = None

    def launch(self, slot: str, generation: int, env: Mapping[str, str | None]) -> Link:
        if self.refusal is not None:
            raise self.refusal
        log, theirs = os.pipe()
        os.set_blocking(log, False)
        os.close(theirs)
        self.envs.append(env)
        self.doors[slot] = door = Door()
        return Link(slot, generation, door, LogPipe(log))


class House:
    """A pool of two slots whose workers have doors."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.woken = 0
        self.launcher = Launcher()
        self.template = PlayedTemplate()
        places = [Place(f"gpu{index}", index, (), {"A": "b"}) for index in range(2)]
        client = self.template.client(loop, self.wake)
        rules = Rules(grace=5.0, start_timeout=0.0)
        self.pool = LocalPool(places, rules, client, None, loop, self.wake, self.launcher.launch)

    def wake(self) -> None:
        self.woken += 1

    def turn(self) -> list[events.PoolEvent]:
        """What came, in several turns."""
        came: list[events.PoolEvent] = []
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))
            came += self.pool.collect(NOW)
            came += self.pool.perform(NOW)
        return came

    def state(self, name: str = "gpu0") -> SlotState:
        return self.pool.slots[name].state


@pytest.fixture
def house() -> Iterator[House]:
    loop = asyncio.new_event_loop()
    house = House(loop)
    house.pool.start(NOW)
    house.turn()
    for door in house.launcher.doors.values():
        door.says(wire.Ready(7, "coroutine", 1))
    house.turn()
    yield house
    house.pool.close()
    house.template.end()
    loop.close()


def test_its_jobs_go_and_come_by_the_door(house: House) -> None:
    door = house.launcher.doors["gpu0"]
    assert (house.state(), house.pool.slots["gpu0"].cancels_gently) == (SlotState.IDLE, True)
    assert house.launcher.envs[0] == {"A": "b", "SUPERVISE_WORKER_ID": "gpu0-1", "RUNPOD_POD_ID": "gpu0-1"}
    house.pool.assign("gpu0", wire.Run("job", b"1", None), 3, NOW)
    assert door.told == [wire.Run("job", b"1", None)]
    done = wire.Done("job", "COMPLETED", b"2")
    door.says(wire.Progress("job", b"0.5"))
    door.says(done)
    told = [event for event in house.turn() if isinstance(event, (events.JobProgressed, events.JobEnded))]
    assert told == [events.JobProgressed("job", 3, "gpu0", b"0.5"), events.JobEnded("job", 3, "gpu0", done)]
    door.says(wire.Progress("job", b"0.6"))
    assert house.turn() == []  # it has ended
    assert house.state() is SlotState.IDLE


def test_one_that_does_not_read_is_given_nothing_more(house: House) -> None:
    door = house.launcher.doors["gpu0"]
    door.says(wire.Capacity(4))
    house.turn()
    assert house.pool.free.room == 5
    door.clogged = True
    house.pool.assign("gpu0", wire.Run("job", b"1", None), 0, NOW)
    assert [seat.name for seat in house.pool.free] == ["gpu1"]
    woken = house.woken
    door.reads(True)
    assert house.woken > woken
    assert (house.pool.free.room, [seat.name for seat in house.pool.free]) == (4, ["gpu1", "gpu0"])


def test_nothing_is_received_while_the_pool_does_not_read(house: House) -> None:
    house.pool.pause_reading()
    house.launcher.doors["gpu0"].says(wire.Capacity(2))
    house.turn()
    assert house.pool.slots["gpu0"].capacity == 1
    house.pool.resume_reading()
    house.turn()
    assert house.pool.slots["gpu0"].capacity == 2


def test_nonsense_costs_the_worker_its_life(house: House) -> None:
    house.launcher.doors["gpu0"].says(WireError("nonsense"))
    house.turn()
    assert house.state() is SlotState.ENDING


def test_a_launch_that_the_system_refuses_is_tried_again_later(house: House) -> None:
    house.launcher.refusal = OSError(24, "Too many open files")
    house.launcher.doors["gpu0"].says(WireError("nonsense"))
    house.turn()
    house.template.report(wire.Died("gpu0", 1, 7, -9))
    house.template.report(wire.Swept("gpu0", 1))
    house.turn()
    assert house.launcher.doors["gpu0"].let_go
    assert (house.state(), house.state("gpu1")) == (SlotState.BACKOFF, SlotState.IDLE)
