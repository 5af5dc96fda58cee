"""``supervise --help``: groups, width, examples, and every option in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisor import __version__
from supervisor.cli import app
from supervisor.config.settings import OPTIONS


@pytest.fixture
def page(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert app.main(["--help"]) == 0
    return capsys.readouterr().out


def test_the_page_fits_80_columns(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 80


def test_the_groups_in_order(page: str) -> None:
    headings = re.findall(r"^([A-Z][\w ]+):$", page, re.MULTILINE)
    assert headings == [
        *("Handler", "GPUs", "Workers", "Refresh", "Jobs", "HTTP", "Security", "Webhooks", "Output", "Batch", "Other"),
        *("Commands", "Commands to a running supervisor", "Examples", "Exit codes"),
    ]


@pytest.mark.parametrize("name", [name for name, entry in OPTIONS.items() if not entry.positional])
def test_every_option_is_there_once(page: str, name: str) -> None:
    dashed = "--[no-]dashboard" if name == "dashboard" else OPTIONS[name].dashed
    assert len(re.findall(rf"^  {re.escape(dashed)}( |$)", page, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Usage: supervise HANDLER [OPTIONS] [-- HANDLER_ARGS]",
        "--port PORT      Port to listen on; 0 picks one. [8900]",
        "--grace TIME",
        "[24h]",
        "[20MiB]",
        "--pin-by index|uuid",
        "-h, --help",
        "--version",
        "  gpus   Show the GPUs that NVML lists",
        "  submit   Submit a job",
        "supervise handlers/my_handler.py",
        "  2    wrong usage, handler, GPU or port, or refused by the system",
        "SUPERVISE_PORT",
    ],
)
def test_the_page_says(page: str, text: str) -> None:
    assert text in page


def test_defaults_that_mean_off_are_not_shown_as_numbers(page: str) -> None:
    assert "Refresh a worker after N jobs. [off]" in page
    assert "[False]" not in page
    assert "[None]" not in page


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["handler.py", "-h"], ["--port", "1", "--help"]])
def test_serve_has_the_same_page_without_the_commands(
    page: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert app.main(arguments) == 0
    out = capsys.readouterr().out
    assert "Commands:" not in out
    assert set(out.splitlines()) <= {
        *page.splitlines(),
        "  --config PATH  A TOML file of options, such as port = 8080.",
    } | {"  -h, --help     Show this message and exit."}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"supervise {__version__}\n"
