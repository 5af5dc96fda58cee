"""Measures dispatch from Python against concurrent.futures.ProcessPoolExecutor, interleaved: `python benchmarks/dispatch.py`.

The same job that does nothing, one worker process each. Two figures, each the median of --runs with its lowest and highest:
- one at a time: submit and wait for the result, p50 and p99 in µs;
- all at once: submit every job, then collect every result, jobs a second.

supervise writes every job to its store (SQLite) before it runs and before its result is given: without store= in a temporary
file that ends with it, with store= in one that survives kill -9. The executor keeps its queue in memory.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from handlers import noop  # noqa: E402 - found by the line above
from supervisor import Supervisor  # noqa: E402

WARM_UP = 200


@contextmanager
def supervise(**options):
    with Supervisor("handlers:noop", gpus="none", **options) as supervisor:
        yield supervisor.submit


@contextmanager
def durable():
    with tempfile.TemporaryDirectory() as folder, supervise(store=f"{folder}/jobs.db") as submit:
        yield submit


@contextmanager
def executor(method):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        yield lambda value: pool.submit(noop, {"input": value})


def one_at_a_time(submit, jobs):
    """p50 and p99 in µs."""
    for number in range(WARM_UP):
        submit({"n": number}).result()
    took = []
    for number in range(jobs):
        began = time.perf_counter_ns()
        assert submit({"n": number}).result() == {"n": number}
        took.append((time.perf_counter_ns() - began) / 1000)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100]


def all_at_once(submit, jobs):
    """Jobs a second."""
    began = time.perf_counter()
    submitted = [submit({"n": number}) for number in range(jobs)]
    assert [job.result()["n"] for job in submitted] == list(range(jobs))
    return jobs / (time.perf_counter() - began)


def spread(values):
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--method", choices=["forkserver", "fork", "spawn"], default="forkserver", help="the executor's"
    )
    args = parser.parse_args()
    os.chdir(HERE)  # where `handlers` is

    rivals = {
        "supervise": supervise,
        "supervise, store=FILE": durable,
        "ProcessPoolExecutor": lambda: executor(args.method),
    }
    figures = {name: {"p50_us": [], "p99_us": [], "jobs_per_s": []} for name in rivals}
    for _ in range(args.runs):
        for name, start in rivals.items():
            with start() as submit:
                p50, p99 = one_at_a_time(submit, args.jobs)
                rate = all_at_once(submit, args.jobs)
            for key, value in (("p50_us", p50), ("p99_us", p99), ("jobs_per_s", rate)):
                figures[name][key].append(value)

    for name, rows in figures.items():
        print(json.dumps({"who": name, **{key: spread(values) for key, values in rows.items()}}))
    medians = {name: {key: statistics.median(values) for key, values in rows.items()} for name, rows in figures.items()}
    theirs = medians.pop("ProcessPoolExecutor")
    for name, ours in medians.items():
        faster = round(theirs["p50_us"] / ours["p50_us"], 2)
        more = round(ours["jobs_per_s"] / theirs["jobs_per_s"], 2)
        print(json.dumps({"who": name, "one at a time, times faster": faster, "all at once, times as many": more}))


if __name__ == "__main__":
    main()
