"""Handlers that would break a naive preload, each run by the program, and what a trial finds in the modules that they import."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from supervisor.wire import messages as wire

ROOT = Path(__file__).parents[2]
DEADLINE_S = 50.0

# What is "installed" for a test lies in the user's site-packages, which PYTHONPATH puts on a virtual environment's path too.
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

INSTALLED = {
    "reads_environ": "import os; seen = os.environ.get('SEEN_AT_IMPORT', 'nothing'); pid = os.getpid()",
    "plain": "import os; pid = os.getpid()",
    "leaves_a_thread": "import os, threading; pid = os.getpid()\n"
    "ready = threading.Event(); asked = threading.Event(); answered = threading.Event()\n"
    "threading.Thread(target=lambda: (asked.wait(), answered.set()), name='helper\\udcff', daemon=True).start()\n"
    "def ask(): asked.set(); return answered.wait(40)",
    "leaves_a_native_thread": "import ctypes, os; pid = os.getpid(); ctypes.CDLL(os.environ['NATIVE']).start()",
    "stops_its_thread": "import ctypes, os; pid = os.getpid(); ctypes.CDLL(os.environ['NATIVE']).start_fork_aware()",
    "initialises_cuda": "import ctypes, os; pid = os.getpid(); cuda = ctypes.CDLL(os.environ['CUDA']); cuda.cuInit(0)",
    "loads_cuda": "import ctypes, os; pid = os.getpid(); cuda = ctypes.CDLL(os.environ['CUDA'])",
    "hangs_in_the_template": "import os, time; pid = os.getpid()\nif 'SUPERVISE_SLOT' not in os.environ: time.sleep(600)",
    "crashes_in_the_template": "import os; pid = os.getpid()\nif 'SUPERVISE_SLOT' not in os.environ: os.abort()",
    "exits_in_the_template": "import os; pid = os.getpid()\nif 'SUPERVISE_SLOT' not in os.environ: os._exit(0)",
    "starts_a_process": "import os, subprocess; pid = os.getpid(); helper = subprocess.Popen(['sleep', '600'])",
    "changes_folder": "import os; pid = os.getpid(); os.chdir('/')",
    "changes_path": "import os, sys; pid = os.getpid(); sys.path.insert(0, '/')",
    "imports_plain": "import os, plain; pid = os.getpid()",
    "passes_only_once": "import os, pathlib; pid = os.getpid()\n"
    "mark = pathlib.Path(os.environ['MARK']); before = mark.exists(); mark.touch()\n"
    "if before and 'SUPERVISE_SLOT' not in os.environ: raise OSError('once is enough')",
    "numpy/__init__": "from numpy import random",
    "numpy/random": "import os; pid = os.getpid(); state = 1\n"
    "def seed():\n    global state; state = int.from_bytes(os.urandom(8), 'big')",
    "lazy/__init__": "import importlib\n"
    "def __getattr__(name):\n"
    "    if name != 'heavy': raise AttributeError(name)\n"
    "    return importlib.import_module('lazy._heavy').pid",
    "lazy/_heavy": "import os; pid = os.getpid()",
}

NATIVE = """
#include <pthread.h>
#include <unistd.h>
static pthread_t thread; static int stop[2];
static void *wait_for_it(void *unused) { char c; read(stop[0], &c, 1); return 0; }
void start(void) { pipe(stop); pthread_create(&thread, 0, wait_for_it, 0); }
static int running;
static void before_fork(void) { if (running) { write(stop[1], "", 1); pthread_join(thread, 0); running = 0; } }
void start_fork_aware(void) { pthread_atfork(before_fork, 0, 0); start(); running = 1; }
"""
CUDA = """
static int initialised;
int cuInit(unsigned flags) { initialised = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return initialised ? 0 : 3; }
"""


class Answer(NamedTuple):
    output: Any
    stderr: str

    def why_not(self, module: str) -> str | None:
        """What the warning says about ``module``; None if there is none."""
        found = re.search(rf"not preloaded: {re.escape(module)}: (.*)", self.stderr)
        return found and found[1]


class Program:
    """bin/supervise, and packages for its handlers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.site = folder / "base" / SITE
        for name, text in INSTALLED.items():
            path = self.site / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.environ = {
            **os.environ,
            "PYTHONUSERBASE": str(folder / "base"),
            "PYTHONPATH": str(self.site),
            "TMPDIR": str(folder),
            "MARK": str(folder / "mark"),
        }

    def build(self, variable: str, name: str, source: str) -> None:
        """Compile a library whose path is in the environment as ``variable``."""
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("there is no gcc")
        library = self.site / name
        command = [compiler, "-shared", "-fPIC", "-w", "-xc", "-", "-o", library, f"-Wl,-soname,{name}", "-lpthread"]
        subprocess.run(command, input=source.encode(), check=True)
        self.environ[variable] = str(library)

    def run(self, source: str, *options: str) -> Answer:
        """The output of one job of the handler ``source``."""
        handler = self.folder / "handler.py"
        handler.write_text(textwrap.dedent(source))
        own = ["--store", self.folder / "jobs.db", "--lock-dir", self.folder / "locks", "--gpus", "none"]
        command = [sys.executable, ROOT / "bin/supervise", handler, *own, "--test-input", "{}", *options]
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
        return Answer(json.loads(done.stdout)["output"], done.stderr)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def imports(module: str, value: str = "None") -> str:
    """A handler that imports ``module`` and says whether it did so itself, and ``value``."""
    return f"import os\nimport {module}\ndef handler(job):\n    return [{module}.pid == os.getpid(), {value}]\n"


