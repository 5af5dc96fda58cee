"""What is wrong with a secret, or beside one, is said without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.cli import app
from supervisor.config.resolve import make_settings

SECRET = "aGVsbG8gd29ybGQ"

COMMAND_LINES = {
    "a control character in a key": ["--api-key", f"{SECRET}\x1b[2J"],
    "a space in a key": ["--api-key", f"x {SECRET}"],
    "a key that is not ASCII": ["--api-key", f"{SECRET}ä"],
    "a key and no keys": ["--api-key", SECRET, "--no-auth"],
    "a key, and another option is wrong": ["--api-key", SECRET, "--port", "x"],
    "a key, and an option that is none": ["--api-key", SECRET, "--prot", "1"],
    "an option that is nearly that of keys": [f"--api-keys={SECRET}"],
    "an option that is nearly that of the secret": [f"--webhok-secret={SECRET}"],
    "a flag that has a value": [f"--no-auth={SECRET}"],
    "a secret that is not base64": ["--webhook-secret", f"whsec_{SECRET}!"],
    "a secret with a line end": ["--webhook-secret", f"{SECRET}\n"],
    "a secret, and a host that needs a key": ["--webhook-secret", SECRET, "--host", "0.0.0.0"],
}

VARIABLES = {
    "SUPERVISE_API_KEY": f"{SECRET} x",
    "SUPERVISE_API_KEYS": f"fine,{SECRET} x",
    "SUPERVISE_WEBHOOK_SECRET": f"whsec_{SECRET}!",
}

TABLES = {
    "a key of another type": f'api-key = {{ key = "{SECRET}" }}',
    "a list of other things": f'api-key = [["{SECRET}"]]',
    "a secret in a list": f'webhook-secret = ["{SECRET}"]',
    "no TOML behind it": f'api-key = "{SECRET}"\nport =',
    "no TOML in it": f'api-key = "{SECRET}',
    "an option that is none": f'api-keys = "{SECRET}"',
    "the same option twice": f'api-key = "{SECRET}"\napi_key = "{SECRET}"',
}

FILES = {
    "a space": f"{SECRET} x\n",
    "nothing but a comment": f"# {SECRET}\n",
    "not text": f"{SECRET}\udcff\n",
    "a control character": f"fine\n{SECRET}\x07\n",
}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``supervise handler.py …`` says, which it must refuse."""
    assert app.main(["handler.py", "--gpus", "none", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("supervise: ")
    return err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", COMMAND_LINES)
def test_of_the_command_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert SECRET not in refusal(capsys, *COMMAND_LINES[name])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("variable", VARIABLES)
def test_of_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, VARIABLES[variable])
    said = refusal(capsys)
    assert variable in said
    assert SECRET not in said


@pytest.mark.parametrize("name", TABLES)
def test_of_the_config_file(capsys: pytest.CaptureFixture[str], folder: Path, name: str) -> None:
    (folder / "supervise.toml").write_text(TABLES[name])
    said = refusal(capsys, "--config", "supervise.toml")
    assert "supervise.toml" in said
    assert SECRET not in said


@pytest.mark.parametrize("name", FILES)
def test_of_the_file_of_keys(capsys: pytest.CaptureFixture[str], folder: Path, name: str) -> None:
    (folder / "keys").write_text(FILES[name], errors="surrogateescape")
    said = refusal(capsys, "--api-key-file", "keys")
    assert "keys" in said
    assert SECRET not in said


def test_settings_do_not_show_theirs(folder: Path) -> None:
    (folder / "keys").write_text(f"{SECRET}2\n")
    settings = make_settings("handler.py", api_key=SECRET, api_key_file="keys", webhook_secret=SECRET)
    assert SECRET in settings.api_key
    assert SECRET not in f"{settings} {settings!r} {settings.api_key} {settings.webhook_secret!r}"
