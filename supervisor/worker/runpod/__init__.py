"""What ``import runpod`` finds in a handler, with the real package installed or without it; in the worker, before the handler.

::

    standin/                 on sys.path and PYTHONPATH, so the worker's children of every kind find it too
      runpod/                gives way to the real package wherever that is; else it is the stand-in
      _supervise_runpod/     what the stand-in does as the routed package does: whose files are where, and who may remove them
    routing.py               the real package, with what a handler calls going to this worker, and its files to where they belong

The stand-in's folder comes before the real package's, because the order must survive two copies: a spawned child of
multiprocessing takes the worker's ``sys.path``, a subprocess its ``PYTHONPATH``, which Python puts before installed packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor.worker.runpod import routing
from supervisor.worker.runpod.standin._supervise_runpod.files import OWN_FOLDER

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
    if "TMPDIR" in os.environ:
        os.environ[OWN_FOLDER] = os.environ["TMPDIR"]
    routing.install()
