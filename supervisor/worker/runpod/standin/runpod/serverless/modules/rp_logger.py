"""Stands in for ``runpod.serverless.modules.rp_logger``: one line on stdout per message, ``INFO   | job | message``.

The real one writes JSON objects if ``RUNPOD_ENDPOINT_ID`` is set, and cuts messages at 4,096 characters; here users read the
lines, so it does neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from runpod import _absent

LOG_LEVELS = ["NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"]


def _at(level: str) -> Callable[..., None]:
    def write(self: RunPodLogger, message: object, request_id: str | None = None) -> None:
        self.log(message, level, request_id)

    return write


class RunPodLogger:
    """Writes messages of at least its level. All loggers of a process share one level, as the real one is a singleton.

    Until ``set_level`` the level is the current ``RUNPOD_LOG_LEVEL`` or ``RUNPOD_DEBUG_LEVEL``, by default ``DEBUG``.
    """

    _chosen: str | None = None

    @property
    def level(self) -> str:
        """Name of the lowest level that is written; ``NOTSET`` disables all."""
        if RunPodLogger._chosen is not None:
            return RunPodLogger._chosen
        wanted = os.environ.get("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "DEBUG")).upper()
        return wanted if wanted in LOG_LEVELS else "DEBUG"

    @level.setter
    def level(self, new_level: str | int) -> None:
        known = LOG_LEVELS[new_level] if isinstance(new_level, int) and 0 <= new_level < len(LOG_LEVELS) else new_level
        if not isinstance(known, str) or known.upper() not in LOG_LEVELS:
            raise ValueError(f"Invalid debug level: {new_level}")
        RunPodLogger._chosen = known.upper()

    def set_level(self, new_level: str | int) -> None:
        """Set the lowest level that is written: a name or its index in ``LOG_LEVELS``.

        Raises:
            ValueError: there is no such level.
        """
        self.level = new_level
        self.info(f"Log level set to {self.level}")

    def log(self, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        """Write ``message`` if ``message_level`` is enabled.

        Raises:
            ValueError: there is no such level.
        """
        level = LOG_LEVELS.index(self.level)
        if level == 0 or (message_level != "TIP" and LOG_LEVELS.index(message_level) < level):
            return
        whose = f"{job_id} | " if job_id else ""
        sys.stdout.write(f"{message_level:<7}| {whose}{message}\n")
        sys.stdout.flush()

    def secret(self, secret_name: str, secret: object) -> None:
        """Write a secret's first and last characters."""
        text = str(secret)
        hidden = text[0] + "*" * (len(text) - 2) + text[-1] if len(text) > 2 else "*" * len(text)
        self.info(f"{secret_name}: {hidden}")

    trace, debug, info, warn, error = map(_at, LOG_LEVELS[1:])

    def tip(self, message: object) -> None:
        """Write at every level but ``NOTSET``."""
        self.log(message, "TIP")


__getattr__ = _absent.getter(__name__)
