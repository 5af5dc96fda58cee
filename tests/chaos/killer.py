"""Does harm at random moments: kills workers, template, NVML reader and supervisor, stops workers, takes GPUs away; a thread."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from random import Random

from tests.chaos.disk import Disk
from tests.chaos.house import House, StartError
from tests.chaos.journal import Journal
from tests.fakes.nvml import LOST, FakeNvml

APART_S = 2.0
"""Least time from the death of a house's template to its supervisor's, or back: what dies in the same instant is not covered."""


class Killer:
    """Draws what to do, to whom and when from ``rng``; what is restored later is restored by ``close`` at the latest."""

    def __init__(
        self, houses: list[House], fake: FakeNvml, disk: Disk, rng: Random, every: float, journal: Journal
    ) -> None:
        """Do harm every ``every`` seconds on average."""
        self._houses = houses
        self._fake = fake
        self._disk = disk
        self._rng = rng
        self._every = every
        self._journal = journal
        self._over = threading.Event()
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._struck: dict[str, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._deeds: list[tuple[int, Callable[[House], None]]] = [
            (30, self._kill_worker),
            (8, self._stop_worker),
            (3, self._stop_template),
            (3, self._stop_supervisor),
            (8, self._end_worker_gently),
            (12, self._kill_template),
            (14, self._kill_supervisor),
            (5, self._restart),
            (5, self._reload),
            (6, self._kill_reader),
            (10, self._lose_gpu),
            (4, self._xid),
            (3, self._hang_nvml),
            (3, self._lag),
            (5 if disk.fills else 0, self._fill_disk),
        ]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and put right what can be."""
        self._over.set()
        self._thread.join()
        self._put_right()

    def _put_right(self) -> None:
        later, self._later = self._later, []
        for _, undo in later:
            undo()

    def _run(self) -> None:
        due = time.monotonic() + self._rng.expovariate(1 / self._every)
        while not self._over.is_set():
            at = min([due, *(at for at, _ in self._later)])
            if self._over.wait(max(0.0, at - time.monotonic())):
                return
            now = time.monotonic()
            ripe = [undo for at, undo in self._later if at <= now]
            self._later = [(at, undo) for at, undo in self._later if at > now]
            for undo in ripe:
                undo()
            if now >= due:
                house = self._rng.choice(self._houses)
                weights, deeds = zip(*self._deeds, strict=True)
                self._rng.choices(deeds, weights)[0](house)
                due = time.monotonic() + self._rng.expovariate(1 / self._every)

    def _undo_after(self, seconds: float, undo: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, undo))

    def _signal(self, house: House, what: str, pid: int, signum: int) -> bool:
        if not pid or not house.life.ready.is_set():
            return False
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return False
        self._journal.deed(house.name, what, signal.Signals(signum).name, pid)
        return True

    def _any_worker(self, house: House) -> int:
        workers = house.life.workers()
        return self._rng.choice(workers) if workers else 0

    def _apart(self, house: House, what: str) -> bool:
        """Whether the last death of the other of the two is long enough ago."""
        other, at = self._struck.get(house.name, (what, 0.0))
        if other != what and time.monotonic() - at < APART_S:
            return False
        self._struck[house.name] = (what, time.monotonic())
        return True

    # --- deeds

    def _kill_worker(self, house: House) -> None:
        self._signal(house, "worker", self._any_worker(house), signal.SIGKILL)

    def _end_worker_gently(self, house: House) -> None:
        self._signal(house, "worker", self._any_worker(house), signal.SIGTERM)

    def _stop_worker(self, house: House) -> None:
        self._stop(house, "worker", self._any_worker(house))

    def _stop_template(self, house: House) -> None:
        self._stop(house, "template", house.life.template())

    def _stop_supervisor(self, house: House) -> None:
        self._stop(house, "supervisor", house.life.process.pid)

    def _stop(self, house: House, what: str, pid: int) -> None:
        """Let it stand still for a while."""
        if self._signal(house, what, pid, signal.SIGSTOP):

            def go_on() -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

            self._undo_after(self._rng.uniform(0.1, 3), go_on)

    def _kill_template(self, house: House) -> None:
        if self._apart(house, "template"):
            self._signal(house, "template", house.life.template(), signal.SIGKILL)

    def _kill_supervisor(self, house: House) -> None:
        self._start_anew(house, signal.SIGKILL)

    def _restart(self, house: House) -> None:
        self._start_anew(house, signal.SIGTERM)

    def _start_anew(self, house: House, signum: int) -> None:
        if not self._apart(house, "supervisor"):
            return
        if signum != signal.SIGKILL:
            self._put_right()  # one that stands still hears nothing
        house.stop(signum)
        self._put_right()  # a start with a GPU that is not there, or cannot be asked for, is refused, and should be
        time.sleep(self._rng.choice([0, 0, 0.3]))
        try:
            house.start()
        except StartError as error:
            self._journal.fault(str(error))

    def _reload(self, house: House) -> None:
        self._signal(house, "supervisor", house.life.process.pid, signal.SIGHUP)

    def _kill_reader(self, house: House) -> None:
        self._signal(house, "NVML reader", house.life.nvml_reader(), signal.SIGKILL)

    def _gpu(self) -> int:
        return self._rng.randrange(4)

    def _lose_gpu(self, house: House) -> None:
        gpu = self._gpu()
        self._fake.error(gpu, LOST)
        self._journal.deed("", "GPU lost", str(gpu))

        def restore() -> None:
            self._fake.error(gpu, None)
            self._journal.deed("", "GPU restored", str(gpu))

        self._undo_after(self._rng.uniform(0.3, 5), restore)

    def _xid(self, house: House) -> None:
        gpu, code = self._gpu(), self._rng.choice([13, 31, 79, 94])
        self._fake.xid(gpu, code)
        self._journal.deed("", "Xid", f"{code} on GPU {gpu}")

    def _hang_nvml(self, house: House) -> None:
        self._fake.hang()
        self._journal.deed("", "NVML hangs")
        self._undo_after(self._rng.uniform(0.5, 8), lambda: self._fake.switch("hang", on=False))

    def _lag(self, house: House) -> None:
        self._fake.lag(self._rng.choice([0, 0.2, 1.0]))
        self._journal.deed("", "memory stays longer")
        self._undo_after(self._rng.uniform(1, 6), lambda: self._fake.lag(0))

    def _fill_disk(self, house: House) -> None:
        self._disk.fill()
        self._journal.deed("", "disk full")

        def free() -> None:
            self._disk.free()
            self._journal.deed("", "disk free")

        self._undo_after(self._rng.uniform(0.2, 4), free)
