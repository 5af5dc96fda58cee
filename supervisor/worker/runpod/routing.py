"""The real ``runpod`` package, with what a handler calls going to this worker; in the worker and its multiprocessing children.

A finder in front of ``sys.meta_path`` waits for the modules concerned and changes each right after it has run, before anyone can
copy a name from it. Modules that are there already, imported by the template, are changed in place. Nothing is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from supervisor import serverless
from supervisor.worker.runpod import folders
from supervisor.worker.runpod.standin._supervise_runpod import files, timers

Check = TypeVar("Check", bound=Callable[[], object])


def start(config: dict[str, Any]) -> None:
    """Serve ``config["handler"]`` in this worker. ``sys.argv`` and ``test_input.json`` play no part."""
    serverless.start(config)


def progress_update(job: dict[str, Any], progress: object) -> None:
    """Show ``progress`` as how far ``job`` is."""
    serverless.progress_update(job, progress)


def register_fitness_check(func: Check) -> Check:
    """Run ``func`` before the first job."""
    return serverless.register_fitness_check(func)


_SERVERLESS = "runpod.serverless"
_MODULES = "runpod.serverless.modules"
_UTILS = "runpod.serverless.utils"
_WORKER_STATE = f"{_MODULES}.worker_state"

#: What the names of the package's modules are to mean; those that a version of the package lacks stay away.
_ROUTES: dict[str, dict[str, object]] = {
    _SERVERLESS: {"start": start, "progress_update": progress_update, "register_fitness_check": register_fitness_check},
    f"{_MODULES}.rp_progress": {"progress_update": progress_update},
    f"{_MODULES}.rp_fitness": {"register_fitness_check": register_fitness_check},
    _WORKER_STATE: {"IS_LOCAL_TEST": False},
    f"{_MODULES}.rp_scale": {"IS_LOCAL_TEST": False},
    f"{_UTILS}.rp_cleanup": {"clean": files.clean},
    f"{_UTILS}.rp_download": {"os": folders.RoutedOs()},
    f"{_UTILS}.rp_upload": {"_save_to_local_fallback": files.save_locally},
    f"{_UTILS}.rp_debugger": {name: getattr(timers, name) for name in timers.__all__},
}

#: Where runpod 1.12 keeps the worker's id, or a URL made with it, that it read from ``RUNPOD_POD_ID`` as it was imported.
_READ_AT_IMPORT: dict[str, tuple[str, ...]] = {
    _WORKER_STATE: ("WORKER_ID",),
    f"{_MODULES}.rp_http": ("WORKER_ID", "JOB_DONE_URL", "JOB_STREAM_URL"),
    f"{_MODULES}.rp_job": ("WORKER_ID", "JOB_GET_URL"),
    f"{_MODULES}.rp_ping": ("WORKER_ID",),
    f"{_SERVERLESS}.worker": ("heartbeat.PING_URL",),
    f"{_MODULES}.rp_fastapi": ("heartbeat.PING_URL",),
}


def install() -> None:
    """Route the package, imported already or not. May be called again: in a template that preloads, then in each worker."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in _ROUTES:
        if name in sys.modules:
            _route(sys.modules[name])
    _correct_worker_id()


def _route(module: ModuleType) -> None:
    for name, value in _ROUTES[module.__name__].items():
        if hasattr(module, name):
            setattr(module, name, value)


def _correct_worker_id() -> None:
    """What the package read in the template, before there was a worker, becomes what it would have read here."""
    state, fresh = sys.modules.get(_WORKER_STATE), os.environ.get("RUNPOD_POD_ID")
    stale = getattr(state, "WORKER_ID", None)
    if not stale or not fresh:
        return
    for module, names in _READ_AT_IMPORT.items():
        for name in names:
            *way, last = name.split(".")
            owner: Any = sys.modules.get(module)
            for step in way:
                owner = getattr(owner, step, None)
            text = getattr(owner, last, None)
            if isinstance(text, str):
                setattr(owner, last, text.replace(stale, fresh))
    _correct_endpoint_id()


def _correct_endpoint_id() -> None:
    api = sys.modules.get(f"{_MODULES}.rp_fastapi")
    if api is not None:
        vars(api)["RUNPOD_ENDPOINT_ID"] = os.environ.get("RUNPOD_ENDPOINT_ID")


class _Finder(MetaPathFinder):
    """Finds nothing itself: lends a routing loader to what the finders behind it find."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is to be routed; ``None`` for all others."""
        if fullname not in _ROUTES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RoutingLoader(spec.loader)
                return spec
        return None


class _RoutingLoader(Loader):
    """Runs a module with the loader that it was found with, puts that one back, and routes the module."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run ``module``, then route it."""
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        _route(sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