def test_what_the_handler_imports_is_there_before_it(program: Program) -> None:
    """With names that load more of a module only when they are asked for."""
    answer = program.run(f"from lazy import heavy\n{imports('plain', 'heavy == os.getpid()')}")
    assert answer.output == [False, False]
    assert "not preloaded" not in answer.stderr
    assert program.run(imports("plain"), "--preload", "none").output == [True, None]
    assert program.run(imports("reads_environ"), "--preload", "plain").output == [True, None]


def test_a_variable_and_a_path_set_before_an_import_are_seen_by_it(program: Program) -> None:
    (program.folder / "vendor").mkdir()
    (program.folder / "vendor" / "plain.py").write_text("import os; pid = os.getpid(); vendored = True")
    answer = program.run(
        "import os, sys\nos.environ['SEEN_AT_IMPORT'] = 'this'\nsys.path.insert(0, 'vendor')\nimport reads_environ\n"
        + imports("plain", "[plain.vendored, reads_environ.pid == os.getpid(), reads_environ.seen]")
    )
    assert answer.output == [True, [True, True, "this"]]
    for module in ("reads_environ", "plain"):
        assert answer.why_not(module) == "imported below line 2, which changes os.environ"


def test_a_sibling_that_shadows_a_package_is_what_is_imported(program: Program) -> None:
    """Also by a package that imports it."""
    (program.folder / "plain.py").write_text("import os; pid = os.getpid(); sibling = True")
    source = f"import imports_plain\n{imports('plain', '[imports_plain.pid == os.getpid(), plain.sibling]')}"
    answer = program.run(source)
    assert answer.output == [True, [True, True]]
    assert answer.why_not("plain") is None
    assert answer.why_not("imports_plain") == "it imports plain, and the handler's folder has a module of that name"


