"""One run: houses, clients, killer and receiver set up, let loose, calmed down, and judged; the chaos program's main thread."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.chaos import checker, inquest, report
from tests.chaos.checker import History
from tests.chaos.clients import Client, crowd
from tests.chaos.disk import Disk
from tests.chaos.house import House
from tests.chaos.journal import TERMINAL, Journal
from tests.chaos.killer import Killer
from tests.chaos.kinds import BULK, MIXED, TOGETHER
from tests.chaos.receiver import Receiver
from tests.chaos.remains import remains
from tests.chaos.steady import Steady, trends
from tests.fakes.nvml import FakeNvml

HANDLERS = Path(__file__).parent / "handlers"
OPTIONS = [
    "--grace",
    "1",
    "--drain-timeout",
    "2",
    "--max-attempts",
    "2",
    "--webhook-delay",
    "0.5",
    "--release-timeout",
    "3",
]


class Drawn(NamedTuple):
    """What the first house is given beside ``OPTIONS``, and how many files each of its processes may have open (0: as it is)."""

    options: tuple[str, ...] = ()
    files: int = 0

    def __str__(self) -> str:
        return " ".join(self.options) or (f"{self.files} files" if self.files else "nothing")


DRAWN = (
    Drawn(),
    Drawn(files=76),  # hardly more are open at once than a supervisor with three slots insists on
    Drawn(("--workers-per-gpu", "2")),
    Drawn(("--gpus-per-worker", "3")),
    Drawn(("--pin-by", "uuid")),
    Drawn(("--refresh-after-jobs", "3")),
    Drawn(("--on-restart", "fail")),
    Drawn(("--durability", "full", "--refresh-worker")),
    Drawn(("--min-workers", "0", "--max-workers", "2", "--idle-timeout", "0.3", "--scale-after", "0.2")),
)
"""The seed chooses one of these."""

SMALL_DISK_S = 600.0
"""Longer runs need more room than a disk has that can be filled."""

WARM_BYTES = 40 * 2**20
"""How large a store is whose caches are full: each of its connections has 8 MiB."""

SHOWN = 5
"""How many jobs' histories are printed."""


class Plan(NamedTuple):
    """What was asked for. ``every``: seconds between two deeds of the killer; 0: there is none."""

    seed: int
    seconds: float
    every: float
    clients: int
    pause: float


