"""What ``import runpod`` finds in a handler, with the real package installed or without it; in the worker, before the handler.

::

    standin/       on sys.path and PYTHONPATH, so the worker's children of every kind find it too
      runpod/      gives way to the real package wherever that is; else it is the stand-in
    routing.py     the real package, with ``start`` and ``progress_update`` going to this worker

The stand-in's folder comes before the real package's, because the order must survive two copies: a spawned child of
multiprocessing takes the worker's ``sys.path``, a subprocess its ``PYTHONPATH``, which Python puts before installed packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor.worker.runpod import routing

STANDIN = str(Path(__file__).resolve().parent / "standin")


def install() -> None:
    """Prepare this worker and its future children for ``import runpod``; the worker's environment is set already.

    Nothing is imported. The handler's folder has to come before ``STANDIN`` on ``sys.path``: a ``runpod.py`` of the user's own is
    what they mean.
    """
    if STANDIN not in sys.path:
        sys.path.insert(0, STANDIN)
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if STANDIN not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, STANDIN])
    routing.install()