def test_what_a_trial_finds_unsafe_is_left_to_the_worker(program: Program) -> None:
    """And what is imported after it is preloaded all the same."""
    unsafe = {
        "leaves_a_thread": "it leaves a Python thread running (helper?)",
        "hangs_in_the_template": "the import took longer than 3 s (--preload-timeout)",
        "crashes_in_the_template": "the import was killed by SIGABRT",
        "exits_in_the_template": "the import ended its process with exit code 0",
        "starts_a_process": "it leaves a process running",
        "changes_folder": "it changes the current folder",
        "changes_path": "it changes sys.path",
    }
    safe = ["plain"]
    if shutil.which("gcc") is not None:
        program.build("NATIVE", "libnative.so", NATIVE)
        program.build("CUDA", "libcuda.so.1", CUDA)
        unsafe["leaves_a_native_thread"] = "it leaves 1 native thread running that a fork does not stop"
        unsafe["initialises_cuda"] = "it initialises CUDA (cuDeviceGetCount answers 0)"
        safe += ["stops_its_thread", "loads_cuda"]
    names = [*unsafe, *safe]
    answer = program.run(
        f"import os, sys\nimport {', '.join(names)}\ndef handler(job):\n"
        f"    own = [name for name in {names} if sys.modules[name].pid == os.getpid()]\n"
        "    return [own, leaves_a_thread.ask()]\n",
        *("--preload-timeout", "3"),
    )
    assert answer.output == [list(unsafe), True]
    assert {name: answer.why_not(name) for name in names} == {**unsafe, **dict.fromkeys(safe)}


def test_a_template_that_an_import_made_unforkable_restarts_without_it(program: Program) -> None:
    answer = program.run(imports("passes_only_once"))
    assert answer.output == [True, None]
    why = answer.why_not(str(program.folder / "handler.py"))
    assert why == "passes_only_once passed a trial but raised in the template: OSError: once is enough"


def test_seeds_of_an_import_are_fresh_in_each_worker(make_house: Callable[..., Any], program: Program) -> None:
    child = program.folder / "draws.py"
    child.write_text("import numpy, random\nprint(numpy.random.state, random.random(), flush=True)")
    house = make_house(preload=("numpy", "random"), PYTHONPATH=str(program.site))
    assert house.ready.preloaded == ("numpy", "random")
    drawn = set()
    for generation in (1, 2):
        worker = house.fork("ends_as_told", generation=generation, CHILD=str(child))
        house.ends(worker)
        drawn |= set(worker.output().split())
    assert len(drawn) == 4
    assert "1" not in drawn


def test_pools_have_their_threads_back_in_workers(
    make_house: Callable[..., Any], program: Program, tmp_path: Path
) -> None:
    program.build(
        "POOL",
        "libopenblas-pretend.so",
        "static int n = 1;\nvoid scipy_openblas_set_num_threads64_(int m) { n = m; }\nint get(void) { return n; }",
    )
    (program.site / "blas.py").write_text("import ctypes, os; library = ctypes.CDLL(os.environ['POOL'])")
    child = tmp_path / "asks.py"
    child.write_text("import blas\nprint(blas.library.get(), flush=True)")  # its end, os._exit, flushes nothing
    house = make_house(preload=("blas",), **{**program.environ, "OMP_NUM_THREADS": "6"})
    assert house.ready.preloaded == ("blas",)
    said = {}
    for generation, value in enumerate(("6", "3,2", None), 1):
        worker = house.fork("ends_as_told", generation=generation, CHILD=str(child), OMP_NUM_THREADS=value)
        house.ends(worker)
        said[value] = int(worker.output())
    assert said == {"6": 6, "3,2": 3, None: len(os.sched_getaffinity(0))}


def test_the_template_imports_what_follows_a_trial_that_failed(
    make_house: Callable[..., Any], program: Program
) -> None:
    names = ("plain", "changes_path", "reads_environ", "changes_folder", "numpy")
    house = make_house(preload=names, PYTHONPATH=str(program.site))
    assert house.ready == wire.TemplateReady(
        wire.VERSION,
        house.template.pid,
        ("plain", "reads_environ", "numpy"),
        (("changes_path", "it changes sys.path"), ("changes_folder", "it changes the current folder")),
        house.ready.took_ms,
    )
