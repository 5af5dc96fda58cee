"""Imports modules in the template, so that workers share them; runs in the template process.

A module is imported here once a trial process has shown that workers can be forked afterwards. The trial goes ahead, module by
module, and the template follows; the first unsafe module ends the trial, and a new one continues after that module.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from supervisor.errors import SuperviseError
from supervisor.template import child
from supervisor.template.preload import huge_pages, imports, safety
from supervisor.template.preload.imports import Import
from supervisor.template.preload.locate import folder_of
from supervisor.template.preload.thread_pools import POOL_VARIABLES, SPIN
from supervisor.template.preload.trial import Trial, perform, reason_of
from supervisor.wire import messages as wire
from supervisor.worker.runpod import routing

_SHARED = ("asyncio", "inspect", "json", "msgspec.json", "runpy", "tempfile", "traceback")
"""Modules that every worker needs, besides those that the worker's own files import."""


class Preloaded(msgspec.Struct, frozen=True):
    """Modules that were imported, and (module, reason) of those that could not be."""

    loaded: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


class UnforkableError(SuperviseError):
    """An import that had passed its trial made the template itself unfit for forking."""


def preload(setup: wire.Setup) -> Preloaded:
    """Import the modules that ``setup`` names and that are safe, with the thread pools of BLAS and OpenMP at one thread.

    Raises:
        UnforkableError: workers must not be forked from this process any more.
    """
    wanted, skipped = _wanted(setup)
    if not wanted:
        return Preloaded((), skipped)
    # Before the imports: runpod's modules copy each other's functions while they are imported.
    routing.install()
    with _one_thread_each():
        loaded, unsafe = _import_all(wanted, setup.preload_timeout, folder_of(setup.handler))
    return Preloaded(loaded, (*skipped, *unsafe))


def import_shared() -> None:
    """Import what workers always need."""
    for name in _SHARED:
        importlib.import_module(name)


def freeze() -> None:
    """Exempt all objects from garbage collection, which would write to pages shared with the workers, and collapse these pages
    into large ones.
    """
    gc.collect()
    gc.freeze()
    huge_pages.collapse()


def _wanted(setup: wire.Setup) -> tuple[list[Import], tuple[tuple[str, str], ...]]:
    if setup.preload is not None:
        return [Import(name) for name in setup.preload], ()
    reading = imports.read(setup.handler)
    return [entry for entry in dict.fromkeys(reading.imports) if not _is_imported(entry)], reading.left_out


def _is_imported(entry: Import) -> bool:
    module = sys.modules.get(entry.module)
    return module is not None and all(name in vars(module) for name in entry.names)


def _import_all(
    wanted: Sequence[Import], timeout: float, folder: Path
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    before = safety.snapshot()
    loaded: dict[str, None] = {}
    unsafe: dict[str, str] = {}
    waiting = deque(wanted)
    while waiting:
        with contextlib.closing(Trial(waiting, folder)) as trial:
            reason = None
            while waiting and reason is None:
                entry = waiting.popleft()
                reason = trial.verdict(timeout)
                if reason is None:
                    _import_in_template(entry)
                    loaded[entry.module] = None
                else:
                    unsafe.setdefault(entry.module, reason)
    fault = safety.fault(before, folder)
    if fault is not None:
        raise UnforkableError(f"{', '.join(loaded)} passed a trial, but in the template {fault}")
    return tuple(loaded), tuple(unsafe.items())


def _import_in_template(entry: Import) -> None:
    try:
        perform(entry)
    except BaseException as error:  # any code runs here
        raise UnforkableError(
            f"{entry.module} passed a trial but raised in the template: {reason_of(error)}"
        ) from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit native thread pools created in this block to one thread, since others do not survive a fork. Threads that workers
    create later do not spin, unless the user has set how long."""
    before = {name: os.environ.get(name) for name in (*POOL_VARIABLES, *SPIN)}
    os.environ.update({**SPIN, **os.environ, **dict.fromkeys(POOL_VARIABLES, "1")})
    try:
        yield
    finally:
        child.set_variables(before)
