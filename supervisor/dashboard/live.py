"""The main loop of the dashboard: keys, signals, snapshots, painting; in the screen's process."""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator

import msgspec
from rich.console import Console

from supervisor.client.client import Client
from supervisor.dashboard.feed import CommandReply, Feed, Update
from supervisor.dashboard.terminal import Terminal
from supervisor.dashboard.view import ViewState, picture
from supervisor.errors import UnreachableError
from supervisor.protocol.views import Snapshot

_NOTICE_S = 4.0  # how long the reply to a key stays
_UNREACHABLE_S = 2.0  # how long a supervisor may be unreachable before the screen exits
_SILENT_S = 1.5  # how long a supervisor may not respond before the screen says so
_TICK_S = 0.5


class KeyAction(enum.Enum):
    """Effect of a key besides a change of the view."""

    NOTHING = enum.auto()
    QUIT = enum.auto()
    REFRESH = enum.auto()
    SUSPEND = enum.auto()


class ScreenExit(msgspec.Struct, frozen=True):
    """Result of the screen: the process's exit ``code``, and a message to print after it, if any."""

    code: int = 0
    message: str | None = None


def pressed(state: ViewState, key: str, slots: tuple[str, ...]) -> tuple[ViewState, KeyAction]:
    """Return the view state after ``key``, and its action; pure. ``slots`` are those on the screen, in order."""
    change = msgspec.structs.replace
    if state.help and key != "q":
        return change(state, help=False), KeyAction.NOTHING
    if key in ("q", "Q"):
        return state, KeyAction.QUIT
    if key in ("up", "k", "down", "j"):
        return change(state, selected=_moved(state.selected, slots, -1 if key in ("up", "k") else 1)), KeyAction.NOTHING
    if key == "escape":
        return change(state, selected=None), KeyAction.NOTHING
    if key == "r":
        target = state.selected if state.selected in slots else slots[0] if len(slots) == 1 else None
        if target is None:
            return change(state, notice="select a slot with ↑ ↓, then r refreshes it"), KeyAction.NOTHING
        return change(state, selected=target), KeyAction.REFRESH
    if key == "suspend":
        return state, KeyAction.NOTHING if state.embedded else KeyAction.SUSPEND
    toggles = {"l": "big_log", "p": "paused", "?": "help", "h": "help"}
    if key in toggles:
        return change(state, **{toggles[key]: not getattr(state, toggles[key])}), KeyAction.NOTHING
    return state, KeyAction.NOTHING


def _moved(selected: str | None, slots: tuple[str, ...], step: int) -> str | None:
    if not slots:
        return None
    if selected not in slots:
        return slots[0] if step > 0 else slots[-1]
    return slots[min(max(slots.index(selected) + step, 0), len(slots) - 1)]


