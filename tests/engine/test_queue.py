"""The queue's order, and its window in memory."""

from supervisor.engine.queue import WINDOW, Backlog
from supervisor.job import Job, JobStatus


def job(seq, low=False):
    return Job(seq=seq, id=f"job-{seq}", status=JobStatus.IN_QUEUE, input=b"1", created_ms=0, low_priority=low)


class Store:
    """Queued jobs by seq, as the real store lists them."""

    def __init__(self):
        self.jobs = {}
        self.loads = 0

    def load(self, low, after, limit):
        self.loads += 1
        return [each for seq, each in sorted(self.jobs.items()) if seq > after and each.low_priority == low][:limit]


def take(backlog, store=None):
    """The next job, as a turn takes it: memory and store change together."""
    first = next((each for low in (False, True) for each in backlog.lane(low)), None)
    if first is not None:
        backlog.lane(first.low_priority).remove(first)
        if store is not None:
            store.jobs.pop(first.seq, None)
    return first


def test_low_priority_comes_last_and_both_lanes_are_in_order():
    backlog = Backlog(Store().load)
    for seq, low in [(1, True), (2, False), (3, True), (4, False)]:
        backlog.lane(low).add(job(seq, low))
    assert [take(backlog).seq for _ in range(4)] == [2, 4, 1, 3]
    assert take(backlog) is None


def test_a_requeued_job_takes_its_old_place():
    backlog = Backlog(Store().load)
    for seq in (1, 2, 3):
        backlog.lane(False).add(job(seq))
    first, second = take(backlog), take(backlog)
    backlog.lane(False).add(second)
    backlog.lane(False).add(first)
    assert [take(backlog).seq for _ in range(3)] == [1, 2, 3]


def test_jobs_requeued_in_any_order_take_their_old_places_in_memory_and_beyond():
    store = Store()
    backlog = Backlog(store.load)
    lane = backlog.lane(False)
    for seq in range(1, 2 * WINDOW + 1):
        store.jobs[seq] = job(seq)
        lane.add(store.jobs[seq])
    numbers = (7, 3, WINDOW + 5, 5, 2 * WINDOW)
    for seq in numbers:
        lane.remove(store.jobs.pop(seq))
    for seq in numbers:
        store.jobs[seq] = job(seq)
        lane.add(store.jobs[seq])
    assert [take(backlog, store).seq for _ in range(2 * WINDOW)] == list(range(1, 2 * WINDOW + 1))
    assert (len(backlog), take(backlog, store)) == (0, None)


def test_the_last_job_of_the_window_that_is_put_back_is_not_lost():
    store = Store()
    backlog = Backlog(store.load)
    for seq in range(1, WINDOW + 3):
        store.jobs[seq] = job(seq)
        backlog.lane(False).add(store.jobs[seq])
    taken = [take(backlog, store) for _ in range(WINDOW)]
    store.jobs[WINDOW] = taken[-1]
    backlog.lane(False).add(taken[-1])
    assert [take(backlog, store).seq for _ in range(3)] == [WINDOW, WINDOW + 1, WINDOW + 2]
    assert len(backlog) == 0


def test_jobs_that_wait_again_in_an_empty_queue_are_not_looked_for_in_the_store():
    store = Store()
    lane = Backlog(store.load).lane(False)
    for seq in (5, 9, 7, 8):
        lane.add(job(seq))
    assert ([each.seq for each in lane], store.loads) == ([5, 7, 8, 9], 0)


def test_beyond_the_window_jobs_wait_in_the_store_alone():
    store = Store()
    backlog = Backlog(store.load)
    for seq in range(1, 2 * WINDOW + 11):
        store.jobs[seq] = job(seq)
        backlog.lane(False).add(store.jobs[seq])
    assert backlog.get("job-1") is not None
    assert backlog.get(f"job-{WINDOW + 1}") is None
    assert len(backlog) == 2 * WINDOW + 10
    assert [take(backlog, store).seq for _ in range(2 * WINDOW + 10)] == list(range(1, 2 * WINDOW + 11))
    assert (len(backlog), store.loads) == (0, 2)


def test_what_the_store_held_at_the_start_comes_first():
    store = Store()
    store.jobs = {1: job(1), 2: job(2)}
    backlog = Backlog(store.load, 2)
    store.jobs[3] = job(3)
    backlog.lane(False).add(store.jobs[3])
    assert [take(backlog).seq for _ in range(3)] == [1, 2, 3]


def test_a_job_that_was_removed_unseen_is_not_counted():
    store = Store()
    store.jobs = {1: job(1), 2: job(2)}
    backlog = Backlog(store.load, 2)
    backlog.lane(False).remove(store.jobs.pop(1))
    assert take(backlog, store).seq == 2
    assert (len(backlog), take(backlog, store)) == (0, None)


def test_remove_from_the_window():
    backlog = Backlog(Store().load)
    backlog.lane(False).add(job(1))
    backlog.lane(False).add(job(2))
    backlog.lane(False).remove(job(1))
    assert (len(backlog), take(backlog).seq) == (1, 2)


def test_the_oldest_are_known_without_being_taken():
    store = Store()
    store.jobs = {seq: job(seq) for seq in range(1, 2 * WINDOW + 1)}
    backlog = Backlog(store.load, len(store.jobs))
    lane = backlog.lane(False)
    backlog.lane(True).add(job(9_999, low=True))
    taken = [take(backlog, store) for _ in range(WINDOW - 1)]
    store.jobs[taken[0].seq] = taken[0]
    lane.add(taken[0])
    assert [each.seq for each in backlog.oldest(3)] == [1, WINDOW, WINDOW + 1, 9_999]
    assert [each.seq for each in backlog.oldest(3)] == [1, WINDOW, WINDOW + 1, 9_999]
    assert len(backlog) == WINDOW + 3
    assert [take(backlog, store).seq for _ in range(WINDOW + 3)] == [1, *range(WINDOW, 2 * WINDOW + 1), 9_999]
    assert take(backlog) is None
