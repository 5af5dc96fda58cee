"""How what people write becomes a value: each kind, its texts, its native forms, and what it refuses with which advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config import kinds as option
from supervisor.config.kinds import Kind, Secret


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (option.DURATION, "90", 90.0),
        (option.DURATION, "30m", 1800.0),
        (option.DURATION, "24h", 86_400.0),
        (option.DURATION, "7d", 604_800.0),
        (option.DURATION, "1.5 s", 1.5),
        (option.DURATION, "500ms", 0.5),
        (option.DURATION, 0, 0.0),
        (option.DURATION, 2.5, 2.5),
        (option.SIZE, "20MiB", 20 * 2**20),
        (option.SIZE, "1GB", 10**9),
        (option.SIZE, "1 g", 2**30),
        (option.SIZE, "1.5KiB", 1536),
        (option.SIZE, "512", 512),
        (option.SIZE, "512b", 512),
        (option.SIZE, 7, 7),
        (option.PORT, "0", 0),
        (option.PORT, " 65535 ", 65_535),
        (option.PORT, 8080, 8080),
        (option.FLAG, "yes", True),
        (option.FLAG, "0", False),
        (option.FLAG, "Off", False),
        (option.FLAG, True, True),
        (option.choice("index", "uuid"), "UUID", "uuid"),
        (option.GPUS, "auto", "auto"),
        (option.GPUS, "0, 2", "0,2"),
        (option.GPUS, 0, "0"),
        (option.GPUS, [0, "GPU-8932f937"], "0,GPU-8932f937"),
        (option.GPUS, "MIG-GPU-1/2/3", "MIG-GPU-1/2/3"),
        (option.MODULES, "torch, diffusers.models", ("torch", "diffusers.models")),
        (option.MODULES, ["torch"], ("torch",)),
        (option.MODULES, "none", ()),
        (option.MODULES, "auto", None),
        (option.HOST, "[::1]", "::1"),
        (option.HOST, "0.0.0.0", "0.0.0.0"),
        (option.API_KEYS, "a,b\nc", ("a", "b", "c")),
        (option.API_KEYS, ["a"], ("a",)),
        (option.API_KEYS, "a\r\n", ("a",)),
        (
            option.ORIGINS,
            "https://Example.org/, http://localhost:3000",
            ("https://example.org", "http://localhost:3000"),
        ),
        (option.ORIGINS, "http://a.example:80,https://a.example:443", ("http://a.example", "https://a.example")),
        (option.ORIGINS, "http://a.example:443,https://[::1]:80", ("http://a.example:443", "https://[::1]:80")),
        (option.WORDS, "--name 'two words'", ("--name", "two words")),
        (option.WORDS, ["--name", "a b"], ("--name", "a b")),
        (option.JSON, '{"n": 1}', '{"n": 1}'),
        (option.JSON, {"n": [1]}, '{"n":[1]}'),
        (option.ENDPOINT_ID, "my-model_2.0~a", "my-model_2.0~a"),
    ],
)
def test_takes(kind: Kind, written: object, value: Any) -> None:
    assert kind.parse(written) == value
    assert type(kind.parse(written)) is type(value)


@pytest.mark.parametrize(
    ("kind", "written", "advice"),
    [
        (option.DURATION, "5 minutes", "such as 90, 30m or 24h"),
        (option.DURATION, "-1", "such as 90"),
        (option.DURATION, -1, "such as 90"),
        (option.DURATION, float("nan"), "such as 90"),
        (option.DURATION, "1e9", "such as 90"),
        (option.DURATION, "99999d", "such as 90"),
        (option.DURATION, True, "such as 90"),
        (option.DURATION, None, "such as 90"),
        (option.duration(0.1), "0", "at least 100ms"),
        (option.SIZE, "20 megs", "such as 20MiB"),
        (option.SIZE, "0", "such as 20MiB"),
        (option.SIZE, -5, "such as 20MiB"),
        (option.SIZE, 1.5, "such as 20MiB"),
        (option.PORT, "abc", "from 0 to 65535"),
        (option.PORT, "", "from 0 to 65535"),
        (option.PORT, "65536", "from 0 to 65535"),
        (option.PORT, "8000.0", "from 0 to 65535"),
        (option.PORT, "٨٠", "from 0 to 65535"),
        (option.PORT, True, "from 0 to 65535"),
        (option.whole(1), "0", "at least 1"),
        (option.FLAG, "perhaps", "true or false"),
        (option.FLAG, 2, "true or false"),
        (option.TEXT, "  ", "not empty"),
        (option.TEXT, "a\x1b[31m", "control character"),
        (option.TEXT, 3, "not a text"),
        (option.choice("index", "uuid"), "uid", "did you mean uuid"),
        (option.GPUS, "atuo", "did you mean auto"),
        (option.GPUS, "auto,1", "such as 0,2"),
        (option.GPUS, "0;1", "such as 0,2"),
        (option.GPUS, [], "such as 0,2"),
        (option.GPUS, True, "not a text"),
        (option.MODULES, "torch,dif-fusers", "'dif-fusers' is not a module's name"),
        (option.MODULES, "auto,torch", "'auto' is not"),
        (option.HOST, "http://localhost", "alone"),
        (option.HOST, "127.0.0.1:80", "--port"),
        (option.HOST, "*", "0.0.0.0"),
        (option.API_KEYS, "", "visible ASCII"),
        (option.API_KEYS, "a b", "visible ASCII"),
        (option.API_KEYS, "schlüssel", "visible ASCII"),
        (option.ORIGINS, "example.org", "such as http://localhost:3000"),
        (option.ORIGINS, "https://example.org/path", "such as http://localhost:3000"),
        (option.ORIGINS, "*", "such as http://localhost:3000"),
        (option.ORIGINS, "null", "such as http://localhost:3000"),
        (option.WORDS, "'open", "quotes"),
        (option.JSON, "{n: 1}", "quote it for the shell"),
        (option.ENDPOINT_ID, "a/b", "cannot stand in a URL"),
        (option.ENDPOINT_ID, "..", "cannot stand in a URL"),
        (option.ENDPOINT_ID, "é", "cannot stand in a URL"),
    ],
)
def test_refuses_with_advice(kind: Kind, written: object, advice: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refusal:
        kind.parse(written)
    assert advice in str(refusal.value)
    assert repr(written) in str(refusal.value) or kind in (option.API_KEYS, option.ORIGINS, option.MODULES, option.GPUS)


@pytest.mark.parametrize("written", ["sécret-1", "secret 1", "secret\x07", ["secret 1"]])
def test_a_refused_key_is_not_in_the_message(written: object) -> None:
    with pytest.raises(ValueError, match="a key is") as refusal:
        option.API_KEYS.parse(written)
    assert "secret" not in str(refusal.value)
    assert "sécret" not in str(refusal.value)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**7))
def test_a_duration_shown_is_read_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert option.DURATION.parse(option.DURATION.show(seconds)) == pytest.approx(seconds, rel=1e-4)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=2**50))
def test_a_size_shown_is_read_back(size: int) -> None:
    assert option.SIZE.parse(option.SIZE.show(size)) == size


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert option.PATH.parse("a/b.db") == tmp_path / "a/b.db"
    assert option.PATH.parse("~/b.db") == Path("/home/somebody/b.db")
    assert option.PATH.parse(Path("/c")) == Path("/c")


def test_a_secret_is_usable_and_does_not_show_itself() -> None:
    key = Secret("hunter2")
    assert key == "hunter2"
    assert key.encode() == b"hunter2"
    assert "hunter2" not in repr([key])
