"""A seeded run of the program under load while it is killed, and the proof that nothing was lost: ``python -m tests.chaos``."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import Plan, run


def main() -> int:
    """Run; 0: all promises were kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the load lasts (60)")
    parser.add_argument("--seed", type=int, default=None, help="what all choices follow from (a new one)")
    parser.add_argument(
        "--every", type=float, default=1.5, help="seconds between two deeds of the killer, on average (1.5)"
    )
    parser.add_argument(
        "--clients", type=int, default=6, help="clients of the first house; the second has half as many (6)"
    )
    parser.add_argument(
        "--pause", type=float, default=0.1, help="seconds between two jobs of a client, on average (0.1)"
    )
    parser.add_argument("--soak", action="store_true", help="kill nothing: is memory flat?")
    parser.add_argument(
        "--keep", type=Path, default=None, help="a new folder for the stores and logs, to look at afterwards"
    )
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    every = 0.0 if given.soak else given.every
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended, whoever asks
    plan = Plan(seed, given.seconds, every, given.clients, given.pause)
    if given.keep is not None:
        given.keep.mkdir(parents=True)
        return run(plan, given.keep)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return run(plan, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
