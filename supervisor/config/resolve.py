"""Makes the settings of a command line or of a program's keywords: each source over the next; in the supervisor's process.

Nothing else reads options, the config file or the environment for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.config import kinds, sources
from supervisor.config.handler import parse_handler
from supervisor.config.kinds import nearest
from supervisor.config.settings import DEFAULTS, OPTIONS, Settings, is_loopback
from supervisor.config.sources import Given
from supervisor.errors import UsageError
from supervisor.host import files
from supervisor.wire.messages import HandlerSpec


def make_settings(handler: str, /, **keywords: object) -> Settings:
    """From Python keywords, over the file that ``config`` names, over the defaults. ``None`` is as good as left out.

    Raises:
        UsageError: a keyword is unknown or its value is wrong.
    """
    for name in keywords:
        if name not in OPTIONS:
            raise UsageError(f"keyword {name}: there is no such option{nearest(name, OPTIONS)}")
    return _resolve(sources.from_keywords({"handler": handler, **keywords}), terminal=False)


def settings_from_command_line(
    words: Mapping[str, object], *, terminal: bool, environ: Mapping[str, str] | None = None
) -> Settings:
    """From the command line, over the environment, over the config file, over the defaults.

    ``words`` holds the options of the command line by field, ``None`` for those that it does not name. ``terminal`` says
    whether a dashboard could be seen. ``environ`` is the process's own unless given.

    Raises:
        UsageError: something is wrong; the message says what, where it was set and what to do.
    """
    given = sources.from_environment(os.environ if environ is None else environ)
    given |= sources.from_command_line(words)
    return _resolve(given, terminal=terminal)


def _resolve(given: dict[str, Given], *, terminal: bool) -> Settings:
    if (config := given.get("config")) is not None:
        given = sources.from_file(_parse("config", config), config.where) | given
    if "handler" not in given:
        raise UsageError("no handler: name a file or a module, as in `supervise handlers/my_handler.py`")
    values: dict[str, Any] = dict(DEFAULTS) | {name: _parse(name, entry) for name, entry in given.items()}
    where = {name: entry.where for name, entry in given.items()}

    values["spec"] = parse_handler(values["handler"], values["handler_args"])
    if "endpoint_id" not in values:
        values["endpoint_id"] = _default_endpoint_id(values["spec"])
    values["store_given"] = where.get("store") or where.get("endpoint_id")
    values.setdefault("store", Path(".supervise", f"{values['endpoint_id']}.db").absolute())
    # Who asks for a form of the lines, or for one result, wants to read them.
    if values["input"] is not None:
        terminal = True  # a batch shows its bar on standard error, and looks there itself
    values.setdefault("dashboard", terminal and "log_format" not in given and values["test_input"] is None)
    if values["api_key_file"] is not None:
        from_file = sources.read_keys(values["api_key_file"], where["api_key_file"])
        values["api_key"] = tuple(dict.fromkeys(values["api_key"] + from_file))

    settings = Settings(**values)
    _check_together(settings, where)
    return settings


def _parse(name: str, given: Given) -> Any:
    try:
        return OPTIONS[name].kind.parse(given.value)
    except ValueError as error:
        raise UsageError(f"{given.where}: {error}") from None


def _default_endpoint_id(spec: HandlerSpec) -> str:
    last = Path(spec.target).name.removesuffix(".py") if spec.kind == "file" else spec.target.rpartition(".")[2]
    try:
        return str(kinds.ENDPOINT_ID.parse(last))
    except ValueError:
        suggestion = re.sub(r"[^A-Za-z0-9._~-]+", "-", last).strip("-.") or "my-endpoint"
        raise UsageError(
            f"the name {last!r} cannot stand in a URL; give one, as in --endpoint-id {suggestion}"
        ) from None


def _check_together(settings: Settings, where: Mapping[str, str]) -> None:
    """Refuse options that contradict each other; ``where`` says for those that were given where that was."""
    if settings.api_key and settings.no_auth:
        keys = where.get("api_key") or where.get("api_key_file")
        raise UsageError(f"{where['no_auth']} and {keys} are mutually exclusive; leave one out")
    if settings.input is not None and settings.test_input is not None:
        raise UsageError(f"{where['input']} and {where['test_input']} are mutually exclusive; leave one out")
    if settings.reload and (settings.input is not None or settings.test_input is not None):
        once = where["input" if settings.input is not None else "test_input"]
        raise UsageError(f"{where['reload']} is for a handler that is served, and {once} runs it once; leave one out")
    if settings.output is not None and settings.input is None:
        raise UsageError(f"{where['output']} is for the results of a batch; name its lines with --input")
    if not (is_loopback(settings.host) or settings.api_key or settings.no_auth or settings.input is not None):
        raise UsageError(
            f"{where['host']}: {settings.host} can be reached from other machines and no key is set; "
            "give one with --api-key or SUPERVISE_API_KEYS, or serve everyone with --no-auth"
        )
    if "simulate_gpus" in where and settings.simulate_gpus and settings.gpus == "none":
        raise UsageError(f"{where['simulate_gpus']} and {where['gpus']} are mutually exclusive; leave one out")
    if "workers" in where and (settings.simulate_gpus or settings.gpus not in ("auto", "none")):
        gpus = where["simulate_gpus"] if settings.simulate_gpus else where["gpus"]
        raise UsageError(f"{where['workers']} counts workers on the CPU, and {gpus} asks for GPUs; leave one out")
    if files.is_folder(settings.store):
        raise UsageError(f"{where.get('store', '--store')}: {settings.store} is a folder; name a file in it")
