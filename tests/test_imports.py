"""Who may import whom: the house's levels (CONTRIBUTING shows the picture), read from the source and not from a running program.

A line of the tables below is a permission; a file that no line speaks of, an import that none allows, a permission that nothing
uses, or a circle fails with its ``file:line``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from supervisor.config.settings import OPTIONS

ROOT = Path(__file__).parents[1]
PACKAGE = "supervisor"

MOST_LINES = 400
"""Of a file of the package."""

# A room is a file or a folder of the package, and imports only rooms that stand above it here.
MAY_IMPORT: dict[str, set[str]] = {
    # The words that all share, and what handlers import.
    "errors": set(),
    "cause": set(),
    "notice": {"cause"},
    "job": {"cause"},
    "upload": {"errors"},
    "serverless": {"upload"},
    # What every process may need.
    "wire": {"cause", "errors"},
    "host": {"errors", "wire"},
    "config": {"errors", "host", "wire"},
    "protocol": {"cause", "errors", "job", "notice"},
    "store": {"cause", "config", "errors", "host", "job", "wire"},
    # The reader, the children, and what sees the program as any client does.
    "gpu": {"config", "errors", "host", "wire"},
    "worker": {"cause", "errors", "host", "job", "serverless", "wire"},
    "template": {"cause", "errors", "host", "wire", "worker"},
    "client": {"errors", "job", "protocol"},
    "dashboard": {"client", "errors", "notice", "protocol"},
    # The supervisor.
    "waiting": set(),
    "pool": {"cause", "config", "errors", "gpu", "host", "notice", "wire"},
    "webhooks": {"config", "errors", "notice", "store", "waiting"},
    "engine": {"cause", "config", "errors", "gpu", "job", "notice", "pool", "protocol", "store", "waiting", "wire"},
    "api": {"config", "engine", "errors", "job", "protocol"},
    "batch": {"engine", "errors", "job", "protocol"},
    # What puts it together.
    "reload": {"notice", "wire"},
    "machine": {"config", "gpu", "host", "pool", "wire"},
    "assembly": {"config", "engine", "errors", "gpu", "machine", "pool", "protocol", "reload", "store"},
    "embed": {
        "assembly",
        "cause",
        "config",
        "engine",
        "errors",
        "job",
        "notice",
        "pool",
        "protocol",
        "store",
        "webhooks",
    },
    "cli": {
        *("api", "assembly", "batch", "client", "config", "dashboard", "engine", "errors", "gpu", "host"),
        *("notice", "job", "pool", "protocol", "store", "webhooks"),
    },
    "__main__": {"cli"},
    "__init__": {"embed"},
}

# What is not in the standard library.
THIRD_PARTY: dict[str, set[str]] = {
    "_supervise_runpod": {"worker"},  # ours, by the name under which a handler's own interpreters find it
    "msgspec": set(MAY_IMPORT)
    - {"__init__", "__main__", "errors", "host", "serverless", "webhooks", "machine", "assembly", "reload", "waiting"},
    "boto3": {"upload", "worker"},
    "botocore": {"upload", "worker"},
    "click": {"cli"},
    "httptools": {"api"},
    "psutil": {"api"},
    "pynvml": {"gpu"},
    "requests": {"webhooks", "worker"},
    "rich": {"cli", "dashboard"},
    "runpod": {"worker"},
    "tomli": {"config"},
    "tomllib": {"config"},  # of the standard library only from Python 3.11 on
    "urllib3": {"webhooks"},
    "uvicorn": {"api"},
    "uvloop": {"cli", "embed"},
}

# Who reads the environment, and what for. Options are read by the settings alone.
READS_ENVIRONMENT = {
    "embed": "is this a worker, which must not start supervisors",
    "config": "options",
    "machine": "the parent's CUDA_VISIBLE_DEVICES, and whether OMP_NUM_THREADS is set",
    "cli": "the socket of systemd",
    "dashboard": "TERM: can this terminal show a screen",
    "gpu": "what the reader inherits",
    "host": "where clients of CUDA's MPS meet it",
    "pool": "what the template inherits",
    "template": "what a worker's user code finds",
    "upload": "the bucket of jobs that name none",
    "worker": "what a handler and what it starts find",
}
NAMES_OPTION_VARIABLES = {
    "config": "the table itself",
    "cli": "client commands have options of their own of the same name",
}

# Files of supervisord, whose import name is the same: installed into one folder, the later one would overwrite the other's.
SUPERVISORD = set(
    re.findall(
        r"\w+",
        "childutils compat confecho datatypes dispatchers events http http_client loggers medusa options pidproxy poller process "
        "rpcinterface scripts skel socket_manager states supervisorctl supervisord templating tests ui web xmlrpc",
    )
)


class Import(NamedTuple):
    """``source`` imports ``target`` (dotted names) at ``line``; ``typing_only`` under ``if TYPE_CHECKING``."""

    source: str
    target: str
    line: int
    typing_only: bool = False
    at_top: bool = True


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()
TREES = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in FILES.items()}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def place(module: str, line: int) -> str:
    return f"{FILES[module].relative_to(ROOT)}:{line}"


def imports_of(module: str, tree: ast.Module, known: set[str], is_package: bool) -> Iterator[Import]:
    """Every import in ``tree``, wherever it stands."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            # `from a import b` imports the module a.b where there is one, else the module a.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module, target, node.lineno, id(node) in typing_only, node in tree.body)


