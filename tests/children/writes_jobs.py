"""Opens the store FILE and takes JOBS jobs (0: without end) through their life, one commit each; says the number of each
once it is committed, or the name of the error that kept it from opening. Then waits for the end of its input.
DURABILITY is the store's."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from supervisor.errors import StoreError, SuperviseError
from supervisor.job import JobRequest, JobStatus, Outcome
from supervisor.store.opening import Durability
from supervisor.store.store import Store
from supervisor.store.writes import End, Insert, StartJob


def main(file: Path, jobs: int, durability: Durability) -> None:
    delivered: SimpleQueue[Callable[[], None]] = SimpleQueue()
    try:
        store = Store.open(file, durability=durability, deliver=delivered.put)
    except SuperviseError as error:
        print(type(error).__name__, flush=True)
        return
    for seq in itertools.count(store.next_seq):
        outcome = Outcome(JobStatus.COMPLETED, b"%d" % seq)
        batch = (Insert(seq, JobRequest(f"job-{seq}", b"1"), 1), StartJob(seq, 2, "cpu0-1"), End(seq, outcome, 3))

        def done(error: StoreError | None, seq: int = seq) -> None:
            if error is not None:
                raise error
            print(seq, flush=True)

        store.commit(batch, done)
        if durability == "full":
            delivered.get()()
        if seq == jobs:
            break
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "full" if "full" in sys.argv[3:] else "normal")
