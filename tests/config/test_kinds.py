"""How what people write becomes a value: each kind, its texts, its native forms, and what it refuses with which advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config import kinds
from supervisor.config.kinds import Kind, Secret


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (kinds.DURATION, "90", 90.0),
        (kinds.DURATION, "30m", 1800.0),
        (kinds.DURATION, "24h", 86_400.0),
        (kinds.DURATION, "7d", 604_800.0),
        (kinds.DURATION, "1.5 s", 1.5),
        (kinds.DURATION, "500ms", 0.5),
        (kinds.DURATION, 0, 0.0),
        (kinds.DURATION, 2.5, 2.5),
        (kinds.SIZE, "20MiB", 20 * 2**20),
        (kinds.SIZE, "1GB", 10**9),
        (kinds.SIZE, "1 g", 2**30),
        (kinds.SIZE, "1.5KiB", 1536),
        (kinds.SIZE, "512", 512),
        (kinds.SIZE, "512b", 512),
        (kinds.SIZE, 7, 7),
        (kinds.PORT, "0", 0),
        (kinds.PORT, " 65535 ", 65_535),
        (kinds.PORT, 8080, 8080),
        (kinds.FLAG, "yes", True),
        (kinds.FLAG, "0", False),
        (kinds.FLAG, "Off", False),
        (kinds.FLAG, True, True),
        (kinds.choice("index", "uuid"), "UUID", "uuid"),
        (kinds.GPUS, "auto", "auto"),
        (kinds.GPUS, "0, 2", "0,2"),
        (kinds.GPUS, 0, "0"),
        (kinds.GPUS, [0, "GPU-8932f937"], "0,GPU-8932f937"),
        (kinds.GPUS, "MIG-GPU-1/2/3", "MIG-GPU-1/2/3"),
        (kinds.MODULES, "torch, diffusers.models", ("torch", "diffusers.models")),
        (kinds.MODULES, ["torch"], ("torch",)),
        (kinds.MODULES, "none", ()),
        (kinds.MODULES, "auto", None),
        (kinds.HOST, "[::1]", "::1"),
        (kinds.HOST, "0.0.0.0", "0.0.0.0"),
        (kinds.API_KEYS, "a,b\nc", ("a", "b", "c")),
        (kinds.API_KEYS, ["a"], ("a",)),
        (kinds.API_KEYS, "a\r\n", ("a",)),
        (
            kinds.ORIGINS,
            "https://Example.org/, http://localhost:3000",
            ("https://example.org", "http://localhost:3000"),
        ),
        (kinds.ORIGINS, "http://a.example:80,https://a.example:443", ("http://a.example", "https://a.example")),
        (kinds.ORIGINS, "http://a.example:443,https://[::1]:80", ("http://a.example:443", "https://[::1]:80")),
        (kinds.WORDS, "--name 'two words'", ("--name", "two words")),
        (kinds.WORDS, ["--name", "a b"], ("--name", "a b")),
        (kinds.JSON, '{"n": 1}', '{"n": 1}'),
        (kinds.JSON, {"n": [1]}, '{"n":[1]}'),
        (kinds.ENDPOINT_ID, "my-model_2.0~a", "my-model_2.0~a"),
    ],
)
def test_takes(kind: Kind, written: object, value: Any) -> None:
    assert kind.parse(written) == value
    assert type(kind.parse(written)) is type(value)


@pytest.mark.parametrize(
    ("kind", "written", "advice"),
    [
        (kinds.DURATION, "5 minutes", "such as 90, 30m or 24h"),
        (kinds.DURATION, "-1", "such as 90"),
        (kinds.DURATION, -1, "such as 90"),
        (kinds.DURATION, float("nan"), "such as 90"),
        (kinds.DURATION, "1e9", "such as 90"),
        (kinds.DURATION, "99999d", "such as 90"),
        (kinds.DURATION, True, "such as 90"),
        (kinds.DURATION, None, "such as 90"),
        (kinds.duration(0.1), "0", "at least 100ms"),
        (kinds.SIZE, "20 megs", "such as 20MiB"),
        (kinds.SIZE, "0", "such as 20MiB"),
        (kinds.SIZE, -5, "such as 20MiB"),
        (kinds.SIZE, 1.5, "such as 20MiB"),
        (kinds.PORT, "abc", "from 0 to 65535"),
        (kinds.PORT, "", "from 0 to 65535"),
        (kinds.PORT, "65536", "from 0 to 65535"),
        (kinds.PORT, "8000.0", "from 0 to 65535"),
        (kinds.PORT, "٨٠", "from 0 to 65535"),
        (kinds.PORT, True, "from 0 to 65535"),
        (kinds.whole(1), "0", "at least 1"),
        (kinds.FLAG, "perhaps", "true or false"),
        (kinds.FLAG, 2, "true or false"),
        (kinds.TEXT, "  ", "not empty"),
        (kinds.TEXT, "a\x1b[31m", "control character"),
        (kinds.TEXT, 3, "not a text"),
        (kinds.choice("index", "uuid"), "uid", "did you mean uuid"),
        (kinds.GPUS, "atuo", "did you mean auto"),
        (kinds.GPUS, "auto,1", "such as 0,2"),
        (kinds.GPUS, "0;1", "such as 0,2"),
        (kinds.GPUS, [], "such as 0,2"),
        (kinds.GPUS, True, "not a text"),
        (kinds.MODULES, "torch,dif-fusers", "'dif-fusers' is not a module's name"),
        (kinds.MODULES, "auto,torch", "'auto' is not"),
        (kinds.HOST, "http://localhost", "alone"),
        (kinds.HOST, "127.0.0.1:80", "--port"),
        (kinds.HOST, "*", "0.0.0.0"),
        (kinds.API_KEYS, "", "visible ASCII"),
        (kinds.API_KEYS, "a b", "visible ASCII"),
        (kinds.API_KEYS, "schlüssel", "visible ASCII"),
        (kinds.ORIGINS, "example.org", "such as http://localhost:3000"),
        (kinds.ORIGINS, "https://example.org/path", "such as http://localhost:3000"),
        (kinds.ORIGINS, "*", "such as http://localhost:3000"),
        (kinds.ORIGINS, "null", "such as http://localhost:3000"),
        (kinds.WORDS, "'open", "quotes"),
        (kinds.JSON, "{n: 1}", "quote it for the shell"),
        (kinds.ENDPOINT_ID, "a/b", "is not valid in a URL"),
        (kinds.ENDPOINT_ID, "..", "is not valid in a URL"),
        (kinds.ENDPOINT_ID, "é", "is not valid in a URL"),
    ],
)
def test_refuses_with_advice(kind: Kind, written: object, advice: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refusal:
        kind.parse(written)
    assert advice in str(refusal.value)
    assert repr(written) in str(refusal.value) or kind in (kinds.API_KEYS, kinds.ORIGINS, kinds.MODULES, kinds.GPUS)


@pytest.mark.parametrize("written", ["sécret-1", "secret 1", "secret\x07", ["secret 1"]])
def test_a_refused_key_is_not_in_the_message(written: object) -> None:
    with pytest.raises(ValueError, match="invalid key") as refusal:
        kinds.API_KEYS.parse(written)
    assert "secret" not in str(refusal.value)
    assert "sécret" not in str(refusal.value)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**7))
def test_a_duration_shown_is_read_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert kinds.DURATION.parse(kinds.DURATION.show(seconds)) == pytest.approx(seconds, rel=1e-4)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=2**50))
def test_a_size_shown_is_read_back(size: int) -> None:
    assert kinds.SIZE.parse(kinds.SIZE.show(size)) == size


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert kinds.PATH.parse("a/b.db") == tmp_path / "a/b.db"
    assert kinds.PATH.parse("~/b.db") == Path("/home/somebody/b.db")
    assert kinds.PATH.parse(Path("/c")) == Path("/c")


def test_a_secret_is_usable_and_does_not_show_itself() -> None:
    key = Secret("hunter2")
    assert key == "hunter2"
    assert key.encode() == b"hunter2"
    assert "hunter2" not in repr([key])
