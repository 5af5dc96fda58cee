"""README and docs: their size, links, commands, and that they name all there is to name. ``e2e/test_documents.py`` runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from supervisor.api.operations import ROUTES
from supervisor.cli.app import COMMANDS, make_program
from supervisor.cli.serve import Entry, make_command
from supervisor.config.settings import OPTIONS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

README_WORDS = 1_000
PAGE_LINES = 250

FOREIGN = {
    *("--pid", "--cap-add", "--security-opt", "--init", "--stop-timeout", "--ulimit", "--rm", "--gpu-reset", "--user"),
    *("--runs", "--seconds", "--no-cache-dir"),
}
"""Options of other programs that the pages name."""

THEIRS = {"Unknown Error", '{"input": {}}'}
"""What troubleshooting quotes that is not, or not in one piece, in our source."""


class Block(NamedTuple):
    """A fenced block of code. ``marks`` is what stands behind the fence, such as ``sh run``."""

    marks: list[str]
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(marks.split(), text) for marks, text in found]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def all_docs() -> str:
    return "\n".join(page.read_text("utf-8") for page in DOCS)


# --- size and links -------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    words = [
        word for line in prose(ROOT / "README.md").splitlines() if not line.startswith("|") for word in line.split()
    ]
    assert len(words) <= README_WORDS


def test_the_readme_opens_with_what_it_is_a_picture_and_two_commands() -> None:
    picture, serve, tests = blocks(ROOT / "README.md")[:3]
    assert picture.text.startswith("╭─ supervise")
    assert serve.text.count("\n") == tests.text.count("\n") == 1
    assert serve.text.endswith("&& supervise handlers.my_handler\n")
    assert tests.text == (
        "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/python -m pytest -q\n"
    )


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_no_page_is_long(page: Path) -> None:
    assert len(page.read_text("utf-8").splitlines()) <= PAGE_LINES


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_ours_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"[\w.]+(?:/[\w.]+)*/\w+\.(?:py|md|sql)", page.read_text("utf-8")):
        homes = [home for home in (ROOT, ROOT / "supervisor") if (home / name.partition("/")[0]).is_dir()]
        assert not homes or any((home / name).is_file() for home in homes), name


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in readme] == []


# --- commands -------------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``supervise`` in lines for a shell."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if command[:1] == ["xargs"]:
                    command = [*command[1:], "ID"]
                while command and re.match(r"\w+=|-r$", command[0]):
                    del command[0]
                if command and Path(command[0]).name == "supervise":
                    found.append(command[1:])
                command = []
            else:
                command.append(word)
        for inner in re.findall(r"\$\((.*?)\)", line):
            found += commands(inner)
    return found


def all_commands(page: Path) -> list[list[str]]:
    found = [command for block in blocks(page) if block.marks[:1] == ["sh"] for command in commands(block.text)]
    for span in re.findall(r"`(supervise .*?)`", prose(page), re.DOTALL):
        found += commands(" ".join(span.replace("…", "").split()))
    text = page.read_text("utf-8")
    for line in re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE):
        found += commands(line)
    for line in re.findall(r"^CMD \[(.*)\]$", text, re.MULTILINE):
        found.append(re.findall(r'"([^"]*)"', line)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_understood(page: Path) -> None:
    program = make_program()
    for words in all_commands(page):
        if "--help" in words or words == ["--version"]:
            continue
        name, *rest = words if words[0] in COMMANDS else ["serve", *words]
        command = program.get_command(click.Context(program), name)
        assert command is not None
        with command.make_context(name, rest) as context:
            for option, value in context.params.items() if name == "serve" else ():
                if value not in (None, ()) and option in OPTIONS:
                    OPTIONS[option].kind.parse(value)


def test_commands_are_found() -> None:
    line = 'A=1 supervise logs -f "$(supervise submit a=b)" | jq .x # supervise no; \n curl x && supervise x.py -- --y'
    assert commands(line) == [["logs", "-f", "$(supervise submit a=b)"], ["submit", "a=b"], ["x.py", "--", "--y"]]
    assert sum(len(all_commands(page)) for page in PAGES) > 50


def options_of(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts
        if name.startswith("--")
    }


def every_option() -> set[str]:
    program = make_program()
    context = click.Context(program)
    found = set().union(*(options_of(program.get_command(context, name)) for name in COMMANDS))
    return {*found, "--help", "--version"}


def test_every_option_is_documented() -> None:
    named = set(re.findall(r"--[a-z][a-z-]*", all_docs()))
    assert every_option() - named == set()


def test_no_option_is_documented_that_is_not_there() -> None:
    """Every flag has its opposite, too."""
    named = {name for page in PAGES for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose(page))}
    known = every_option() | {name.replace("--", "--no-", 1) for name in every_option()} | FOREIGN
    assert named - known == set()


def test_the_defaults_are_right() -> None:
    page = (ROOT / "docs/command-line.md").read_text("utf-8")
    rows = re.findall(r"^\| `(--[a-z-]+)[^|]*?((?:\\\|[^|]*)*)\| ([^|]*?) ?\| ", page, re.MULTILINE)
    shown = {name: default for name, _, default in rows}
    for entry in make_command().params:
        if isinstance(entry, Entry):
            default = re.search(r" \[([^\]]*)\]$", entry.right_column)
            wanted = default[1] if default else ""
            assert shown[entry.left_column.split()[0].replace("[no-]", "")] == wanted, entry.left_column


# --- what there is to name ------------------------------------------------------------------------------------------------


def test_every_metric_is_documented() -> None:
    source = (ROOT / "supervisor/api/metrics.py").read_text("utf-8")
    there = set(re.findall(r'"((?:supervise|process)_[a-z_]+)"', source))
    assert len(there) > 30
    named = set(re.findall(r"`((?:supervise|process)_[a-z_]+)", (ROOT / "docs/operating.md").read_text("utf-8")))
    assert named == there


def test_every_operation_is_documented() -> None:
    there = {route.path: set(route.methods) - {"HEAD"} for route in ROUTES}
    shown = {}
    for cell, methods in re.findall(
        r"^\| (`/[^|]*`) \| ((?:GET|POST)(?:, POST)?) \|", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE
    ):
        for path in re.findall(r"`(/[^`?]*)", cell):
            shown[path] = set(methods.split(", "))
    assert shown == there


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/command-line.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"`supervise {name}" not in page] == []


def source() -> str:
    """All of ours, with texts that are written in several pieces in one."""
    whole = "\n".join(file.read_text("utf-8") for file in sorted((ROOT / "supervisor").rglob("*.py")))
    return re.sub(r"""["']\s*\n\s*f?["']""", "", whole)


def test_the_messages_that_troubleshooting_quotes_are_ours() -> None:
    text = prose(ROOT / "docs/troubleshooting.md")
    text = text[: text.index("## CUDA and forks")]
    ours = source()
    missing = []
    for row in re.findall(r"^\| (.*?) \|", text, re.MULTILINE):
        for quoted in re.findall(r"`([^`]*)`", row):
            pieces = [piece.strip(" :;,.") for piece in quoted.split("…")]
            if quoted not in THEIRS and " " in quoted and not all(piece in ours for piece in pieces):
                missing.append(quoted)
    assert missing == []
