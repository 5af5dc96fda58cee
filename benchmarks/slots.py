"""Measures what a job costs the supervisor by the number of slots: `python benchmarks/slots.py`.

The engine and its store are the real ones; slots and workers are pretended: the figures are the supervisor's own. Three of them
for 1, 8, 100 and 800 slots, each the median of --runs, interleaved, and its ratio to that of 8 slots:
- one at a time: CPU time of one job, in µs, while the other slots are idle;
- all busy: CPU time of one job, in µs, while every slot runs one and others wait;
- snapshot: CPU time of one snapshot for a screen, in ms (it shows every slot, so this grows with them).
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from supervisor.config.resolve import make_settings  # noqa: E402 - found by the line above
from supervisor.engine.engine import Engine  # noqa: E402
from supervisor.job import JobRequest  # noqa: E402
from supervisor.protocol.responses import status_body  # noqa: E402
from supervisor.store.secrets import SecretFiles  # noqa: E402
from supervisor.store.store import Store  # noqa: E402
from tests.fakes.pool import PretendPool  # noqa: E402

COUNTS = (1, 8, 100, 800)
NUMBERS = itertools.count()
A_TURN = 4
"""How many jobs end in one turn when all slots are busy."""


@contextmanager
def engine_over(slots):
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings("benchmark:handler", store=Path(folder, "jobs.db"))
        with Store.open(settings.store) as store:
            loop = asyncio.get_running_loop()
            engine = Engine(settings, store, SecretFiles(Path(folder, "secrets")), loop, status_body)
            pool = PretendPool(engine.wake)
            for number in range(slots):
                pool.come(f"box{number // 8}:gpu{number % 8}")
            engine.attach(pool)
            engine.start()
            yield engine, pool
            engine.close()


async def one_at_a_time(engine, pool, jobs):
    for _ in range(jobs):
        job = await engine.submit(JobRequest(id=f"single-{next(NUMBERS)}", input=b"1"))
        ended = asyncio.ensure_future(engine.wait(job.id, 10))
        pool.ends(next(slot for slot, name in pool.given if name == job.id), job.id)
        await ended


async def all_busy(engine, pool, jobs):
    """``jobs`` end, at most ``A_TURN`` in a turn, and as many arrive."""
    ended = 0
    while ended < jobs:
        running = list(itertools.islice(pool.given, A_TURN))
        arrived = [engine.submit(JobRequest(id=f"busy-{next(NUMBERS)}", input=b"1")) for _ in running]
        for slot, job in running:
            pool.ends(slot, job)
        await asyncio.gather(*arrived)
        ended += len(running)


async def cpu_time(work):
    began = time.process_time()
    await work
    return time.process_time() - began


async def snapshots(engine, count):
    for _ in range(count):
        engine.snapshot()


async def measure(slots, jobs):
    """The three figures, in seconds of CPU time."""
    with engine_over(slots) as (engine, pool):
        await one_at_a_time(engine, pool, 50)
        single = await cpu_time(one_at_a_time(engine, pool, jobs)) / jobs
        for _ in range(slots + 2 * A_TURN):
            await engine.submit(JobRequest(id=f"busy-{next(NUMBERS)}", input=b"1"))
        await all_busy(engine, pool, 50)
        busy = await cpu_time(all_busy(engine, pool, jobs)) / jobs
        return single, busy, await cpu_time(snapshots(engine, 10)) / 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2000)
    options = parser.parse_args()
    found = {slots: [] for slots in COUNTS}
    for _ in range(options.runs):
        for slots in COUNTS:
            found[slots].append(asyncio.run(measure(slots, options.jobs)))
    medians = {
        slots: [statistics.median(figure) for figure in zip(*runs, strict=True)] for slots, runs in found.items()
    }
    print(f"{'slots':>5}  {'one at a time':>17}  {'all busy':>17}  {'snapshot':>17}")
    for slots, (single, busy, snapshot) in medians.items():
        base = medians[8]
        print(
            f"{slots:>5}  {single * 1e6:8.0f} µs  {single / base[0]:4.2f}  {busy * 1e6:8.0f} µs  {busy / base[1]:4.2f}"
            f"  {snapshot * 1e3:8.2f} ms  {snapshot / base[2]:4.1f}"
        )


if __name__ == "__main__":
    main()
