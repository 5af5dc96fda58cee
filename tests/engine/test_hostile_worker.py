"""What a worker writes that no worker of ours would: it costs that worker, at a named limit, and nobody else."""

import signal

import msgspec
import pytest

from supervisor import notice
from supervisor.cause import NotEncodable, ProtocolBroken, StreamTooLarge
from supervisor.engine import reports
from supervisor.job import JobStatus
from supervisor.pool.notices import WARNINGS
from supervisor.pool.pipes import validation
from supervisor.pool.pipes.log_pipe import TURN_LINES
from supervisor.pool.pipes.message_pipe import CLOGGED_BYTES, TURN_MESSAGES
from supervisor.protocol.wording import error_of
from supervisor.wire import messages as wire

MIB = 2**20
DONE = b'"done"'
DEEP = b"\x91" * 100_000 + b"\x01"
NO_UTF8 = b"\x82\xa4type\xa7warning\xa7message\xa2\xff\xfe"


def packed(**fields):
    return msgspec.msgpack.encode(fields)


LOST = packed(type="done", job="a", status="FAILED", cause={"type": "worker_lost", "slot": "cpu1", "pid": 1, "end": {}})

BREACHES = {
    "nothing": (b"", "malformed message (0 bytes)"),
    "no MessagePack": (b"\xc1", "malformed message (1 bytes)"),
    "no map": (b"\x01", "malformed message"),
    "something behind it": (packed(type="capacity", capacity=1) + b"\x01", "trailing"),
    "no text in UTF-8": (NO_UTF8, "malformed message"),
    "nested without end": (b"\x83\xa4type\xa7warning\xa7message\xa1a\xa1x" + DEEP, "malformed message"),
    "an unknown message of a long name": (packed(type="x" * MIB), "malformed message"),
    "a message of the other direction": (packed(type="run", job="a", input=b"1"), "malformed message"),
    "a field of another type": (packed(type="capacity", capacity="x" * MIB), "Expected `int`"),
    "ready as nothing known": (wire.Ready(1, "x" * MIB), "is not a kind of handler"),
    "ready twice": (wire.Ready(1, "function"), "Ready was sent twice"),
    "the end of a job of a long name": (wire.Done("x" * MIB, "COMPLETED", DONE), "the job does not run in this worker"),
    "the end of another's job": (wire.Done("b", "COMPLETED", DONE), "the job does not run in this worker"),
    "an end that is none": (wire.Done("a", "x" * MIB), "is not a valid end of a job"),
    "time out by its own word": (wire.Done("a", "TIMED_OUT"), "is not a valid end of a job"),
    "a failure without an error": (wire.Done("a", "FAILED"), "'FAILED' with no error is not a valid end of a job"),
    "success with an error": (
        wire.Done("a", "COMPLETED", DONE, "no"),
        "'COMPLETED' with an error is not a valid end of a job",
    ),
    "two errors": (
        wire.Done("a", "FAILED", None, "no", cause=NotEncodable("no")),
        "with two errors is not a valid end of a job",
    ),
    "success with a cause": (
        wire.Done("a", "COMPLETED", DONE, cause=NotEncodable("no")),
        "is not a valid end of a job",
    ),
    "the end of its worker, by its own word": (LOST, "Invalid value 'worker_lost'"),
    "output that ends too early": (wire.Done("a", "COMPLETED", b'{"n":'), "its output is not JSON"),
    "output of two values": (wire.Done("a", "COMPLETED", b'1}\n{"id":"b"'), "its output is not JSON"),
    "output that is empty": (wire.Done("a", "COMPLETED", b""), "its output is not JSON"),
    "output not in UTF-8": (wire.Done("a", "COMPLETED", b'"\xff"'), "its output is not JSON"),
    "output that ends in half a character": (wire.Done("a", "COMPLETED", b'"\xe2\x82"'), "its output is not JSON"),
    "output nested without end": (wire.Done("a", "COMPLETED", b"[" * MIB + b"]" * MIB), "is nested too deeply"),
    "progress that is none": (wire.Progress("a", b"NaN"), "its progress is not JSON"),
    "progress over the limit": (
        wire.Progress("a", b'"%b"' % (b"x" * wire.MAX_PROGRESS)),
        f"over the limit of {wire.MAX_PROGRESS}",
    ),
    "a chunk that is none": (wire.Chunk("a", 0, b"}"), "chunk 0 is not JSON"),
    "a chunk before its turn": (wire.Chunk("a", 7, b"1"), "chunk 7 out of order"),
    "a negative chunk": (wire.Chunk("a", -1, b"1"), "chunk -1 out of order"),
    "a chunk that will never be": (wire.Chunk("a", 2**63, b"1"), f"chunk {2**63} out of order"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_protocol_costs_the_worker_and_its_job(make_house, name):
    said, words = BREACHES[name]
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    bad, good = house.worker("cpu0"), house.worker("cpu1")
    bad.write_raw(wire.frame(said if isinstance(said, bytes) else msgspec.msgpack.encode(said)))
    house.until(lambda: bad.signals == ["tree"])
    bad.dies(-signal.SIGKILL)
    failed = house.ended("a")
    assert failed.status is JobStatus.FAILED
    assert isinstance(failed.cause.end, ProtocolBroken)
    assert words in failed.cause.end.what
    assert len(error_of(failed)) < 1000
    good.say(wire.Done("b", "COMPLETED", DONE))
    assert house.ended("b").status is JobStatus.COMPLETED
    assert len(msgspec.json.encode(house.engine.snapshot())) < 20_000


HARMLESS = {
    "progress of a job of no one": [wire.Progress("x" * MIB, b"1")],
    "a chunk of another's job": [wire.Chunk("b", 0, b'"lie"')],
    "progress after the end": [wire.Done("a", "COMPLETED", DONE), wire.Progress("a", b"1"), wire.Chunk("a", 9, b"1")],
    "a load that failed long ago": [wire.LoadFailed("x" * MIB, "y" * MIB, "z" * MIB)],
    "room without end": [wire.Capacity(2**63), wire.Capacity(10**9)],
    "less than no room": [wire.Capacity(-(10**9))],
    "a long warning": [wire.Warning("x" * 4 * MIB)],
    "a long poison": [wire.Done("a", "FAILED", None, "no", poisoned="x" * MIB)],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_out_of_place_changes_nothing_for_others(make_house, name):
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    bad, good = house.worker("cpu0"), house.worker("cpu1")
    bad.write(*HARMLESS[name])
    house.settle()
    assert bad.signals == []
    assert house.engine.job("b").chunks == 0
    good.say(wire.Done("b", "COMPLETED", DONE))
    assert house.ended("b").output == DONE
    assert len(msgspec.json.encode(house.engine.snapshot())) < 20_000
    assert house.pool.slots["cpu0"].capacity <= wire.MAX_CAPACITY
    bad.dies(-signal.SIGKILL)
    if name == "a load that failed long ago":
        assert len(error_of(house.ended("a"))) < 2 * validation.MAX_TEXT


def test_an_end_said_twice_counts_once(house):
    house.submit()
    house.worker().say(wire.Done("a", "COMPLETED", b"1"), wire.Done("a", "COMPLETED", b"2"))
    assert house.ended().output == b"1"
    house.until(lambda: house.worker().signals == ["tree"])
    assert house.engine.job("a").output == b"1"


def test_what_was_said_before_a_breach_counts(house):
    house.submit()
    house.worker().write_raw(
        wire.frame(msgspec.msgpack.encode(wire.Done("a", "COMPLETED", b"1"))) + wire.frame(b"\xc1")
    )
    assert house.ended().output == b"1"
    house.until(lambda: house.worker().signals == ["tree"])


def test_warnings_without_end_are_heard_no_more(house):
    house.worker().say(*(wire.Warning(f"number {number}") for number in range(2 * WARNINGS)))
    house.worker().say(wire.Capacity(3))
    house.until(lambda: house.pool.slots["cpu0"].capacity == 3)
    told = [told for told in house.told if isinstance(told, notice.Notice) and told.level is notice.Level.WARNING]
    assert told[-2:] == [
        notice.WorkerWarned("cpu0", f"number {WARNINGS - 1}"),
        notice.WarningsLeftOut("cpu0", WARNINGS),
    ]


@pytest.mark.parametrize("size", [1, 16_000])
def test_a_stream_without_end_has_one(make_house, monkeypatch, size):
    """Many small chunks are no way out: each counts for more than its bytes."""
    monkeypatch.setattr(reports, "LEAST_RESULT", 0)
    house = make_house(max_result="16KiB")
    house.start()
    house.submit()
    room = reports.STREAM_RESULTS * 16 * 1024 // (size + reports.CHUNK_COST)
    value = b"1" * size
    house.worker().write(*(wire.Chunk("a", index, value) for index in range(room)))
    house.until(lambda: house.engine.job("a").chunks == room)
    house.worker().write(wire.Chunk("a", room, value))
    ended = house.ended()
    assert ended.status is JobStatus.FAILED
    assert ended.cause == StreamTooLarge(room + 1, reports.CHUNK_COST, 163_840, reports.STREAM_RESULTS)
    house.until(lambda: house.worker().signals == [signal.SIGTERM])


def test_a_turn_takes_only_so_much_from_one_worker(make_house):
    house = make_house(slots=2)
    house.start()
    house.submit("a")
    house.submit("b")
    flood = [wire.Chunk("a", index, b"1") for index in range(3 * TURN_MESSAGES)]
    codec = wire.Codec(wire.FromWorker)
    house.worker("cpu0").write_raw(b"".join(wire.frame(codec.encode(message)) for message in flood))
    house.worker("cpu0").prints("\n" * 3 * TURN_LINES)
    house.worker("cpu1").say(wire.Done("b", "COMPLETED", DONE))
    taken = []

    def look():
        taken.append(
            (house.engine.job("a").chunks, sum(len(told.lines) for told in house.told if hasattr(told, "lines")))
        )
        return taken[-1] == (len(flood), 3 * TURN_LINES)

    house.until(look)  # with nothing more in the pipe to wake it
    steps = list(zip([(0, 0), *taken], taken, strict=False))
    assert max(after[0] - before[0] for before, after in steps) <= TURN_MESSAGES
    assert max(after[1] - before[1] for before, after in steps) <= TURN_LINES
    assert house.ended("b").status is JobStatus.COMPLETED


def test_a_worker_that_does_not_read_gets_no_more_than_it_has_room_for(make_house):
    house = make_house(slots=2)
    house.start(kind="coroutine", capacity=100)
    large = b'"' + b"x" * CLOGGED_BYTES + b'"'
    jobs = [f"job{number}" for number in range(8)]
    for job in jobs[:4]:
        house.submit(job, large)  # two to each: the first fills its pipe
    running = {name: len(slot.running) for name, slot in house.pool.slots.items()}
    for job in jobs[4:]:
        house.submit(job, large)
    assert {name: len(slot.running) for name, slot in house.pool.slots.items()} == running
    assert house.engine.job(jobs[-1]).status is JobStatus.IN_QUEUE

    def cpu1_reads():
        house.worker("cpu1").reads_on()
        return len(house.pool.slots["cpu1"].running) > running["cpu1"]

    house.until(cpu1_reads)
    assert len(house.pool.slots["cpu0"].running) == running["cpu0"]
    house.worker("cpu0").dies(-signal.SIGKILL)
    house.until(lambda: house.worker("cpu0").generation == 2)
    house.worker("cpu0").ready("coroutine", 100)
    house.submit("for the next")
    assert house.pool.slots["cpu0"].running == ("for the next",)


def test_half_a_message_for_ever_costs_its_own_job_only(make_house):
    house = make_house(slots=2, max_result="1MiB")
    house.start()
    house.submit("a")
    house.submit("b")
    bad = house.worker("cpu0")
    bad.write_raw((MIB).to_bytes(4, "big") + b"x" * 1000)
    house.worker("cpu1").say(wire.Done("b", "COMPLETED", DONE))
    assert house.ended("b").status is JobStatus.COMPLETED
    house.wait(house.engine.cancel("a"))
    house.until(lambda: bad.signals == [signal.SIGTERM])
    bad.dies(-signal.SIGTERM)
    house.until(lambda: house.worker("cpu0").generation == 2)


@pytest.mark.parametrize("size", [MIB + wire.OVERHEAD + 1, 2**31 - 1])
def test_a_message_that_would_be_too_long_is_refused_at_its_first_bytes(make_house, size):
    house = make_house(limit=MIB + wire.OVERHEAD)
    house.start()
    house.submit()
    house.worker().write_raw(size.to_bytes(4, "big"))
    house.until(lambda: house.worker().signals == ["tree"])
    house.worker().dies(-signal.SIGKILL)
    assert f"a message of {size} bytes is over the limit of {MIB + wire.OVERHEAD}" in house.ended().cause.end.what
