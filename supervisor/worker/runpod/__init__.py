"""Provides what ``import runpod`` finds in a handler, with or without the real package; in the worker, before the handler.

::

    standin/                 on sys.path and PYTHONPATH, so that the worker's children of every kind find it too
      runpod/                loads the real package if it is installed; else it is the stand-in
      _supervise_runpod/     code that the stand-in and the routed real package share: start, progress, files
    routing.py               patches the real package, so that its calls go to this worker and its files to private folders

The stand-in's folder comes before the real package's, because the order must survive two copies: a spawned child of
multiprocessing copies the worker's ``sys.path``, a subprocess its ``PYTHONPATH``, which Python puts before installed packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor.worker.runpod import routing
from supervisor.worker.runpod.standin._supervise_runpod.files import OWN_FOLDER

STANDIN = str(Path(__file__).resolve().parent / "standin")


def install() -> None:
    """Prepare this worker and its future children for ``import runpod``, without importing it. The environment must be set.

    The handler's folder has to come before ``STANDIN`` on ``sys.path``: a user's own ``runpod.py`` takes precedence.
    """
    if STANDIN not in sys.path:
        sys.path.insert(0, STANDIN)
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if STANDIN not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, STANDIN])
    if "TMPDIR" in os.environ:
        os.environ[OWN_FOLDER] = os.environ["TMPDIR"]
    routing.install()