def all_imports() -> list[Import]:
    return [
        entry
        for module, tree in TREES.items()
        for entry in imports_of(module, tree, set(FILES), FILES[module].name == "__init__.py")
        if entry.target != "__future__"
    ]


IMPORTS = all_imports()


def is_ours(target: str) -> bool:
    return target.partition(".")[0] == PACKAGE


def fault_of(entry: Import) -> str | None:
    """What is wrong with an import, or None."""
    room = room_of(entry.source)
    where = place(entry.source, entry.line)
    if is_ours(entry.target):
        target = room_of(entry.target)
        # The package itself, which has the version, comes with each of its modules.
        if target in ("__init__", room) or target in MAY_IMPORT[room]:
            return None
        return f"{where}: {room} may not import {entry.target}, only {', '.join(sorted(MAY_IMPORT[room]))}"
    top = entry.target.partition(".")[0]
    if top in sys.stdlib_module_names or room in THIRD_PARTY.get(top, ()):
        return None
    return f"{where}: {room} may not import {entry.target} (see THIRD_PARTY)"


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import each other, one list for each knot (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            knot = stack[at:]
            del stack[at:]
            if len(knot) > 1 or node in edges.get(node, ()):
                found.append(sorted(knot))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def test_every_file_is_in_a_room() -> None:
    strangers = [place(module, 1) for module in FILES if room_of(module) not in MAY_IMPORT]
    assert not strangers, f"{strangers}: in no room of MAY_IMPORT; give each a level there and in CONTRIBUTING"


def test_the_picture_in_contributing_shows_the_same_rooms() -> None:
    rows = re.findall(
        r"^\| ((?:`[a-z_]+(?:/|\.py)` ?)+)\|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
    )
    shown = [room for row in rows for room in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    assert shown == [room for room in MAY_IMPORT if not room.startswith("__")]


def test_lower_rooms_do_not_import_upper_ones() -> None:
    faults = [fault for entry in IMPORTS if room_of(entry.source) in MAY_IMPORT and (fault := fault_of(entry))]
    assert not faults, "\n" + "\n".join(faults)


def test_a_room_imports_only_rooms_above_it_in_the_table() -> None:
    """So there is no circle of rooms either."""
    rooms = list(MAY_IMPORT)
    faults = [f"{room}: {allowed}" for room in rooms for allowed in MAY_IMPORT[room] - set(rooms[: rooms.index(room)])]
    assert not faults
    assert not circles(MAY_IMPORT)


def test_nothing_is_permitted_that_nobody_needs() -> None:
    used = {(room_of(entry.source), room_of(entry.target)) for entry in IMPORTS if is_ours(entry.target)}
    used |= {(room_of(entry.source), entry.target.partition(".")[0]) for entry in IMPORTS if not is_ours(entry.target)}
    permitted = [(room, allowed) for room, rooms in MAY_IMPORT.items() for allowed in rooms]
    permitted += [(room, package) for package, rooms in THIRD_PARTY.items() for room in rooms]
    unused = [f"{room}: {target}" for room, target in permitted if (room, target) not in used]
    assert not unused, f"{unused}: take these permissions away"


def reach(room: str) -> set[str]:
    """The rooms that may be in a process with ``room``."""
    return {room}.union(*(reach(allowed) for allowed in MAY_IMPORT[room]))


def test_the_children_have_nothing_of_the_supervisor() -> None:
    assert reach("template") == {"cause", "errors", "host", "job", "serverless", "template", "upload", "wire", "worker"}


def test_screens_see_the_program_as_any_client_does() -> None:
    assert reach("dashboard") == {"cause", "client", "dashboard", "errors", "job", "notice", "protocol"}


def test_no_circles() -> None:
    edges: dict[str, set[str]] = {}
    for entry in IMPORTS:
        if is_ours(entry.target) and entry.target != PACKAGE and not entry.typing_only:
            edges.setdefault(entry.source, set()).add(entry.target)
    knots = circles(edges)
    lines = [
        f"{place(entry.source, entry.line)}: imports {entry.target}"
        for knot in knots
        for entry in IMPORTS
        if entry.source in knot and entry.target in knot and not entry.typing_only
    ]
    assert not knots, "these modules import each other:\n" + "\n".join(lines)


def test_no_file_is_longer_than_a_head_can_hold() -> None:
    lengths = {place(module, 1): len(path.read_text("utf-8").splitlines()) for module, path in FILES.items()}
    too_long = {name: length for name, length in lengths.items() if length > MOST_LINES}
    assert not too_long, f"{too_long}: one subject a file, {MOST_LINES} lines at most"


def test_the_package_itself_imports_nothing() -> None:
    faults = [place(entry.source, entry.line) for entry in IMPORTS if entry.source == PACKAGE and entry.at_top]
    assert not faults, f"{faults}: every process imports this file"


def test_main_imports_the_command_line_only_when_called() -> None:
    faults = [
        place(entry.source, entry.line)
        for entry in IMPORTS
        if entry.source == f"{PACKAGE}.__main__" and entry.at_top and entry.target.startswith(f"{PACKAGE}.")
    ]
    assert not faults, f"{faults}: processes of multiprocessing import this file again"


def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return (
            node.attr in ("environ", "environb", "getenv")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )
    return isinstance(node, ast.ImportFrom) and node.module == "os" and any("env" in alias.name for alias in node.names)


def test_only_the_listed_rooms_read_the_environment() -> None:
    faults = [
        place(module, node.lineno)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Attribute, ast.ImportFrom)) and reads_environment(node)
        if room_of(module) not in READS_ENVIRONMENT
    ]
    assert not faults, f"{faults}: options come from the settings; any other use needs a line in READS_ENVIRONMENT"
    readers = {room_of(module) for module, tree in TREES.items() if any(map(reads_environment, ast.walk(tree)))}
    assert set(READS_ENVIRONMENT) == readers