class World:
    """Everything that a run needs, in ``folder``."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder.absolute()
        self.temporary = Path(tempfile.mkdtemp(prefix="ct-"))  # a short name: it holds sockets
        self.journal = Journal()
        self.began = time.monotonic()
        for name in ("starts", "logs", "locks"):
            (self.folder / name).mkdir()
        self.disk = Disk(self.folder / "disk", small=bool(plan.every) and plan.seconds <= SMALL_DISK_S)
        self.fake = FakeNvml(self.folder / "nvml", gpus=4)
        environ = {name: it for name, it in os.environ.items() if not name.startswith(("SUPERVISE_", "RUNPOD_"))}
        for name in ("CUDA_VISIBLE_DEVICES", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
            environ.pop(name, None)
        environ |= {**self.fake.env(), "CHAOS_FOLDER": str(self.folder), "TMPDIR": str(self.temporary)}
        self.drawn = Random(f"{plan.seed}/options").choice(DRAWN)
        self.houses = [
            self._house("mixed", ["--gpus", "0,1,2", *self.drawn.options], environ, self.drawn.files),
            self._house("together", ["--gpus", "3", "--durability", "full"], environ, 0),
        ]
        self.receiver = Receiver(self.journal)
        self.steady = Steady(self.houses, self.folder / "nvml")

    def _house(self, name: str, options: list[str], environ: dict[str, str], files: int) -> House:
        store = self.disk.path / f"{name}.db"
        options = [*OPTIONS, *options, "--lock-dir", str(self.folder / "locks")]
        return House(name, HANDLERS / f"{name}.py", self.folder, store, options, environ, self.journal, files)

    def close(self) -> None:
        for house in self.houses:
            if house.lives and house.life.alive:
                house.stop(signal.SIGKILL)
            house.close()
        self.receiver.close()
        self.disk.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


def run(plan: Plan, folder: Path) -> int:
    """Carry ``plan`` out; 0: all promises were kept."""
    world = World(plan, folder)
    disk = f", no disk to fill ({world.disk.why_not})" if plan.every and not world.disk.fills else ""
    print(f"chaos: seed {plan.seed}, {plan.seconds:g} s, drawn: {world.drawn}{disk}; {world.folder}", flush=True)
    try:
        for house in world.houses:
            house.start()
        if not plan.every:
            warm_up(world)
        storm(world)
        histories = inquest.hold(world.houses, world.journal, world.folder / "starts")
        for house in world.houses:
            house.stop(signal.SIGTERM)
            house.close()
        world.journal.faults += remains(world.houses, world.folder, world.temporary)
    finally:
        world.close()
    return judge(world, histories)


# --- the storm -----------------------------------------------------------------------------------------------------------------


def warm_up(world: World) -> None:
    """Fill the stores until their page caches are full, so that memory can be flat from there on."""
    for house in world.houses:
        client = Client(f"{house.name}-bulk", house, [BULK], Random(0), world.receiver.url, world.journal)
        client.start(0.001)
        while house.store.stat().st_size < WARM_BYTES and house.life.alive:
            time.sleep(0.1)
        client.stop()
        client.join()


def storm(world: World) -> None:
    """Send jobs and do harm for as long as was asked."""
    plan, (mixed, together) = world.plan, world.houses
    clients: list[Client] = [
        *crowd(plan.clients, mixed, MIXED, plan.seed, world.receiver.url, world.journal),
        *crowd((plan.clients + 1) // 2, together, TOGETHER, plan.seed, world.receiver.url, world.journal),
    ]
    killer = None
    if plan.every:
        killer = Killer(world.houses, world.fake, world.disk, Random(f"{plan.seed}/killer"), plan.every, world.journal)
    world.steady.start()
    for client in clients:
        client.start(plan.pause)
    if killer is not None:
        killer.start()
    try:
        time.sleep(plan.seconds)
    finally:
        if killer is not None:
            killer.close()
        for client in clients:
            client.stop()
    for client in clients:
        client.join()
    world.steady.close()


# --- the judgement -------------------------------------------------------------------------------------------------------------


def judge(world: World, histories: list[History]) -> int:
    """Print the counts and what is wrong; 0: nothing."""
    journal = world.journal
    deeds = [
        f"{deed.at - world.began:9.3f} {deed.house} {deed.what} {deed.detail} {deed.pid}\n" for deed in journal.deeds
    ]
    (world.folder / "deeds.txt").write_text("".join(sorted(deeds)))
    (world.folder / "samples.txt").write_text("".join(f"{' '.join(map(str, it))}\n" for it in world.steady.samples))
    for it in journal.exchanges:
        by_hand = it.op == "by hand" and it.code in (404, 409)
        if not it.ticket and not by_hand and it.code not in (200, 503, 0, -1):
            journal.fault(f"{it.op} {it.path} was answered {it.code}: {it.body[:200]!r}")
    rows = report.counts(journal, histories)
    rows += [(f"{house.name}: slowest end of all processes, s", f"{house.slowest_gone:.2f}") for house in world.houses]
    print(report.table(rows))
    print(
        "  errors:\n" + "\n".join(f"    {number:5} {words}" for words, number in report.causes(histories).most_common())
    )
    for trend in trends(world.steady.samples):
        print(f"  {trend}{'' if trend.flat else '  NOT FLAT'}")
        if not trend.flat:
            journal.fault(f"not flat: {trend}")
    wrong = [(history, found) for history in histories if (found := checker.faults(history))]
    for text in journal.faults:
        print(f"FAULT {text}")
    for history, found in wrong[:SHOWN]:
        print("\n".join(f"FAULT {text}" for text in found))
        print(report.story(history, world.began))
    number = len(journal.faults) + sum(len(found) for _, found in wrong)
    ended = sum(history.final is not None and history.final["status"] in TERMINAL for history in histories)
    print(
        f"{ended} jobs ended, each once; {number} faults; seed {world.plan.seed}"
        if not number
        else f"{number} faults; seed {world.plan.seed}"
    )
    return 1 if number else 0
