"""Encodes a handler's value as JSON bytes, or reports the path of what cannot be encoded; used in the worker process.

msgspec encodes plain values in C. Whatever fails there is walked once more in Python, which converts it or reports where in the
value the problem is. numpy, torch and pydantic are never imported: their values exist only if the handler imported them.

Values that JSON lacks: NaN and the infinities become ``null`` (in arrays too), bytes base64 text, a Decimal text, dates and
times ISO 8601, an Enum its value, a set a list, and keys that are not text what ``json.dumps`` makes of them.
"""

from __future__ import annotations

import datetime
import decimal
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Set
from enum import Enum
from typing import Any

import msgspec

from supervisor.errors import EncodeError
from supervisor.worker import blame

MAX_DEPTH = 300
"""Maximum nesting for the walk in Python. msgspec alone goes as deep as the interpreter's recursion limit."""

_SAFE_RECURSION_LIMIT = 10_000
"""msgspec recurses in C up to ``sys.getrecursionlimit()``; at 80,000 a cycle overflowed a stack of 8 MiB (CPython 3.11)."""

_SHOWN_PATH = 200
"""Maximum characters of a path in a message; the middle of a longer one is left out."""


class _Unknown(Exception):  # noqa: N818 - a result of _convert, never seen by callers of this module
    """No conversion is known."""


def encode(value: Any, path: str = "output") -> bytes:
    """Encode ``value`` as JSON in UTF-8, without changing it. ``path`` is its name in errors.

    Raises:
        EncodeError: it cannot be encoded: the message names the path inside it and the type. ``__cause__`` is the exception of
            the value's own code (a CUDA error, a broken property), if that was the reason.
    """
    if sys.getrecursionlimit() <= _SAFE_RECURSION_LIMIT:
        try:
            return _encode(value)
        except Exception:  # noqa: BLE001, S110 - conversions run the value's own code; the walk below reports the error
            pass
    try:
        return _encode(_plain(value, path, {}))
    except RecursionError:
        raise EncodeError(f"{path}: nested too deeply") from None
    except MemoryError:
        raise EncodeError(f"{path}: not enough memory to encode it") from None


def error_text(value: Any) -> str:
    """Return a job's ``error`` as text: a string as it is, anything else as JSON, else its ``str()``. Never raises."""
    if isinstance(value, str):
        text = str.__str__(value)
    else:
        try:
            text = encode(value, "error").decode()
        except EncodeError as error:
            text = _str(value) or str(error)
    return blame.utf8(text)


def _str(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - __str__ is user code
        return ""


def _convert(value: Any) -> Any:
    """Convert one step towards what msgspec can encode, which calls this for unknown values and keys."""
    for kind, exactly in _SUBCLASSES:
        if isinstance(value, kind):
            return exactly(value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, (getattr(numpy, "ndarray", ()), getattr(numpy, "generic", ()))):
        return _from_numpy(value)
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return _from_torch(value)
    if callable(getattr(type(value), "model_dump", None)):  # pydantic
        return value.model_dump()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, Set):
        return list(value)
    raise _Unknown


#: Types whose subclasses msgspec passes to ``_convert``. bool and None cannot be subclassed, and come here as keys only.
_SUBCLASSES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (bool, lambda value: "true" if value else "false"),
    (int, int.__int__),
    (float, float.__float__),
    (type(None), lambda _: "null"),
    (bytes, memoryview),
    (bytearray, memoryview),
    (memoryview, memoryview.tobytes),  # non-contiguous; msgspec encodes the others
    (datetime.date, lambda value: value.isoformat()),
    (datetime.time, lambda value: value.isoformat()),
    (datetime.timedelta, lambda value: datetime.timedelta(value.days, value.seconds, value.microseconds)),
    (decimal.Decimal, str),
    (uuid.UUID, str),
)

#: Types that msgspec encodes by itself and that contain no other values.
_LEAVES = frozenset(
    {type(None), bool, float, bytes, bytearray, msgspec.Raw, decimal.Decimal, uuid.UUID}
    | {datetime.datetime, datetime.date, datetime.time, datetime.timedelta}
)

