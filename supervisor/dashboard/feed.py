"""Fetches snapshots on a thread, so that keys work even if the supervisor does not respond; in the screen's process."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Union

import msgspec

from supervisor.client.client import Client
from supervisor.errors import ClientError
from supervisor.protocol.views import Snapshot

_EVERY_S = 0.5


class CommandReply(msgspec.Struct, frozen=True):
    """The result of a command, for the user."""

    text: str


Update = Union[Snapshot, ClientError, CommandReply]


class Feed:
    """Polls the supervisor every half second for a snapshot. ``fileno`` is readable when there are updates."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._updates: queue.SimpleQueue[Update | None] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[Callable[[], Update] | None] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``take`` has something."""
        return self._bell

    def take(self) -> list[Update]:
        """Return the updates since the last call, oldest first."""
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return []
        found = []
        while not self._updates.empty():
            update = self._updates.get()
            if update is None:
                raise RuntimeError("the thread that polls the supervisor has died")
            found.append(update)
        return found

    def refresh(self, slot: str) -> None:
        """Request a refresh of ``slot``; a ``CommandReply`` follows."""

        def send() -> Update:
            try:
                self._client.order(slot, "refresh")
            except ClientError as error:
                return CommandReply(f"{slot}: {error}")
            return CommandReply(f"refresh of {slot} requested")

        self._commands.put(send)

    def close(self) -> None:
        """Stop polling. A request in flight is not waited for."""
        self._commands.put(None)

    def _run(self) -> None:
        try:
            while self._pause():
                self._put(self._snapshot())
        finally:
            self._put(None)

    def _pause(self) -> bool:
        """Wait until the next poll is due, and run commands meanwhile; return False after ``close``."""
        deadline = time.monotonic() + _EVERY_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                command = self._commands.get(timeout=left)
            except queue.Empty:
                break
            if command is None:
                return False
            self._put(command())
            deadline = min(deadline, time.monotonic() + 0.05)  # show its effect soon
        return True

    def _snapshot(self) -> Update:
        try:
            return self._client.snapshot()
        except ClientError as error:
            return error

    def _put(self, update: Update | None) -> None:
        self._updates.put(update)
        os.eventfd_write(self._bell, 1)
