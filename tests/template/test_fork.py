"""What a forked worker is, and is not any more."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import supervisor
from supervisor.host.processes import children_of
from supervisor.pool.template.process import TemplateProcess
from supervisor.wire import messages as wire

if TYPE_CHECKING:
    from conftest import House

DEADLINE = 30.0


@pytest.fixture(params=["when it is asked for", "ahead"])
def make_house(make_house: Callable[..., House], request: pytest.FixtureRequest) -> Callable[..., House]:
    """A worker is the same whether it is forked now or was forked before."""
    if request.param != "ahead":
        return make_house

    def make(**options: Any) -> House:
        house = make_house(**options)
        house.fork_ahead()
        return house

    return make


def test_template_and_worker_are_processes_of_their_own(house):
    assert house.ready.version == wire.VERSION
    assert house.ready.pid == house.template.pid
    assert os.getsid(house.template.pid) == house.template.pid
    assert house.ready.took_ms > 0
    worker = house.fork("reports_itself", generation=7)
    facts = worker.hears()
    assert house.expect(wire.Forked) == wire.Forked("cpu0", 7, facts["pid"])
    assert facts["session"] == facts["pid"]
    assert facts["parent"] == house.template.pid
    assert facts["generation"] == 7
    assert facts["blocked"] == []
    assert not house.ahead or house.ahead == [facts["pid"]]


def test_worker_has_its_descriptors_and_no_others(make_house, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        house = make_house(locks=(lock.fileno(),))
    house.fork("reports_itself", "cpu0").hears()
    worker = house.fork("reports_itself", "cpu1")
    facts = worker.hears()
    # The listing itself is open while it is read.
    listed = {int(number): target for number, target in facts["descriptors"].items() if not target.startswith("/proc/")}
    assert set(listed) == {0, 1, 2, facts["connection"]}
    assert listed[0] == "/dev/null"
    assert listed[1] == listed[2]
    assert listed[1].startswith("pipe:")


def test_worker_has_the_signals_of_a_fresh_python(house):
    def heed():  # what nohup or the background of a script has these tests ignore is inherited
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)

    fresh = subprocess.run(
        [
            sys.executable,
            "-c",
            "import signal; print({s.name: getattr(signal.getsignal(s), 'name', 'other') for s in signal.Signals})",
        ],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=heed,
    )
    expected = eval(fresh.stdout)
    found = house.fork("reports_itself").hears()["signals"]
    assert found.pop("SIGINT") == "default_int_handler"
    assert found == {name: expected[name] for name in found}
    assert found["SIGTERM"] == "SIG_DFL"


def test_environment(make_house):
    house = make_house(SUPERVISE_API_KEY="sesame", CUDA_VISIBLE_DEVICES="3", GOES="away")
    facts = house.fork("reports_itself", CUDA_VISIBLE_DEVICES="1", GOES=None).hears()
    assert facts["environ"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert facts["environ"]["SUPERVISE_RUN_ID"] == "run-1"
    assert "GOES" not in facts["environ"]
    assert "CUDA_VISIBLE_DEVICES=3" in facts["environ_at_exec"]
    assert "SUPERVISE_RUN_ID=run-1" in facts["environ_at_exec"]
    assert "sesame" not in facts["environ_at_exec"] + str(facts["environ"])


def test_every_generation_has_a_folder_which_ends_with_it(house):
    worker = house.fork("reports_itself", "gpu2+3", 4)
    facts = worker.hears()
    folder = house.tmp_root / "gpu2+3-4"
    assert facts["tempdir"] == facts["environ"]["TMPDIR"] == str(folder)
    assert facts["tempdir_mode"] == 0o700
    assert house.tmp_root.stat().st_mode & 0o777 == 0o700
    worker.tell("go")
    house.ends(worker)
    # Empty, it is gone before the next request is served.
    house.fork("reports_itself", "cpu1").hears()
    assert not folder.exists()


def test_full_folder_is_removed_by_a_cleaner_that_is_no_orphan(house):
    worker = house.fork("reports_itself")
    folder = Path(worker.hears()["tempdir"])
    (folder / "deep").mkdir()
    (folder / "deep" / "litter").touch()
    worker.tell("go")
    house.ends(worker)
    # Deaths of others come before, while and after the cleaner runs: it is not taken for what they left.
    until = time.monotonic() + DEADLINE
    for generation in itertools.count(2):
        _, swept = house.ends(house.fork("ends_as_told", "cpu1", generation))
        assert swept.killed == 0
        if not folder.exists():
            break
        assert time.monotonic() < until, "it is not removed"


def test_signal_sent_right_after_the_fork_is_not_lost(house):
    for generation in range(20):
        worker = house.fork("reports_itself", generation=generation)
        house.template.send(wire.Signal("cpu0", generation, signal.SIGTERM))
        died, _ = house.ends(worker)
        assert died.status == -signal.SIGTERM


def test_signals_to_dead_and_unknown_workers_are_ignored(house):
    worker = house.fork("ends_as_told")
    house.ends(worker)
    house.template.send(wire.Signal("cpu0", 1, signal.SIGTERM))
    house.template.send(wire.EndTree("cpu0", 1))
    house.template.send(wire.EndTree("gpu9", 1))
    assert house.fork("reports_itself", generation=2).hears()["generation"] == 2


def test_fork_that_cannot_be_made_is_reported(house):
    house.fork("reports_itself").hears()
    house.fork("reports_itself")
    failed = house.expect(wire.ForkFailed)
    assert (failed.slot, failed.generation) == ("cpu0", 1)
    assert "File exists" in failed.error
    # The worker that has that name lives on, and has its folder.
    assert (house.tmp_root / "cpu0-1").is_dir()


def test_exception_that_escapes_the_entry_is_printed_and_ends_the_worker(house):
    worker = house.fork("raises_in_entry")
    died, _ = house.ends(worker)
    assert died.status == 70
    assert worker.output().rstrip().endswith("RuntimeError: out of the entry")


def test_words_printed_from_c_survive_a_crash(make_house):
    house = make_house(PYTHONUNBUFFERED="")
    worker = house.fork("prints_and_crashes")
    died, _ = house.ends(worker)
    assert died.status == -signal.SIGSEGV
    assert worker.output() == "last words of C\n"


def test_template_itself_cannot_be_asked_to_go(house):
    for generation, signum in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), 1):
        os.kill(house.template.pid, signum)
        assert house.fork("reports_itself", generation=generation).hears()["parent"] == house.template.pid


class TestPreload:
    @pytest.fixture
    def modules(self, tmp_path: Path) -> Path:
        folder = tmp_path / "modules"
        folder.mkdir()
        for name, text in {
            "good": "import os; pools = os.environ['OMP_NUM_THREADS']; held = open(__file__)",
            "spins": "import os; spin = os.environ['OPENBLAS_THREAD_TIMEOUT']",
            "raising": "raise ValueError('not today')",
            "exiting": "import sys; sys.exit(3)",
            "never_done": "import threading; threading.Event().wait()",
            "takes_signals": "import signal\nfor s in (15, 17): signal.signal(s, lambda *a: None)",
            "starts_a_helper": "import subprocess; helper = subprocess.Popen(['sleep', '600'])",
            "looks_at_spin": "import os, spins; print(spins.spin, os.environ.get('OPENBLAS_THREAD_TIMEOUT'), flush=True)",
            "looks_at_pools": "import good, os; print(good.pools, os.environ['OMP_NUM_THREADS'], flush=True)",
        }.items():
            (folder / f"{name}.py").write_text(text)
        return folder

    def test_workers_have_what_could_be_imported_and_nothing_of_its_ways(self, make_house, modules):
        preload = ("good", "spins", "takes_signals", "raising", "exiting", "no_such_module", "starts_a_helper", "wave")
        house = make_house(preload=preload, PYTHONPATH=str(modules), OMP_NUM_THREADS="6")
        assert house.ready.preloaded == ("good", "spins", "takes_signals", "wave")
        assert dict(house.ready.skipped) == {
            "raising": "ValueError: not today",
            "exiting": "SystemExit: 3",
            "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
            "starts_a_helper": "it leaves a process running",
        }
        assert children_of(house.template.pid) == house.ahead, "the helper ended with its trial"
        facts = house.fork("reports_itself").hears()
        assert {"good", "wave", "supervisor.worker.main", "asyncio"} <= set(facts["modules"])
        assert str(modules / "good.py") in facts["descriptors"].values()
        assert facts["environ"]["OMP_NUM_THREADS"] == "6"
        assert facts["signals"]["SIGTERM"] == "SIG_DFL"
        os.kill(house.template.pid, signal.SIGTERM)
        for generation, (child, words) in enumerate({"looks_at_pools": "1 6", "looks_at_spin": "20 None"}.items(), 2):
            asking = house.fork("ends_as_told", generation=generation, CHILD=str(modules / f"{child}.py"))
            house.ends(asking)
            assert asking.output().strip() == words

    def test_an_import_that_takes_too_long_is_skipped(self, make_house, modules):
        house = make_house(preload=("never_done",), preload_timeout=0.2, PYTHONPATH=str(modules))
        assert house.ready.preloaded == ()
        ((module, why),) = house.ready.skipped
        assert (module, "--preload-timeout" in why) == ("never_done", True)

    def test_threads_of_pools_spin_as_long_as_they_are_told_to(self, make_house, modules):
        house = make_house(preload=("spins",), PYTHONPATH=str(modules), OPENBLAS_THREAD_TIMEOUT="26")
        asking = house.fork("ends_as_told", CHILD=str(modules / "looks_at_spin.py"))
        house.ends(asking)
        assert asking.output().strip() == "26 26"


def test_package_is_found_and_its_folder_hides_nothing(tmp_path):
    """The real program, exec'ed by its path, where another package named supervisor is installed."""
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").write_text("raise ImportError('this is supervisord')")
    (tmp_path / "tells.py").write_text(
        "import json, os, sys, supervisor\n"
        "with open(os.environ['TOLD'], 'w') as file: json.dump([sys.path, supervisor.__file__], file)"
    )
    told = tmp_path / "told.json"
    setup = wire.Setup(wire.VERSION, "run-1", wire.HandlerSpec("file", "unused.py"), ("tells",), str(tmp_path / "run"))
    template = TemplateProcess(setup, environ={**os.environ, "PYTHONPATH": str(tmp_path), "TOLD": str(told)})
    try:
        assert wait([template], DEADLINE)
        (ready,) = template.receive()
        assert (ready.preloaded, ready.skipped) == (("tells",), ())
    finally:
        template.close()
        assert template.wait(DEADLINE) == 0
    path, package = json.loads(told.read_text())
    root = Path(supervisor.__file__).parents[1]
    assert package == str(root / "supervisor" / "__init__.py")
    assert path[-1] == str(root) or path.count(str(root)) == 1
    assert str(root / "supervisor" / "template") not in path
