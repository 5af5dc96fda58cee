"""Random seeds and thread counts, which imports have fixed in the template and each worker sets anew.

``find_pools`` runs in the template after its imports; ``reseed`` and ``widen`` in each worker.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

_OPENBLAS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
_OPENMP = ("OMP_NUM_THREADS",)
_MKL = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
_BLIS = ("BLIS_NUM_THREADS", "OMP_NUM_THREADS")
_NUMEXPR = ("NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS")

POOL_VARIABLES = tuple(dict.fromkeys((*_OPENBLAS, *_OPENMP, *_MKL, *_BLIS, *_NUMEXPR)))
"""Variables from which numerical libraries read their number of threads, once, when they are loaded."""

SPIN = {"OPENBLAS_THREAD_TIMEOUT": "20"}
"""How long an OpenBLAS thread polls for work before it sleeps, as a power of two of CPU cycles: half a millisecond. By default
each new thread spins for 0.1 s, and every forked worker creates its threads anew."""

# By the library's file name: its function, which may have a prefix and a suffix, and its variables. The names are those of
# threadpoolctl.
_LIBRARIES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        r"lib(scipy_)?openblas|libblas",
        tuple(f"{p}openblas_set_num_threads{s}" for p in ("", "scipy_") for s in ("", "64_", "_64")),
        _OPENBLAS,
    ),
    (r"libgomp|libomp|libiomp", ("omp_set_num_threads",), _OPENMP),
    (r"libmkl_rt", ("MKL_Set_Num_Threads",), _MKL),
    (r"libblis", ("bli_thread_set_num_threads",), _BLIS),
)
_MODULES = (("numexpr", _NUMEXPR), ("torch", _MKL))
"""Modules with a thread count of their own (``set_num_threads``). torch comes last: it sets those of its libraries too."""

_NUMEXPR_MOST = 16


class ThreadPool(msgspec.Struct, frozen=True):
    """A pool that was created with one thread: its setter, the variables for its size, and its default size."""

    set_threads: Callable[[int], Any]
    variables: tuple[str, ...]
    default: int


def reseed() -> None:
    """Reseed the generators that imports have seeded; otherwise all workers would draw the same numbers.

    Covers ``numpy.random`` and torch's CPU generator; the standard library reseeds ``random`` at every fork.
    """
    for module, way in (("numpy.random", ("seed",)), ("torch", ("default_generator", "seed"))):
        function: Any = sys.modules.get(module)
        for name in way:
            function = getattr(function, name, None)
        if function is not None:
            function()


def find_pools() -> tuple[ThreadPool, ...]:
    """Return the thread pools of the loaded libraries and modules."""
    found = []
    cores = len(os.sched_getaffinity(0))
    for path in _loaded_libraries():
        for pattern, functions, variables in _LIBRARIES:
            function = _function(path, functions) if re.match(pattern, Path(path).name) else None
            if function is not None:
                found.append(ThreadPool(function, variables, cores))
    for name, variables in _MODULES:
        setter = getattr(sys.modules.get(name), "set_num_threads", None)
        if callable(setter):
            most = _NUMEXPR_MOST if name == "numexpr" else _physical_cores()
            found.append(ThreadPool(setter, variables, min(cores, most)))
    return tuple(found)


def widen(pools: Sequence[ThreadPool]) -> None:
    """Set the number of threads of ``pools`` to that in the environment, or to their default."""
    for pool in pools:
        size = next((text for name in pool.variables if (text := os.environ.get(name, "").split(",")[0]).isdigit()), "")
        pool.set_threads(max(1, int(size)) if size else pool.default)


def _loaded_libraries() -> list[str]:
    lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if line.count("/") and ".so" in line)
    return list(paths)


def _function(path: str, names: Sequence[str]) -> Callable[[int], Any] | None:
    try:
        library = ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None
    for name in names:
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_int], None
            return function  # type: ignore[no-any-return]  # ctypes has no types for what it loads
    return None


def _physical_cores() -> int:
    """Count the physical cores that this process may run on, as MKL does, and torch with it."""
    lists = {
        cpu: Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in os.sched_getaffinity(0)
    }
    return len({path.read_text() if path.exists() else cpu for cpu, path in lists.items()})
