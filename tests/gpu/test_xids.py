"""The driver's error reports: who gets them, and what it is when there are none."""

from __future__ import annotations

import threading
import time

import pytest

from supervisor.gpu.records import Reading, Unwatched, Xid
from supervisor.gpu.xids import REPEAT_S
from tests.fakes.nvml import LOST, FakeNvml

DEADLINE = 20.0


class Watched:
    """A reader, and what it says."""

    def __init__(self, driver, fake: FakeNvml) -> None:
        self.it = driver()
        self.fake = fake
        self.gpus = self.it.reader.list_gpus(30).gpus
        self.heard: list[object] = []

    def registered(self, gpu: int, times: int = 1) -> None:
        """Once an event set has that GPU; only the reader knows when, and it does not say."""
        until, pause = time.monotonic() + DEADLINE, threading.Event()
        while self.fake.watched(gpu) < times:
            assert time.monotonic() < until, "it is not registered"
            pause.wait(0.002)

    def next(self, kind: type):
        """The next message of that kind."""
        while True:
            for event in self.heard:
                if isinstance(event, kind):
                    self.heard.remove(event)
                    return event
            self.heard += self.it.reader.receive(time.monotonic()) or self.it.next_events()

    def next_xid(self) -> tuple[str, int]:
        xid = self.next(Xid)
        return xid.uuid, xid.code

    def sample(self) -> Reading:
        number = self.it.reader.request({}, time.monotonic())
        while (reading := self.next(Reading)).number != number:
            pass
        return reading


@pytest.fixture
def watched(fake_nvml, driver):
    made = Watched(driver, fake_nvml)
    made.registered(1)
    return made


def test_an_xid_is_reported_with_its_gpu_and_time(watched):
    before = time.monotonic()
    watched.fake.xid(1, 79)
    xid = watched.next(Xid)
    assert (xid.uuid, xid.code, xid.by_application) == (watched.fake.uuid(1), 79, False)
    assert before <= xid.at <= time.monotonic()
    watched.fake.xid(0, 31)
    assert watched.next(Xid).by_application


def test_a_storm_of_one_xid_is_reported_once_and_hides_no_other(watched):
    began = time.monotonic()
    for _ in range(20):
        watched.fake.xid(0, 31)
    watched.fake.xid(0, 43)
    watched.fake.xid(1, 31)
    wanted = [(watched.fake.uuid(0), 31), (watched.fake.uuid(0), 43), (watched.fake.uuid(1), 31)]
    seen = [watched.next_xid()]
    while seen[-1] != wanted[-1]:
        seen.append(watched.next_xid())
    assert list(dict.fromkeys(seen)) == wanted
    assert len(seen) - len(wanted) <= (time.monotonic() - began) / REPEAT_S  # a storm that lasts is reported again


def test_no_reading_waits_for_an_event_and_no_event_for_a_reading(watched):
    assert all(sample.error is None for sample in watched.sample().gpus)
    number = watched.it.reader.request({}, time.monotonic())
    watched.fake.xid(0, 48)
    assert watched.next_xid() == (watched.fake.uuid(0), 48)
    assert watched.next(Reading).number == number


def test_an_xid_answers_no_request(watched):
    watched.fake.hang("nvmlDeviceGetMemoryInfo")
    watched.it.reader.request({}, time.monotonic())
    watched.fake.xid(0, 48)
    watched.next(Xid)
    assert watched.it.reader.deadline() is not None
    watched.fake.switch("hang", on=False)
    watched.next(Reading)


def test_of_a_mig_instance_if_the_driver_names_one_else_of_all(fake_nvml, driver):
    fake_nvml.add(1, mig=2)
    watched = Watched(driver, fake_nvml)
    watched.registered(1)
    fake_nvml.xid(1, 94, instance=1)
    assert watched.next_xid() == ("MIG-00000001-1", 94)
    fake_nvml.xid(1, 79)
    assert [watched.next_xid() for _ in range(2)] == [("MIG-00000001-0", 79), ("MIG-00000001-1", 79)]


def test_a_gpu_that_comes_back_is_watched_again(watched):
    watched.fake.error(1, LOST)
    assert watched.sample().gpus[1].lost
    watched.fake.error(1, None)
    watched.sample()
    watched.registered(1, times=2)
    watched.fake.xid(1, 48)
    assert watched.next_xid() == (watched.fake.uuid(1), 48)


def test_after_a_hardware_xid_the_gpu_is_lost_while_the_driver_asks_for_a_reset(watched):
    watched.fake.recovery(0, 1)
    watched.fake.xid(0, 31)
    watched.next(Xid)
    assert not watched.sample().gpus[0].lost
    watched.fake.xid(0, 48)
    watched.next(Xid)
    sample = watched.sample().gpus[0]
    assert (sample.lost, sample.error) == (True, "the driver asks for a reset of the GPU")
    watched.fake.recovery(0, 0)
    sample = watched.sample().gpus[0]
    assert (sample.lost, sample.error, sample.memory_used_mib) == (False, None, 0)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nvmlEventSetCreate", ["Function Not Found"]),
        ("nvmlDeviceRegisterEvents", ["GPU 0: Function Not Found", "GPU 1: Function Not Found"]),
        ("", ["GPU 0: Not Supported", "GPU 1: Not Supported"]),
    ],
)
def test_a_driver_that_reports_none_is_said_and_the_gpus_are_read(fake_nvml, driver, function, said):
    if function:
        fake_nvml.missing(function)
    else:
        fake_nvml.switch("no-events")
    watched = Watched(driver, fake_nvml)
    assert [watched.next(Unwatched).reason for _ in said] == said
    assert all(sample.error is None for sample in watched.sample().gpus)
