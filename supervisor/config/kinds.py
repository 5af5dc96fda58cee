"""Kinds of options, and the parsing of their values; used by ``settings`` in the supervisor's process.

A value may be text (command line, environment), a TOML value or a Python object: each kind accepts them all and raises
``ValueError`` with a message that names the error and the remedy.
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from supervisor.host import files


class Kind(msgspec.Struct, frozen=True):
    """Syntax of a value. ``parse`` accepts any form of it; ``show`` formats the default for ``--help``."""

    metavar: str
    parse: Callable[[object], Any]
    show: Callable[[Any], str] = str
    flag: bool = False
    multiple: bool = False


class Option(msgspec.Struct, frozen=True):
    """One option, as the annotation of a field of ``Settings``, which is its ``name``; ``group`` is its heading in ``--help``.

    ``shown`` is the default as ``--help`` shows it, if the value itself would not be clear. ``more_variables`` are environment
    variables beside ``SUPERVISE_NAME``, for lists. ``positional`` options are arguments without a dashed name. The variables of
    ``secret`` options are removed from handlers' environments.
    """

    kind: Kind
    help: str
    name: str = ""
    group: str = ""
    shown: str | None = None
    more_variables: tuple[str, ...] = ()
    positional: bool = False
    secret: bool = False

    @property
    def dashed(self) -> str:
        """The option's name on the command line."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """The option's environment variables."""
        return (f"SUPERVISE_{self.name.upper()}", *self.more_variables)


class Secret(str):
    """Text that is masked when a record that holds it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``; did you mean X?`` with the nearest of ``words``, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


# --- numbers, times and sizes --------------------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 3650 * 86_400.0

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?b)?|b)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def _duration(value: object, least: float) -> float:
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(
            f"invalid duration {value!r}: use seconds, or a number with the unit ms, s, m, h or d, such as 90, 30m or 24h"
        )
    if seconds < least:
        raise ValueError(f"{value!r} is too short; give at least {_show_duration(least)}")
    return seconds


def _show_duration(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0 and (unit != "d" or seconds > _SECONDS["d"]):
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def _size(value: object) -> int:
    size = -1.0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, power, suffix = match.groups(default="")
        # As in GNU tools: K and KiB are 1024 bytes, KB is 1000.
        size = float(number) * (1000 if suffix.lower() == "b" else 1024) ** _POWERS[power.lower()]
    if not 1 <= size < 2**63:
        raise ValueError(
            f"invalid size {value!r}: use bytes, or a number with the unit KB, MB, GB, KiB, MiB or GiB, such as 20MiB"
        )
    return int(size)


def _show_size(size: int) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def _whole(value: object, low: int, high: int | None) -> int:
    wanted = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    number = value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{value!r} is not a number; give {wanted}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{value!r} is out of range; give {wanted}")
    return number


# --- words and lists -----------------------------------------------------------------------------------------------------

_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError(f"{value!r} is neither yes nor no; write true or false")


def _text(value: object) -> str:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError(f"{value!r} is not a text; give one that is not empty")
    if any(ord(character) < 32 for character in str(value)):
        raise ValueError(f"{value!r} has a control character in it; leave it out")
    return str(value)


def _path(value: object) -> Path:
    return files.at_home(Path(_text(value))).absolute()


def _file(value: object) -> Path:
    return Path("-") if value in ("-", Path("-")) else _path(value)


def _one_of(value: object, words: Sequence[str]) -> str:
    word = str(value).strip().lower()
    if word not in words:
        listed = ", ".join(words[:-1]) + f" or {words[-1]}"
        raise ValueError(f"{value!r} is not known; write {listed}{nearest(word, words)}")
    return word


def _items(value: object) -> tuple[str, ...]:
    """Return the items of a list, or of a text that separates them by commas or line ends."""
    if isinstance(value, (list, tuple)):
        return tuple(_text(item).strip() for item in value)
    items = re.split(r"[,\r\n]+", value) if isinstance(value, str) else ()
    return tuple(_text(item).strip() for item in items if item.strip()) or (_text(value),)


def _words(value: object) -> tuple[str, ...]:
    """Return the words of a list, or of a text split as by a shell."""
    if isinstance(value, (list, tuple)):
        return tuple(map(str, value))
    try:
        return tuple(shlex.split(_text(value)))
    except ValueError as error:
        raise ValueError(f"{value!r} cannot be split into words ({error}); check its quotes") from None


def _api_keys(value: object) -> tuple[Secret, ...]:
    # The keys themselves are not in the message: it ends up in logs.
    refusal = "invalid key: use visible ASCII characters without spaces, as a header can carry them"
    try:
        keys = _items(value)
    except ValueError:
        raise ValueError(refusal) from None
    if not keys or not all(map(can_be_key, keys)):
        raise ValueError(refusal)
    return tuple(map(Secret, dict.fromkeys(keys)))


def can_be_key(text: str) -> bool:
    """Return whether a header can carry ``text`` as a key."""
    return text.isascii() and text.isprintable() and " " not in text


def _webhook_secret(value: object) -> Secret:
    """Check a secret and return it unchanged, for ``webhook_key``. Messages do not contain it."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("invalid webhook secret: use a text on one line")
    try:
        key = webhook_key(value)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("invalid webhook secret: not base64 after whsec_; use it as generated, or one without whsec_")
    return Secret(value)


def webhook_key(secret: str) -> bytes:
    """Decode the signing key from a webhook's secret.

    Raises:
        ValueError: it begins with ``whsec_``, and the rest is not base64.
    """
    encoded = secret.removeprefix("whsec_")
    if encoded == secret:
        return secret.encode()
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)


_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)


def _origins(value: object) -> tuple[str, ...]:
    return tuple(_origin(item.lower().rstrip("/")) for item in _items(value))


def _origin(text: str) -> str:
    """Normalize an origin as browsers do: without the scheme's default port."""
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not an origin; write SCHEME://HOST[:PORT], such as http://localhost:3000")
    for scheme, port in (("http:", ":80"), ("https:", ":443")):
        if text.startswith(scheme):
            return text.removesuffix(port)
    return text


def dotted(name: str) -> bool:
    """Return whether ``name`` is a dotted name, as of a module."""
    return all(map(str.isidentifier, name.split(".")))


def _modules(value: object) -> tuple[str, ...] | None:
    """Return the names; None for ``auto``."""
    names = _items(value)
    if names in (("auto",), ("none",)):
        return None if names == ("auto",) else ()
    for name in names:
        if not dotted(name) or name in ("auto", "none"):
            raise ValueError(f"{name!r} is not a module's name; write auto, none, or names such as torch,diffusers")
    return names


_GPU = re.compile(r"[0-9A-Za-z][0-9A-Za-z/_-]*", re.ASCII)
_GPU_WORDS = ("auto", "all", "none")


def _gpus(value: object) -> str:
    listed = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    names = tuple(map(str, listed)) if isinstance(listed, (list, tuple)) else _items(listed)
    how = "write auto, all, none, or a list such as 0,2 or GPU-8932f937"
    if not names or (len(names) > 1 and set(names) & set(_GPU_WORDS)):
        raise ValueError(f"{value!r} does not say which GPUs; {how}")
    for name in names:
        near = nearest(name.lower(), _GPU_WORDS)
        if not _GPU.fullmatch(name) or (near and name not in _GPU_WORDS):
            raise ValueError(f"{name!r} is not a GPU; {how}{near}")
    return ",".join(names)


_ENDPOINT_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._~-]{1,128}", re.ASCII)