_encode = msgspec.json.Encoder(enc_hook=_convert).encode


def _from_numpy(value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "mM":
        return value.astype(str).tolist()  # tolist() makes plain integers of nanoseconds
    plain = (value.astype(float) if kind == "f" and value.dtype.itemsize > 8 else value).tolist()
    return (
        float(plain) if type(plain) is type(value) else plain
    )  # tolist() returns a scalar of an extension type unchanged


def _from_torch(value: Any) -> Any:
    tensor = value.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor.to_dense() if tensor.layout != sys.modules["torch"].strided else tensor).tolist()


def _plain(value: Any, path: str, inside: dict[int, str]) -> Any:
    """Convert ``value`` to what msgspec can encode, in the order in which msgspec visits it, keeping track of the path.

    ``inside`` maps the ids of the enclosing containers to their paths.

    Raises:
        EncodeError: something inside it cannot be encoded.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is int:
        return value if value.bit_length() <= 64 else msgspec.Raw(_digits(value).encode())
    if kind is str:
        return _checked(value, path)
    if id(value) in inside:
        raise EncodeError(f"{_short(path)}: refers back to {_short(inside[id(value)])}")
    if len(inside) >= MAX_DEPTH:
        raise EncodeError(f"{_short(path)}: nested more than {MAX_DEPTH} levels deep")
    inside[id(value)] = path
    try:
        return _opened(value, path, inside)
    except (EncodeError, RecursionError, MemoryError):
        raise
    except Exception as error:  # the value's own code
        raise EncodeError(f"{_cannot(value, path)}: {type(error).__name__}: {_str(error)}") from error
    finally:
        del inside[id(value)]


def _opened(value: Any, path: str, inside: dict[int, str]) -> Any:
    if isinstance(value, dict):
        return {_key(key, path): _plain(item, path + _step(key), inside) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, f"{path}[{index}]", inside) for index, item in enumerate(value)]
    if isinstance(value, Enum):
        return _plain(value.value, path, inside)
    fields = _fields(value)
    if fields is not None:
        return {name: _plain(item, path + _step(name), inside) for name, item in fields}
    try:
        converted = _convert(value)
    except _Unknown:
        raise EncodeError(_cannot(value, path)) from None
    return _plain(converted, path, inside)


def _fields(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the fields of a dataclass, attrs or msgspec instance as msgspec encodes them; None for other values."""
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        names = tuple(field.name for field in sys.modules["dataclasses"].fields(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        names = tuple(field.name for field in kind.__attrs_attrs__)
    elif isinstance(value, msgspec.Struct):
        return zip(value.__struct_encode_fields__, msgspec.structs.astuple(value), strict=True)
    else:
        return None
    return ((name, getattr(value, name)) for name in names if hasattr(value, name))


def _digits(value: int) -> str:
    return str(decimal.Decimal(value))  # exact, and without the interpreter's limit on str(int)


def _key(key: Any, path: str) -> str:
    if type(key) is str:
        return _checked(key, path + _step(key))
    if type(key) is int:
        return _digits(key)
    try:
        return str(*msgspec.json.decode(_encode({key: None})))
    except Exception:  # noqa: BLE001 - __fspath__ and the like are user code
        raise EncodeError(f"{_short(path)}: cannot use {_type_name(key)} as a key") from None


def _checked(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"a lone surrogate (character {error.start} is {text[error.start]!a})"
        raise EncodeError(f"{_short(path)}: the text holds {what}, which UTF-8 cannot write") from None
    return text


def _step(key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    if type(key) is int:
        return f"[{_digits(key)}]"
    return f"[{key!a}]" if isinstance(key, (str, float, bytes, bool, type(None))) else f"[{_type_name(key)}]"


def _cannot(value: Any, path: str) -> str:
    return f"{_short(path)}: cannot encode {_type_name(value)}"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _short(path: str) -> str:
    half = _SHOWN_PATH // 2
    return path if len(path) <= _SHOWN_PATH else f"{path[:half]}…{path[-half:]}"
