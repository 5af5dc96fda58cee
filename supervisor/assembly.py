"""Builds a supervisor from its settings: the store, this machine and the engine; all but HTTP and screens.

In the supervisor's process. Errors of the store, GPUs and locks are found here, before anything is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from supervisor.config.settings import Settings
from supervisor.engine import scaling
from supervisor.engine.engine import Engine
from supervisor.errors import HandlerError, StartError, SuperviseError
from supervisor.gpu import locks
from supervisor.machine import Machine
from supervisor.pool import events
from supervisor.protocol.responses import status_body
from supervisor.protocol.wording import of_worker
from supervisor.reload import SourceFiles, watch
from supervisor.store import owner, place
from supervisor.store.opening import TEMPORARY
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store


class Assembly:
    """A supervisor's ``engine``, ``store`` and ``machine``, built in order and closed in reverse."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[str], None] | None = None,
        *,
        own_process: bool = True,
        temporary: bool = False,
    ) -> None:
        """Lock the GPUs and open the store of ``settings``; ``start`` starts workers.

        ``note`` gets messages for the user, as they arise. ``own_process``: this process belongs to supervise, so it may become
        the parent of a dead template's orphans, and has no other children. ``temporary``: the queue is deleted with the
        supervisor, and the settings' store is not used.

        Raises:
            UsageError: a GPU does not exist or is locked, the store is in use, cannot be used or holds another handler's jobs.
        """
        self.notes: list[str] = []
        self._on_note = note
        self._temporary = temporary
        self._settings = settings
        self._loop = loop
        self._undo = ExitStack()
        try:
            self._build(own_process)
        except BaseException:
            self._undo.close()
            raise

    def _build(self, own_process: bool) -> None:
        settings = self._settings
        self.machine = Machine(settings, self._loop, self._note, own_process=own_process)
        self._undo.callback(self.machine.close)  # should the store not open; after the second call it does nothing
        store_locks, taken_over = self._open_store()  # before the GPUs: its jobs' owner may forbid this start
        self._undo.callback(self.machine.close)  # the workers stop before the store is unlocked
        self.engine = Engine(settings, self.store, self._secrets, self._loop, status_body)
        pool = self.machine.build_pool(self.engine.wake, store_locks)
        scaling.check_bounds(settings, len(pool.slots))
        self.engine.attach(pool)
        self._undo.callback(self.engine.close)
        if taken_over is not None:  # only now: a start that failed has taken nothing over
            self._note(taken_over, first=True)

    def start(self) -> None:
        """Start the workers and recover the store's jobs.

        Raises:
            StoreError: the store cannot be written.
        """
        self.machine.read_memory()
        if self._settings.reload:
            self._watch_sources()
        if not self._temporary:
            owner.claim(self.store, self._settings.spec)
        self.engine.start()

    def close(self) -> None:
        """Stop the workers, then release store, GPUs and locks. May block for some seconds."""
        self._undo.close()

    def _watch_sources(self) -> None:
        engine = self.engine

        def changed(names: tuple[str, ...]) -> None:
            if not engine.draining:
                engine.reload(names)

        self._undo.callback(watch(SourceFiles(self._settings.spec), self._loop, engine.notify, changed))

    def _note(self, text: str, *, first: bool = False) -> None:
        """Report ``text`` to the user. The screen keeps the last note, so a less important one goes ``first``."""
        self.notes.insert(0 if first else len(self.notes), text)
        if self._on_note is not None:
            self._on_note(text)

    def _open_store(self) -> tuple[list[locks.Lock], str | None]:
        """Open the store and its secrets; return its locks (none if temporary), and a message if it was another handler's."""
        if self._temporary:
            self.store = self._undo.enter_context(Store.open(TEMPORARY))
            self._secrets = SecretFiles(self.machine.tmp_root / "secrets")
            return [], None
        path = place.resolve(self._settings.store)
        if path != self._settings.store:
            self._note(f"{self._settings.store} is a link: the job store is {path}")
        lock = locks.lock_store(path, self.machine.holder)
        self._undo.callback(lock.close)
        store = Store.open(
            path,
            durability="full" if self._settings.durability == "full" else "normal",
            deliver=self._loop.call_soon_threadsafe,
            note=self._note,
        )
        self.store = self._undo.enter_context(store)
        taken_over = owner.check(store, self._settings)
        self._secrets = SecretFiles(Path(f"{path}.secrets"))
        return [lock], taken_over


def start_failure(settings: Settings, first: events.FirstLoad) -> SuperviseError:
    """Make the error for the user when no worker could start."""
    failed = first.failed
    if failed is None:
        assert first.end is not None  # else a worker would be ready
        return StartError(f"no worker could start: the worker in slot {first.slot} {of_worker(first.end)}")
    text = f"{settings.handler}: {failed.message}"
    if failed.traceback:
        text = f"{failed.traceback.rstrip()}\n{text}"
    return HandlerError(text)
