"""Patches the real ``runpod`` package so that its calls go to this worker; in the worker and its multiprocessing children.

A finder at the front of ``sys.meta_path`` patches each module concerned right after it is executed, before other code can copy a
name from it. Modules that the template has imported are patched in place. Nothing is imported here.
"""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from supervisor.worker.runpod.standin import _supervise_runpod as ours
from supervisor.worker.runpod.standin._supervise_runpod import files, timers


def _make_folder(name: str, mode: int = 0o777, exist_ok: bool = False) -> None:
    os.makedirs(files.routed(name) or name, mode, exist_ok)  # noqa: PTH103 - it is that function


def _join(first: str, *rest: str) -> str:
    return str(files.routed(first, *rest) or os.path.join(first, *rest))  # noqa: PTH118 - it is that function


#: Replaces ``os`` for the package's downloads: paths that begin with its fixed folders lead into this generation's own. It builds
#: them with these two functions (runpod 1.12, ``serverless/utils/rp_download.py``).
_ROUTED_OS = types.SimpleNamespace(
    **{**vars(os), "makedirs": _make_folder, "path": types.SimpleNamespace(**{**vars(os.path), "join": _join})}
)

_SERVERLESS = "runpod.serverless"
_MODULES = "runpod.serverless.modules"
_UTILS = "runpod.serverless.utils"
_WORKER_STATE = f"{_MODULES}.worker_state"

#: Replacements by module and name; names that the installed version lacks are not added.
_ROUTES: dict[str, dict[str, object]] = {
    _SERVERLESS: {name: getattr(ours, name) for name in ("start", "progress_update", "register_fitness_check")},
    f"{_MODULES}.rp_progress": {"progress_update": ours.progress_update},
    f"{_MODULES}.rp_fitness": {"register_fitness_check": ours.register_fitness_check},
    _WORKER_STATE: {"IS_LOCAL_TEST": False},
    f"{_MODULES}.rp_scale": {"IS_LOCAL_TEST": False},
    f"{_UTILS}.rp_cleanup": {"clean": files.clean},
    f"{_UTILS}.rp_download": {"os": _ROUTED_OS},
    f"{_UTILS}.rp_upload": {"_save_to_local_fallback": files.save_locally},
    f"{_UTILS}.rp_debugger": {name: getattr(timers, name) for name in timers.__all__},
}

#: Names under which runpod 1.12 keeps the worker's id, or a URL with it, read from ``RUNPOD_POD_ID`` at import.
_READ_AT_IMPORT: dict[str, tuple[str, ...]] = {
    _WORKER_STATE: ("WORKER_ID",),
    f"{_MODULES}.rp_http": ("WORKER_ID", "JOB_DONE_URL", "JOB_STREAM_URL"),
    f"{_MODULES}.rp_job": ("WORKER_ID", "JOB_GET_URL"),
    f"{_MODULES}.rp_ping": ("WORKER_ID",),
    f"{_SERVERLESS}.worker": ("heartbeat.PING_URL",),
    f"{_MODULES}.rp_fastapi": ("heartbeat.PING_URL",),
}


def install() -> None:
    """Patch the package, imported already or not. Called again in each worker after a template that preloads."""
    if not any(isinstance(finder, _RoutingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RoutingFinder())
    for name in _ROUTES:
        if name in sys.modules:
            _route(sys.modules[name])
    _correct_worker_id()


def _route(module: ModuleType) -> None:
    for name, value in _ROUTES.get(module.__name__, {}).items():  # an archive has one loader for all of its modules
        if hasattr(module, name):
            setattr(module, name, value)


def _correct_worker_id() -> None:
    """Replace the worker id that the package read when the template imported it."""
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


class _RoutingFinder(MetaPathFinder):
    """Delegates to the finders behind it, and patches the routed modules when they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that is to be patched; None for all others."""
        if fullname not in _ROUTES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _RoutingFinder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    run = functools.partial(_run_and_route, spec.loader.exec_module)
                    spec.loader.exec_module = run  # type: ignore[method-assign]
                return spec
        return None


def _run_and_route(run: Callable[[ModuleType], object], module: ModuleType) -> None:
    run(module)
    _route(sys.modules.get(module.__name__, module))
