"""Many jobs, a few at a time."""

import itertools

import pytest

from supervisor.errors import JobFailed


def test_in_order(make):
    with make(workers=2) as sv:
        assert list(sv.map(range(200))) == list(range(200))


def test_as_completed(make, held):
    with make(workers=2) as sv:
        outputs = sv.map([held.input, 1, 2, 3], as_completed=True)
        assert sorted(itertools.islice(outputs, 3)) == [1, 2, 3]
        held.release()
        assert list(outputs) == [held.input]


def test_nothing_to_do(sv):
    assert list(sv.map([])) == list(sv.map([], as_completed=True)) == []


@pytest.mark.parametrize("as_completed", [False, True])
def test_endless_input_is_read_only_a_little_ahead(sv, as_completed):
    read = 0

    def reading(number):
        nonlocal read
        read = number
        return number

    outputs = sv.map(map(reading, itertools.count(1)), as_completed=as_completed, buffersize=3)
    assert read == 0, "nothing before the first is asked for"
    for taken in range(1, 20):
        assert next(outputs) == taken
        assert read <= taken + 3
    outputs.close()
    assert sv.submit("after").result(timeout=20) == "after"


@pytest.mark.parametrize("as_completed", [False, True])
def test_the_first_failure_ends_it(sv, as_completed):
    read = []
    inputs = (
        {"raise": "boom"} if number == 5 else number for number in itertools.count() if read.append(number) is None
    )
    outputs = sv.map(inputs, as_completed=as_completed, buffersize=4)
    assert list(itertools.islice(outputs, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(JobFailed, match="boom"):
        next(outputs)
    assert len(read) <= 10, "it is fed no more"
    assert list(outputs) == []


def test_what_waits_is_cancelled_when_it_is_given_up(sv, held, wait_until):
    wait_until(lambda: not sv.workers()[0].running)  # what a test before may have left
    before = sv.workers()[0].jobs
    outputs = sv.map([1, held.input, 3, 4], buffersize=3)
    assert next(outputs) == 1
    held_by = sv.workers()[0].pid
    outputs.close()
    held.release()
    wait_until(lambda: not sv.workers()[0].running)
    assert sv.workers()[0].pid == held_by, "the one that ran may end"
    assert sv.workers()[0].jobs == before + 2, "3 and 4 never started"


def test_input_that_raises(sv):
    def inputs():
        yield 1
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        list(sv.map(inputs()))


def test_a_senseless_buffer(sv):
    with pytest.raises(ValueError, match="buffersize"):
        sv.map([1], buffersize=0)
