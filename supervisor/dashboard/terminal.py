"""The terminal: raw mode and alternate screen, always restored; keys and painting; in the screen's process.

Imports only the standard library, so that the supervisor can use ``usable`` and ``restorer`` without loading the screen.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # alternate screen, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l"
_TOGETHER = ("\x1b[?2026h", "\x1b[?2026l")  # synchronised output, where the terminal supports it

_KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|[\x00-\x7f]|[^\x00-\x7f]+")
_NAMES = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b": "escape", b"\x1a": "suspend"}


def usable(keys: int = 0, screen: int = 1) -> bool:
    """Return whether a live screen can be shown: ``screen`` is a terminal that can move its cursor, and we are in its
    foreground."""
    if not os.isatty(screen) or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return False
    try:
        return not os.isatty(keys) or os.tcgetpgrp(keys) == os.getpgrp()
    except OSError:  # a terminal that does not control this session
        return True


def restorer(keys: int = 0, screen: int = 1) -> Callable[[], None]:
    """Return a function that restores the terminal to its current state. A parent needs it only if its screen was killed."""
    with _as_os_error():
        attributes = termios.tcgetattr(keys) if os.isatty(keys) else None

    def restore() -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone; then there is nothing to restore
            if attributes is not None:
                termios.tcsetattr(keys, termios.TCSAFLUSH, attributes)
            _write(screen, _LEAVE)

    return restore


class Terminal:
    """The terminal while the screen owns it. A context manager that restores the terminal however the block ends."""

    def __init__(self, keys: int = 0, screen: int = 1) -> None:
        """Read ``keys`` and paint on ``screen``: descriptors, standard input and output by default."""
        self._screen = screen
        self._keys = keys
        self._painted: list[str] = []
        self._restore: Callable[[], None] | None = None

    def __enter__(self) -> Terminal:
        self._restore = restorer(self._keys, self._screen)
        try:
            if self.has_keys:
                with _as_os_error():
                    termios.tcsetattr(self._keys, termios.TCSAFLUSH, _bare(termios.tcgetattr(self._keys)))
            self._painted = []
            _write(self._screen, _ENTER)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    @property
    def has_keys(self) -> bool:
        """True if there is a keyboard."""
        return os.isatty(self._keys)

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``keys`` has some."""
        return self._keys

    def size(self) -> tuple[int, int]:
        """Return width and height in cells; 80 by 24 if the terminal does not know."""
        try:
            size = os.get_terminal_size(self._screen)
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def keys(self) -> list[str] | None:
        """Read the pressed keys: a character each, ``up``, ``down``, ``escape`` or ``suspend``; None if the terminal is gone."""
        try:
            data = os.read(self._keys, 1024)
        except OSError:
            return None
        if not data:
            return None
        return [_NAMES.get(key) or key.decode("utf-8", "replace") for key in _KEY.findall(data)]

    def paint(self, lines: Sequence[str]) -> None:
        """Show ``lines``; write only those that changed."""
        if len(lines) != len(self._painted):
            self._painted = [""] * len(lines)
        changed = [
            f"\x1b[{row};1H{line}\x1b[0m"
            for row, (line, before) in enumerate(zip(lines, self._painted, strict=True), 1)
            if line != before
        ]
        if changed:
            _write(self._screen, _TOGETHER[0] + "".join(changed) + _TOGETHER[1])
        self._painted = list(lines)

    def clear(self) -> None:
        """Clear the screen, so that the next ``paint`` writes all lines, as after a change of size."""
        self._painted = []
        _write(self._screen, "\x1b[2J")

    def suspend(self) -> None:
        """Restore the terminal and stop, as Ctrl-Z does; return when the shell continues this process."""
        self.__exit__(None, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn ``termios.error``, as for a terminal that is gone, into an OSError."""
    try:
        yield
    except termios.error as error:
        raise OSError(*error.args) from error


def _bare(attributes: list[Any]) -> list[Any]:
    """Return ``attributes`` for reading keys one by one without echo. Ctrl-C stays a signal; Ctrl-Z, Ctrl-\\ and Ctrl-S become
    keys."""
    bare = list(attributes)
    bare[0] &= ~(termios.IXON | termios.ICRNL)
    bare[3] &= ~(termios.ECHO | termios.ICANON)
    bare[6] = list(attributes[6])
    bare[6][termios.VMIN], bare[6][termios.VTIME] = 1, 0
    bare[6][termios.VSUSP] = bare[6][termios.VQUIT] = (
        b"\x00"  # _POSIX_VDISABLE: they would stop the screen without restoring the terminal
    )
    return bare


def _write(descriptor: int, text: str) -> None:
    data = text.encode("utf-8", "replace")
    while data:
        with contextlib.suppress(BlockingIOError):  # a program that shares the terminal may have made it non-blocking
            select.select([], [descriptor], [])
            data = data[os.write(descriptor, data) :]