def _endpoint_id(value: object) -> str:
    name = _text(value)
    if not _ENDPOINT_ID.fullmatch(name):
        raise ValueError(f"{name!r} is not valid in a URL; use letters, digits, '-', '_', '.' and '~', at most 128")
    return name


def _host(value: object) -> str:
    name = _text(value).strip()
    if "://" in name or "/" in name:
        raise ValueError(f"{name!r} is not a host; give a name or an address alone, such as 127.0.0.1")
    if name == "*":
        raise ValueError("'*' is not a host; write 0.0.0.0 for every address of this machine")
    name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if ":" in name:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            message = f"{name!r} is not a host; give a name or an address alone, and the port with --port"
            raise ValueError(message) from None
    return name


def _json(value: object) -> str:
    if not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    try:
        msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise ValueError(f"{value!r} is not JSON ({error}); quote it for the shell, as in '{{\"n\": 1}}'") from None
    return value


# --- the kinds -----------------------------------------------------------------------------------------------------------

TEXT = Kind("TEXT", _text)
FLAG = Kind("", _flag, flag=True)
PATH = Kind("PATH", _path)
FILE = Kind("FILE", _file)
SIZE = Kind("SIZE", _size, _show_size)
DURATION = Kind("TIME", lambda value: _duration(value, 0), _show_duration)
MEBIBYTES = Kind("MIB", lambda value: _whole(value, 0, None))
PORT = Kind("PORT", lambda value: _whole(value, 0, 65_535))
HOST = Kind("HOST", _host)
GPUS = Kind("LIST", _gpus)
MODULES = Kind("auto|none|LIST", _modules)
ENDPOINT_ID = Kind("ID", _endpoint_id)
JSON = Kind("JSON", _json)
WORDS = Kind("WORDS", _words, multiple=True)
API_KEYS = Kind("KEY", _api_keys, multiple=True)
ORIGINS = Kind("ORIGIN", _origins, multiple=True)
WEBHOOK_SECRET = Kind("SECRET", _webhook_secret)


def duration(least: float) -> Kind:
    """Make the kind of times of at least ``least`` seconds."""
    return Kind("TIME", lambda value: _duration(value, least), _show_duration)


def whole(low: int, high: int | None = None) -> Kind:
    """Make the kind of whole numbers from ``low`` to ``high``."""
    return Kind("N", lambda value: _whole(value, low, high))


def choice(*words: str) -> Kind:
    """Make the kind that accepts one of ``words``."""
    return Kind("|".join(words), lambda value: _one_of(value, words))
