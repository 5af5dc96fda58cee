"""The reader process is asked, hangs, dies and is replaced; the supervisor's side never waits."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from supervisor.gpu.client import Reader, ReaderFailed
from supervisor.gpu.records import Listing, Reading, WorkerRef

HOLD_A_READER = """
import sys, time
from supervisor.gpu.client import Reader
reader = Reader(simulate=int(sys.argv[1]))
reader.start(time.monotonic())
if sys.argv[1] == "0":
    reader.request({}, time.monotonic())
else:
    reader.list_gpus(30)
print(*reader.pids, flush=True)
"""


def pid_of(reader: Reader) -> int:
    (pid,) = reader.pids
    return pid


def test_one_request_is_under_way_and_the_newest_waits_behind_it(driver):
    it = driver(simulate=1)
    now = time.monotonic()
    first = it.reader.request({}, now)
    second = it.reader.request({}, now)
    uuid = "SIM-00000000-0000-0000-0000-000000000000"
    assert it.reader.request({"gpu0": WorkerRef(os.getpid(), (uuid,))}, now) == second == first + 1
    assert it.answer(first).gpus[0].processes == ()
    waited_for = it.answer(second)
    assert [process.slot for process in waited_for.gpus[0].processes][:1] == ["gpu0"]
    assert it.reader.deadline() is None
    assert it.reader.request({}, now) == second + 1


def test_a_reading_was_true_after_it_was_asked_for(driver):
    it = driver(simulate=1)
    before = time.monotonic()
    reading = it.sample()
    assert before <= reading.at <= time.monotonic()


def test_a_hanging_call_costs_the_reader_and_nobody_waits(fake_nvml, driver, gone):
    it = driver(timeout=0.2)
    it.sample()
    stuck, descriptor = pid_of(it.reader), it.reader.fileno()
    fake_nvml.switch("hang")
    it.reader.request({}, time.monotonic())
    assert it.next_events() == [ReaderFailed("NVML did not answer within 0.2 s")]
    assert gone(stuck)
    fake_nvml.switch("hang", False)
    number = it.reader.request({}, time.monotonic())  # asked while no reader runs
    it.reader.tick(it.reader.deadline())
    assert it.answer(number).error is None
    assert pid_of(it.reader) != stuck
    assert it.reader.fileno() == descriptor


def test_the_first_answer_may_take_longer_because_drivers_wake_up_slowly(fake_nvml, driver):
    fake_nvml.switch("hang")
    it = driver(timeout=0.1, start_timeout=30.0)
    now = time.monotonic()
    it.reader.request({}, now)
    assert it.reader.deadline() == now + 30.0
    assert it.reader.tick(now + 1.0) == []
    assert it.reader.tick(now + 30.0) == [ReaderFailed("NVML did not answer within 30 s")]


def test_pauses_grow_until_an_answer_comes(driver, monkeypatch):
    monkeypatch.setattr("supervisor.gpu.client._MAIN", "/nonexistent/reader.py")
    it = driver(simulate=1)
    pauses, reasons = [], []
    now = time.monotonic()
    for _ in range(7):
        assert select.select([it.reader], [], [], 30)[0]
        (event,) = it.reader.receive(now)
        reasons.append(event.reason)
        pauses.append(round(it.reader.deadline() - now))
        it.reader.start(now)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert "can't open file" in reasons[0]
    monkeypatch.undo()
    it.next_events()
    it.reader.start(time.monotonic())
    it.sample()
    os.kill(pid_of(it.reader), signal.SIGKILL)
    it.next_events()
    assert it.reader.deadline() - time.monotonic() <= 1.0


def test_a_killed_reader_is_replaced_and_answers(driver):
    it = driver(simulate=1)
    it.sample()
    os.kill(pid_of(it.reader), signal.SIGKILL)
    assert it.next_events() == [ReaderFailed("it exited")]
    it.reader.tick(it.reader.deadline())
    assert it.sample().gpus


def test_a_reader_that_dies_over_an_unread_request_has_ended(driver):
    it = driver(simulate=1)
    it.sample()
    os.kill(pid_of(it.reader), signal.SIGSTOP)
    it.reader.request({}, time.monotonic())
    os.kill(pid_of(it.reader), signal.SIGKILL)
    assert it.next_events() == [ReaderFailed("it exited")]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_by_the_supervisors_word_only(driver, signum):
    it = driver(simulate=1)
    it.sample()
    pid = pid_of(it.reader)
    assert os.getsid(pid) == pid
    os.kill(pid, signum)
    it.sample()
    assert pid_of(it.reader) == pid


def test_finds_its_own_package_wherever_it_is_started(driver, tmp_path, monkeypatch):
    (tmp_path / "supervisor.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "msgspec.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert driver(simulate=1).sample().gpus


@pytest.mark.parametrize("simulate", ["1", "0"], ids=["idle", "hanging"])
def test_ends_with_a_supervisor_that_was_killed(fake_nvml, child, gone, simulate):
    fake_nvml.switch("hang")
    supervisor = child(HOLD_A_READER, simulate)
    pid = int(supervisor.line())
    supervisor.kill()
    assert gone(pid)


def test_close_leaves_nothing(driver, gone):
    reader = driver(simulate=1).reader
    pid = pid_of(reader)
    reader.close()
    assert gone(pid)
    reader.tick(time.monotonic())  # reaps one that took longer to die than `close` waits
    assert reader.pids == frozenset()


def test_list_gpus_gives_up_in_time_and_says_why(fake_nvml, driver):
    fake_nvml.switch("hang")
    it = driver()
    told = []
    listing = it.reader.list_gpus(0.3, lambda: told.append("slow"), slow_after=0.1)
    assert listing == Listing(reason="the GPUs cannot be read: NVML did not answer within 0.3 s")
    assert told == ["slow"]
    assert it.reader.list_gpus(0.0, lambda: told.append("slow, and over"), slow_after=0.0).reason is not None
    assert told[1:] == ["slow, and over"]
    fake_nvml.switch("hang", False)
    it.reader.tick(it.reader.deadline())
    assert isinstance(it.sample(), Reading)


def test_a_reader_that_cannot_be_started_is_an_event(driver, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    reader = Reader(simulate=1)
    (event,) = reader.start(0.0)
    assert "No such file" in event.reason
    assert reader.deadline() == 1.0
    assert reader.receive(0.5) == []
    reader.close()