class Live:
    """The running screen."""

    def __init__(self, client: Client, first: Snapshot, stop: Callable[[], None] | None = None) -> None:
        """Show ``first``, then the snapshots that ``client`` fetches.

        ``stop`` makes this the screen of `supervise HANDLER`: ``q`` calls it to drain the supervisor instead of leaving the
        screen, Ctrl-C is left to the supervisor, and the screen exits once the supervisor is unreachable.
        """
        self._client = client
        self._stop = stop
        self._snapshot = first
        self._state = ViewState(embedded=stop is not None)
        self._console = Console(file=sys.stdout, force_terminal=True)
        self._received = time.monotonic()
        self._received_ms = int(time.time() * 1000)
        self._notice_until = 0.0
        self._unreachable_since: float | None = None
        self._exit: ScreenExit | None = None
        self._painted: tuple[Snapshot, ViewState, tuple[int, int]] | None = None

    def run(self) -> ScreenExit:
        """Show the screen until it exits; always restores the terminal."""
        with _signals(self._stop is not None) as bell, Terminal() as terminal, selectors.DefaultSelector() as ready:
            self._state = msgspec.structs.replace(self._state, keys=terminal.has_keys)
            feed = Feed(self._client)
            ready.register(bell, selectors.EVENT_READ, lambda: self._signalled(bell, terminal))
            ready.register(feed, selectors.EVENT_READ, lambda: self._updated(feed.take()))
            if terminal.has_keys:
                ready.register(terminal, selectors.EVENT_READ, lambda: self._keys(terminal, feed))
            try:
                while self._exit is None:
                    self._paint(terminal)
                    for key, _ in ready.select(_TICK_S):
                        key.data()
                    self._check_times()
            finally:
                feed.close()
        return self._exit

    def _paint(self, terminal: Terminal) -> None:
        width, height = terminal.size()
        wanted = self._snapshot, self._state, (width, height)
        if wanted == self._painted:
            return
        self._painted = wanted
        with self._console.capture() as text:
            self._console.print(picture(self._snapshot, width, height, self._state), soft_wrap=True, end="")
        terminal.paint(text.get().split("\n"))

    def _signalled(self, bell: int, terminal: Terminal) -> None:
        for number in os.read(bell, 64):
            if number in (signal.SIGWINCH, signal.SIGCONT):
                terminal.clear()
                self._painted = None
            else:
                self._exit = ScreenExit()

    def _updated(self, updates: list[Update]) -> None:
        for item in updates:
            if isinstance(item, Snapshot):
                self._received, self._received_ms, self._unreachable_since = (
                    time.monotonic(),
                    int(time.time() * 1000),
                    None,
                )
                if not self._state.paused:
                    self._snapshot = item
                if self._state.silent_since is not None:
                    self._state = msgspec.structs.replace(self._state, silent_since=None, trouble=None)
            elif isinstance(item, CommandReply):
                self._notice(item.text)
            else:
                self._state = msgspec.structs.replace(self._state, silent_since=self._received_ms, trouble=str(item))
                if isinstance(item, UnreachableError):
                    self._unreachable()

    def _unreachable(self) -> None:
        now = time.monotonic()
        self._unreachable_since = self._unreachable_since or now
        if self._stop is not None:
            self._exit = ScreenExit()
        elif self._snapshot.draining:
            self._exit = ScreenExit(0, f"the supervisor at {self._client.url} has ended")
        elif now - self._unreachable_since >= _UNREACHABLE_S:
            self._exit = ScreenExit(1, f"the supervisor at {self._client.url} is gone: it does not respond any more")

    def _keys(self, terminal: Terminal, feed: Feed) -> None:
        keys = terminal.keys()
        if keys is None:
            self._exit = ScreenExit()
            return
        for key in keys:
            slots = tuple(worker.slot for worker in self._snapshot.workers)
            before = self._state.notice
            self._state, action = pressed(self._state, key, slots)
            if self._state.notice != before:
                self._notice_until = time.monotonic() + _NOTICE_S
            if action is KeyAction.QUIT:
                self._quit()
            elif action is KeyAction.REFRESH and self._state.selected is not None:
                feed.refresh(self._state.selected)
            elif action is KeyAction.SUSPEND:
                terminal.suspend()
                self._painted = None

    def _quit(self) -> None:
        if self._stop is None:
            self._exit = ScreenExit()
        else:
            self._stop()

    def _notice(self, text: str) -> None:
        self._state = msgspec.structs.replace(self._state, notice=text)
        self._notice_until = time.monotonic() + _NOTICE_S

    def _check_times(self) -> None:
        now = time.monotonic()
        if self._state.notice is not None and now >= self._notice_until:
            self._state = msgspec.structs.replace(self._state, notice=None)
        if self._state.silent_since is None and now - self._received >= _SILENT_S:
            self._state = msgspec.structs.replace(self._state, silent_since=self._received_ms)


@contextlib.contextmanager
def _signals(embedded: bool) -> Iterator[int]:
    """Yield a descriptor from which the numbers of received signals are read; restore their handlers at the end."""
    readable, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    awaited = [signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGCONT, *([] if embedded else [signal.SIGINT])]
    before = {number: signal.signal(number, lambda *_: None) for number in awaited}
    if embedded:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    bell_before = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(bell_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(bell)