def test_only_settings_know_the_variables_of_options() -> None:
    names = {variable for option in OPTIONS.values() for variable in option.variables}
    faults = [
        f"{place(module, node.lineno)}: {node.value}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
        if room_of(module) not in NAMES_OPTION_VARIABLES
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_no_file_has_the_name_of_one_of_supervisord() -> None:
    ours = {path.name.removesuffix(".py") for path in (ROOT / PACKAGE).iterdir() if path.name != "__init__.py"}
    assert not ours & SUPERVISORD


# --- the rules themselves, on sources that break them ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text", "targets"),
    [
        ("supervisor.gpu.reader", "from supervisor.wire import messages", {"supervisor.wire.messages"}),
        ("supervisor.gpu.reader", "from supervisor import __version__", {"supervisor"}),
        ("supervisor.gpu.reader", "from . import records", {"supervisor.gpu.records"}),
        ("supervisor.gpu.reader", "from ..job import Job", {"supervisor.job"}),
        ("supervisor.gpu.reader", "def f():\n    import supervisor.job, os", {"supervisor.job", "os"}),
    ],
)
def test_imports_are_found(source: str, text: str, targets: set[str]) -> None:
    found = imports_of(source, ast.parse(text), set(FILES), is_package=False)
    assert {entry.target for entry in found} == targets


def test_imports_for_types_are_told_apart() -> None:
    text = "if TYPE_CHECKING:\n    from supervisor import job\nfrom supervisor.wire import messages"
    found = imports_of("supervisor.pool.pool", ast.parse(text), set(FILES), is_package=False)
    assert {entry.target: entry.typing_only for entry in found} == {
        "supervisor.job": True,
        "supervisor.wire.messages": False,
    }


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("supervisor.job", "supervisor.store.store"),
        ("supervisor.errors", "click"),
        ("supervisor.store", "supervisor.gpu.records"),
        ("supervisor.gpu", "supervisor.pool.pool"),
        ("supervisor.api", "supervisor.pool.pool"),
        ("supervisor.dashboard", "supervisor.engine.engine"),
        ("supervisor.dashboard", "pynvml"),
        ("supervisor.worker", "torch"),
        ("supervisor.worker", "supervisor.pool.pool"),
        ("supervisor.worker", "supervisor.config.settings"),
        ("supervisor.template", "supervisor.store.store"),
        ("supervisor.template", "supervisor.gpu.records"),
        ("supervisor.template", "supervisor.engine.engine"),
        ("supervisor.client", "supervisor.config.settings"),
    ],
)
def test_what_is_forbidden_is_a_fault(source: str, target: str) -> None:
    fault = fault_of(Import(source, target, 7))
    assert fault is not None
    assert ":7: " in fault
    assert target in fault


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []
