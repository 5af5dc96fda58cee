"""Stands in for the package ``runpod`` if that is not installed; in the worker and in any Python that a handler starts.

If the real package is installed, it is imported in place of this one, which comes first on the path. Other interpreters may
import this through ``PYTHONPATH``, so these files need only Python 3.8 until a function is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve()
_FOLDER = _HERE.parent.parent


def _load_real_package() -> bool:
    """Replace this module by the real package, routed in a worker's multiprocessing child; return False if there is none."""
    this = sys.modules.pop(__name__)
    ours = [(index, entry) for index, entry in enumerate(sys.path) if Path(entry).resolve() == _FOLDER]
    for _, entry in ours:
        sys.path.remove(entry)
    try:
        spec = importlib.util.find_spec(__name__)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() == _HERE:
            sys.modules[__name__] = this  # also for a namespace package of that name, which has no origin
            return False
        if _is_multiprocessing_child():
            from supervisor.worker.runpod import routing  # noqa: PLC0415 - other processes may lack it

            routing.install()
        importlib.import_module(__name__)
        return True
    finally:
        for index, entry in ours:
            sys.path.insert(index, entry)


def _is_multiprocessing_child() -> bool:
    """Return whether a worker's child is importing the handler again: the real ``start`` would try to serve it here, too."""
    process = sys.modules.get("multiprocessing.process")
    child = "__mp_main__" in sys.modules or (process is not None and process.parent_process() is not None)
    return child and "SUPERVISE_WORKER_ID" in os.environ


if not _load_real_package():
    from runpod import _absent

    _absent.install()

    from runpod import serverless
    from runpod.serverless.modules.rp_logger import RunPodLogger

    __version__ = "1.12.0+supervise.standin"
    __all__ = ["RunPodLogger", "__version__", "serverless"]
    __getattr__ = _absent.getter(__name__)
