"""A disk that refuses at every single turn of a mixed load: requests are refused, and what has happened is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from supervisor.engine.commands import PURGE_PIECE
from supervisor.errors import RequestError, StoreError
from supervisor.job import JobRequest, JobStatus
from supervisor.wire import messages as wire

HOOK = b'{"webhook":"http://receiver.test"}'
JOBS = ("done", "failed", "cancelled", "slow", "queued", "low", "late", "one", "two", "three", "four", "purged")
SECRET = b'{"key":"k"}'


class Load:
    """The same mixed load each time. ``at``: the number of the commit that the disk refuses, with ``more`` after it."""

    def __init__(self, house, at, more):
        self.house = house
        self.refuses = range(at, at + more + 1)
        self.commits = 0
        self.answers = {}
        self.refused = set()
        commit = house.store.commit

        def to_disk(batch, done):
            self.commits += 1
            if self.commits - 1 in self.refuses:
                before = house.memory_of_the_engine()
                done(StoreError("the disk is full"))
                after = house.memory_of_the_engine()
                assert [*after[:5], after[6]] == [*before[:5], before[6]], "a refusal has changed memory"
            else:
                commit(batch, done)

        house.store.commit = to_disk

    def ask(self, name, call, *given):
        with contextlib.suppress(RequestError):
            self.answers[name] = call(*given)
            return
        assert self.house.engine._loop.refusal is not None
        self.refused.add(name)

    def settle(self):
        """Until the disk takes all again; time goes on for its retries alone."""
        house = self.house
        for _ in range(10):
            house.settle()
            assert not house.faults, house.faults
            if house.engine._loop.refusal is None:
                return
            house.loop.now += 0.6
        raise AssertionError("the disk was never tried again")

    def run(self):
        house, engine = self.house, self.house.engine
        for each in house.workers:
            each.say(wire.Ready(each.pid, "coroutine", 1))
        self.settle()
        for name, fields in {
            "done": {"extras": HOOK, "s3_config": SECRET},
            "failed": {},
            "cancelled": {"extras": HOOK},
            "slow": {"timeout_ms": 5_000},
            "queued": {"s3_config": SECRET},
            "low": {"low_priority": True},
        }.items():
            self.ask(name, engine.submit, JobRequest(name, b'"x"', **fields))
            if name in ("failed", "slow"):
                self.settle()
        self.settle()
        self.speak("done", wire.Progress("done", b"1"), wire.Chunk("done", 0, b"0"), log="of done\n")
        self.speak("failed", wire.Chunk("failed", 0, b"0"), log="x" * 40_000 + "\n")
        self.ask("taken", self.take, "done")
        self.ask("cancel", engine.cancel, "cancelled")
        self.settle()
        self.speak("done", wire.Chunk("done", 1, b"1"), wire.Done("done", "COMPLETED", b'"out"'))
        self.speak("failed", wire.Done("failed", "FAILED", error="why"))
        self.ask("cancel both", engine.cancel, "queued")
        self.settle()
        self.ask("retry", engine.retry, "failed")
        self.settle()
        house.loop.now += 6  # "slow" is out of time
        self.settle()
        for each in house.workers:
            each.dies(-9)
        self.settle()
        for each in house.workers:
            each.say(wire.Ready(each.pid, "coroutine", 1))
        self.ask("late", engine.submit, JobRequest("late", b"1"))
        self.settle()
        self.all_end()
        for name in ("one", "two", "three", "four", "purged"):
            self.ask(name, engine.submit, JobRequest(name, b"1"))
        self.settle()
        self.ask("purge", engine.purge)
        self.settle()
        self.all_end()

    def all_end(self):
        for _ in range(3):
            for worker in self.house.workers:
                for job in worker.listen():
                    worker.say(wire.Done(job, "CANCELLED" if job in worker.cancelled else "COMPLETED", b"1"))
            self.settle()

    def take(self, job):
        return asyncio.ensure_future(self.house.engine.streams.take(job, 0), loop=self.house.loop)

    def speak(self, job, *messages, log=""):
        """Have the worker that runs ``job``, if one does, print and say that."""
        active = self.house.engine._jobs.active.get(job)
        if active is not None:
            worker = self.house.worker(active.slot)
            worker.prints(log)
            worker.say(*messages)

    def check(self):
        """Who was answered finds it on disk; who was refused finds that nothing happened; memory is as the disk."""
        house = self.house
        for name, answer in self.answers.items():
            if name == "taken":
                continue
            assert answer.done(), f"{name}: no answer"
            if answer.exception() is not None:
                assert answer.exception().status in (503, 409)
                self.refused.add(name)
        jobs = {name: house.store.get(name) for name in JOBS}
        self.ends = {name: job.status.value for name, job in jobs.items() if job is not None}
        for name, job in jobs.items():
            assert (job is None) == (name in self.refused)
            if job is None:
                continue
            assert job.status.terminal, name
            assert house.engine.job(name).replace(input=b"") == job.replace(input=b"")
            hooks = sum(hook.job == name for hook in house.store.outbox.waiting("http://receiver.test", 99))
            assert hooks == (1 if job.extras else 0), "not one webhook for its end"
        if jobs["done"] is not None:
            assert (jobs["done"].status, jobs["done"].output) == (JobStatus.COMPLETED, b'"out"')
            assert house.engine.logs.read("done").text == b"of done\n"
        if jobs["slow"] is not None:
            assert jobs["slow"].status is JobStatus.TIMED_OUT
        if jobs["cancelled"] is not None and "cancel" not in self.refused:
            assert jobs["cancelled"].status is JobStatus.CANCELLED
        live = {name for name, job in jobs.items() if job is not None and job.has_s3_config and not job.status.terminal}
        assert house.secret_files() == {hashlib.sha256(name.encode()).hexdigest() for name in live}
        counts, ended = house.engine.snapshot().jobs, [job.status for job in jobs.values() if job is not None]
        assert (counts.completed, counts.in_progress, counts.in_queue) == (ended.count(JobStatus.COMPLETED), 0, 0)
        assert house.engine.ready


def play(played_house, at, more, **options):
    house = played_house(slots=4, max_attempts=2, **options)
    try:
        house.settle()
        load = Load(house, at, more)
        load.run()
        load.check()
        return load
    finally:
        house.close()


@pytest.mark.parametrize(("slow", "more"), [(False, 0), (True, 3)])
def test_a_disk_that_refuses_at_any_turn_loses_nothing_and_undoes_nothing(played_house, slow, more):
    whole = play(played_house, 10**9, 0, slow=slow)
    assert not whole.refused
    assert 8 < whole.commits < 60
    assert whole.ends == {
        **dict.fromkeys(JOBS, "COMPLETED"),
        "cancelled": "CANCELLED",
        "slow": "TIMED_OUT",
        "queued": "CANCELLED",
        "purged": "CANCELLED",
    }
    for at in range(whole.commits):
        play(played_house, at, more, slow=slow)


def test_a_purge_in_many_turns_is_refused_at_any_of_them(played_house):
    for at in range(4):
        house = played_house(slots=1)
        try:
            house.settle()
            for number in range(2 * PURGE_PIECE + 5):
                house.engine.submit(JobRequest(f"job-{number}", b"1"))
            house.settle()
            load = Load(house, at, 0)
            load.ask("purge", house.engine.purge)
            load.settle()
            (answer,) = load.answers.values()
            removed = house.store.counts().jobs[JobStatus.CANCELLED]
            if at < 3:
                assert removed == at * PURGE_PIECE
                assert answer.exception().status == 503
            else:
                assert removed == answer.result() == 2 * PURGE_PIECE + 5
            assert len(house.engine._jobs.backlog) == 2 * PURGE_PIECE + 5 - removed
        finally:
            house.close()
