"""Loads the handler: runs the file or module as Python would; in the worker process, before its first job.

The handler's code may never return: ``serverless.start`` serves from within. If it does return, the module is searched for a
function to serve.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import operator
import pkgutil
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, cast

import msgspec

from supervisor.wire import messages as wire
from supervisor.worker import blame

KNOWN_KEYS = ("handler", "refresh_worker", "return_aggregate_stream", "concurrency_modifier")


class Config(msgspec.Struct, frozen=True):
    """Checked argument of ``start``. ``unknown`` are its unsupported keys."""

    handler: Callable[..., Any]
    refresh_worker: bool = False
    return_aggregate_stream: bool = False
    concurrency_modifier: Callable[[int], Any] | None = None
    unknown: tuple[str, ...] = ()


def check(given: object) -> Config | wire.LoadFailed:
    """Check the argument of ``start``; return the config, or why it is invalid."""
    if not isinstance(given, dict):
        return _bad_config(f"start() takes a dict, not {type(given).__name__}")
    if "handler" not in given:
        return _bad_config("start() takes a dict with the key 'handler'")
    for key in ("handler", "concurrency_modifier"):
        value = given.get(key)
        if not callable(value) and not (value is None and key != "handler"):
            return _bad_config(f"the config's {key!r} must be callable, not {type(value).__name__}")
    return Config(
        handler=given["handler"],
        refresh_worker=bool(given.get("refresh_worker")),
        return_aggregate_stream=bool(given.get("return_aggregate_stream")),
        concurrency_modifier=given.get("concurrency_modifier"),
        unknown=tuple(blame.utf8(str(key)) for key in given if key not in KNOWN_KEYS),
    )


def load(spec: wire.HandlerSpec) -> Callable[..., Any] | wire.LoadFailed:
    """Run the code that ``spec`` names. If it does not call ``start``, return the function to serve, or why there is none."""
    try:
        if spec.kind == "file":
            return _run_file(Path(spec.target), spec.argv)
        if spec.kind == "module":
            return _run_module(spec.target, spec.argv)
        return _import_function(spec.target, spec.attribute or "handler", spec.argv)
    except SystemExit as ended:
        return raised("raised", f"{spec.target} called sys.exit({ended.code!r}) while it was loaded", ended)
    except BaseException as error:  # noqa: BLE001 - user code ran
        return raised("raised", f"{spec.target} raised while it was loaded: {blame.one_line(error)}", error)


def raised(reason: str, message: str, error: BaseException) -> wire.LoadFailed:
    """Report that the user's code raised ``error``."""
    return wire.LoadFailed(reason, blame.utf8(message), blame.users_traceback(error))


def _bad_config(message: str) -> wire.LoadFailed:
    return wire.LoadFailed("bad_config", message, blame.users_stack())


def _run_file(path: Path, argv: tuple[str, ...]) -> Callable[..., Any] | wire.LoadFailed:
    """Run the file as ``python path argv`` does."""
    try:
        source = path.read_bytes()
    except OSError as error:
        return wire.LoadFailed("not_found", blame.utf8(f"cannot read the handler {path}: {error.strerror}"))
    sys.path.insert(0, str(path.resolve().parent))  # as Python does, links resolved
    sys.argv = [str(path), *argv]
    main = _replace_main()
    main.__file__ = str(path)
    main.__loader__ = SourceFileLoader("__main__", str(path))
    return _execute(compile(source, str(path), "exec", dont_inherit=True), main)


def _run_module(name: str, argv: tuple[str, ...]) -> Callable[..., Any] | wire.LoadFailed:
    """Run the module as ``python -m name argv`` does. Its ``__spec__`` lets multiprocessing's children import ``__main__``."""
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["-m", *argv]  # as Python sets it while a package is imported
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name += ".__main__"
        spec = _find(name)
    get_code = getattr(spec.loader, "get_code", None) if spec is not None else None
    code = get_code(name) if get_code is not None else None
    if spec is None or code is None:
        return _no_module(name)
    main = _replace_main()
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    if spec.origin is not None:
        main.__file__ = sys.argv[0] = spec.origin
    return _execute(code, main)


def _import_function(name: str, attribute: str, argv: tuple[str, ...]) -> Callable[..., Any] | wire.LoadFailed:
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = [name, *argv]
    _replace_main()  # an empty one, so that multiprocessing's children import nothing again
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_about(error, name):
            raise
        return _no_module(name)
    try:
        function: object = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        return wire.LoadFailed("no_handler", blame.utf8(f"{name} has no {attribute}: {error}"))
    if not callable(function):
        return wire.LoadFailed(
            "no_handler", blame.utf8(f"{name}:{attribute} is no function but {type(function).__name__}")
        )
    return cast("Callable[..., Any]", function)


def _no_module(name: str) -> wire.LoadFailed:
    """That the module ``name`` was not found, with the nearest one beside its place below the current folder."""
    import difflib  # noqa: PLC0415 - a worker that loads does not need it

    *parents, _ = name.split(".")
    beside = pkgutil.iter_modules([str(Path.cwd().joinpath(*parents))])
    near = difflib.get_close_matches(name, [".".join([*parents, found.name]) for found in beside], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return wire.LoadFailed("not_found", blame.utf8(f"there is no Python module {name}{hint}"))


def _execute(code: types.CodeType, main: types.ModuleType) -> Callable[..., Any] | wire.LoadFailed:
    exec(code, vars(main))
    function = vars(main).get("handler")
    if callable(function):
        return cast("Callable[..., Any]", function)
    return wire.LoadFailed(
        "no_handler", blame.utf8(f"{main.__file__} calls no start() and has no function named handler")
    )


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if not _is_about(error, name):
            raise  # one of its packages imports a missing module
        return None


def _is_about(error: ModuleNotFoundError, name: str) -> bool:
    return error.name is not None and f"{name}.".startswith(f"{error.name}.")


def _replace_main() -> types.ModuleType:
    """Replace the template's ``__main__`` by a fresh module, and return that."""
    main = types.ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    return main
