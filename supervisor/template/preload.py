"""What workers share because the template imported it before they were forked; runs in the template process."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import msgspec

_POOLS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_SHARED = ("asyncio", "inspect", "json", "msgspec.json", "runpy", "tempfile", "traceback")
"""What every worker needs whatever its handler is, besides what the worker's own files import."""

_REASON_CHARACTERS = 500


class Preloaded(msgspec.Struct, frozen=True):
    """Which modules are imported, and (module, why) of those that could not be."""

    loaded: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def preload(names: Sequence[str], timeout: float) -> Preloaded:
    """Import ``names`` in order, with the thread pools of BLAS and OpenMP at one thread.

    What fails, or takes longer than ``timeout`` seconds, is skipped. (An import that is stuck in native code is not stopped.)
    """
    loaded: list[str] = []
    skipped: list[tuple[str, str]] = []
    with one_thread_each():
        for name in names:
            reason = _import(name, timeout)
            if reason is None:
                loaded.append(name)
            else:
                skipped.append((name, reason))
    return Preloaded(tuple(loaded), tuple(skipped))


def import_shared() -> None:
    """Import what workers always need."""
    for name in _SHARED:
        importlib.import_module(name)


def freeze() -> None:
    """Hide all that exists from the garbage collector, so that it does not write to pages shared with the workers."""
    gc.collect()
    gc.freeze()


def reseed() -> None:
    """Seed anew the generators that an import seeded: without this all workers would draw the same numbers. In a worker."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _import(name: str, timeout: float) -> str | None:
    """Import ``name``; the reason why it cannot be."""
    try:
        with _time_limit(timeout):
            importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - any code runs here, and some modules call sys.exit
        return f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
    return None


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in what runs longer than ``seconds``."""

    def too_long(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the import took longer than {seconds:g} s (--preload-timeout)")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let native thread pools that are made meanwhile have one thread: other threads do not survive a fork."""
    before = {name: os.environ.get(name) for name in _POOLS}
    os.environ.update(dict.fromkeys(_POOLS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
