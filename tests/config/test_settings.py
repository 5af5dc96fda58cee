"""The record and its sources: the table, what goes before what, what is refused and how the message names the place."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import kinds, settings
from supervisor.config.resolve import make_settings
from supervisor.config.settings import DEFAULTS, OPTIONS, Settings, is_loopback
from supervisor.errors import HandlerError, UsageError
from supervisor.wire.messages import HandlerSpec

Load = Callable[..., Settings]

#: A value for every option that is neither its default nor in conflict with the others, as text and as the record has it.
EXAMPLES: dict[str, tuple[str, object]] = {
    "handler": ("handler.py", "handler.py"),
    "handler_args": ("--fast 'two words'", ("--fast", "two words")),
    "endpoint_id": ("other", "other"),
    "preload": ("torch,numpy", ("torch", "numpy")),
    "preload_timeout": ("2m", 120.0),
    "reload": ("yes", True),
    "gpus": ("none", "none"),
    "pin_by": ("uuid", "uuid"),
    "share_gpus": ("yes", True),
    "simulate_gpus": ("2", 2),
    "gpus_per_worker": ("2", 2),
    "workers_per_gpu": ("3", 3),
    "lock_dir": ("/run/locks", Path("/run/locks")),
    "workers": ("3", 3),
    "min_workers": ("1", 1),
    "max_workers": ("2", 2),
    "idle_timeout": ("5m", 300.0),
    "scale_after": ("500ms", 0.5),
    "start_timeout": ("5m", 300.0),
    "grace": ("1s", 1.0),
    "cpu_affinity": ("auto", "auto"),
    "max_processes": ("100", 100),
    "private_tmp": ("on", True),
    "drain_timeout": ("1h", 3600.0),
    "refresh_worker": ("true", True),
    "refresh_after_jobs": ("7", 7),
    "refresh_above": ("20000", 20_000),
    "refresh_on_oom": ("yes", True),
    "release_timeout": ("45", 45.0),
    "store": ("/var/jobs.db", Path("/var/jobs.db")),
    "adopt": ("yes", True),
    "retention": ("7d", 604_800.0),
    "max_store": ("2GB", 2 * 10**9),
    "durability": ("full", "full"),
    "max_queue": ("100", 100),
    "max_result": ("1GB", 10**9),
    "max_log": ("1MiB", 2**20),
    "execution_timeout": ("10m", 600.0),
    "ttl": ("1h", 3600.0),
    "max_attempts": ("3", 3),
    "on_restart": ("fail", "fail"),
    "requeue_streams": ("on", True),
    "host": ("::1", "::1"),
    "port": ("9000", 9000),
    "max_body": ("1KiB", 1024),
    "api_key": ("one,two", ("one", "two")),
    "api_key_file": ("keys.txt", None),
    "no_auth": ("1", True),
    "allow_origin": ("http://a.example,http://b.example", ("http://a.example", "http://b.example")),
    "webhook_retries": ("0", 0),
    "webhook_delay": ("1m", 60.0),
    "webhook_timeout": ("500ms", 0.5),
    "webhook_secret": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    "webhook_deny_private": ("yes", True),
    "dashboard": ("yes", True),
    "log_format": ("json", "json"),
    "test_input": ('{"n": 1}', '{"n": 1}'),
    "input": ("-", Path("-")),
    "output": ("-", None),
    "config": ("supervise.toml", None),
}
FROM_TEXT = [(name, text, value) for name, (text, value) in EXAMPLES.items() if value is not None]


# --- the table -----------------------------------------------------------------------------------------------------------


def test_every_field_is_an_option_and_every_option_a_field() -> None:
    assert set(OPTIONS) == set(Settings.__struct_fields__) - {"spec", "store_given"}
    assert set(EXAMPLES) == set(OPTIONS)


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_defaults_are_what_their_kinds_make(name: str, default: object) -> None:
    kind = OPTIONS[name].kind
    if kind.multiple or kind is kinds.MODULES or default is None:
        assert default in ((), None)
        return
    forms = [default] if OPTIONS[name].shown else [default, kind.show(default)]
    for form in forms:
        assert kind.parse(form) == default
        assert type(kind.parse(form)) is type(default)


def test_what_sets_a_secret_is_kept_from_handlers() -> None:
    keys = {"SUPERVISE_API_KEY", "SUPERVISE_API_KEYS", "SUPERVISE_API_KEY_FILE"}
    assert keys | {"SUPERVISE_WEBHOOK_SECRET"} == settings.SECRET_VARIABLES


def test_variables_are_no_two_options() -> None:
    variables = [variable for option in OPTIONS.values() for variable in option.variables]
    assert len(variables) == len(set(variables))
    # Those that the program itself sets for its children must not be taken for options by a supervise in a worker.
    own = ["SUPERVISE_RUN_ID", "SUPERVISE_SLOT", "SUPERVISE_SLOT_INDEX", "SUPERVISE_URL", "SUPERVISE_WORKER_ID"]
    assert not set(variables) & set(own)


# --- the defaults --------------------------------------------------------------------------------------------------------


def test_defaults(load: Load, folder: Path) -> None:
    made = load()
    assert made.spec == HandlerSpec("file", str(folder / "handler.py"))
    assert made.endpoint_id == "handler"
    assert made.store == folder / ".supervise/handler.db"
    assert (made.host, made.port, is_loopback(made.host)) == ("127.0.0.1", 8900, True)
    assert (made.gpus, made.workers, made.pin_by) == ("auto", 1, "index")
    assert (made.max_body, made.max_result) == (20 * 2**20, 100 * 2**20)
    assert (made.retention, made.grace, made.release_timeout, made.drain_timeout) == (86_400, 5, 30, 30)
    assert made.max_attempts == 1
    assert not made.dashboard


def test_the_record_cannot_be_changed(load: Load) -> None:
    with pytest.raises(AttributeError):
        load().port = 1  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("handler", "endpoint_id"),
    [
        ("pkg.mod", "mod"),
        ("pkg.mod:run", "mod"),
        ("./handler.py", "handler"),
        ("sub/v1.2.py", "v1.2"),
        ("sub/bare", "bare"),
    ],
)
def test_the_endpoint_is_named_after_the_handler(load: Load, folder: Path, handler: str, endpoint_id: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/v1.2.py").touch()
    (folder / "sub/bare").touch()
    assert load(handler=handler).endpoint_id == endpoint_id


def test_a_name_that_no_url_can_have_needs_another(load: Load, folder: Path) -> None:
    (folder / "my handler.py").touch()
    with pytest.raises(
        UsageError, match="the name 'my handler' cannot stand in a URL; give one, as in --endpoint-id my-handler"
    ):
        load(handler="my handler.py")
    assert load(handler="my handler.py", endpoint_id="mine").store.name == "mine.db"


@pytest.mark.parametrize(
    ("words", "environ", "toml", "given"),
    [
        ({}, {}, "port = 1", None),
        ({"store": "jobs.db", "endpoint_id": "x"}, {}, None, "--store"),
        ({"endpoint_id": "x"}, {}, None, "--endpoint-id"),
        ({}, {"SUPERVISE_STORE": ".supervise/handler.db"}, None, "SUPERVISE_STORE"),
        ({}, {}, "endpoint-id = 'handler'", "endpoint-id in supervise.toml"),
    ],
)
def test_what_named_the_store(load: Load, words: Any, environ: Any, toml: str | None, given: str | None) -> None:
    assert load(environ, toml, **words).store_given == given


@pytest.mark.parametrize(
    ("words", "environ", "shown"),
    [
        ({}, {}, True),
        ({"dashboard": False}, {}, False),
        ({"log_format": "json"}, {}, False),
        ({"log_format": "json", "dashboard": True}, {}, True),
        ({}, {"SUPERVISE_LOG_FORMAT": "text"}, False),
        ({"test_input": "1"}, {}, False),
    ],
)
def test_the_dashboard_is_for_terminals(
    load: Load, words: dict[str, Any], environ: dict[str, str], shown: bool
) -> None:
    assert load(environ, terminal=True, **words).dashboard is shown
    assert load(environ, terminal=False, **words).dashboard is bool(words.get("dashboard"))


# --- every option from every source ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "value"), FROM_TEXT)
def test_each_option_from_the_command_line(load: Load, name: str, text: str, value: object) -> None:
    written: object = shlex.split(text) if name == "handler_args" else text
    assert getattr(load(**{name: written}), name) == value


@pytest.mark.parametrize(("name", "text", "value"), FROM_TEXT)
def test_each_option_from_the_environment(load: Load, name: str, text: str, value: object) -> None:
    words = {"handler": None} if name == "handler" else {}
    assert getattr(load({f"SUPERVISE_{name.upper()}": text}, **words), name) == value


@pytest.mark.parametrize(("name", "text", "value"), FROM_TEXT)
@pytest.mark.parametrize("separator", ["-", "_"])
def test_each_option_from_a_file(load: Load, separator: str, name: str, text: str, value: object) -> None:
    words = {"handler": None} if name == "handler" else {}
    assert getattr(load(toml=f"{name.replace('_', separator)} = '''{text}'''", **words), name) == value


@pytest.mark.parametrize(("name", "text", "value"), FROM_TEXT)
def test_each_option_as_a_keyword(folder: Path, name: str, text: str, value: object) -> None:
    if name == "handler":
        assert make_settings(text).handler == value
    else:
        assert getattr(make_settings("handler.py", **{name: value}), name) == value
        assert getattr(make_settings("handler.py", **{name: text}), name) == value
        assert make_settings("handler.py", **{name: None}) == make_settings("handler.py")


def test_a_file_may_use_the_types_of_toml(load: Load) -> None:
    made = load(
        toml="port = 9000\ngrace = 1.5\nrefresh-worker = true\napi_key = ['one', 'two']\ngpus = [0, 2]\nretention = '7d'"
    )
    assert (made.port, made.grace, made.refresh_worker, made.gpus, made.retention) == (9000, 1.5, True, "0,2", 604_800)
    assert made.api_key == ("one", "two")


def test_keywords_read_a_file_and_not_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "c.toml").write_text("port = 1\nworkers = 2")
    monkeypatch.setenv("SUPERVISE_PORT", "3")
    made = make_settings("handler.py", config="c.toml", workers=4)
    assert (made.port, made.workers) == (1, 4)


# --- what goes before what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "toml", "port"),
    [
        ({"port": "1"}, {"SUPERVISE_PORT": "2"}, "port = 3", 1),
        ({"port": None}, {"SUPERVISE_PORT": "2"}, "port = 3", 2),
        ({}, {"SUPERVISE_PORT": ""}, "port = 3", 3),
        ({}, {}, "grace = 3", 8900),
    ],
)
def test_precedence(load: Load, words: dict[str, Any], environ: dict[str, str], toml: str, port: int) -> None:
    assert load(environ, toml, **words).port == port


def test_a_flag_can_be_taken_back(load: Load) -> None:
    assert load({"SUPERVISE_REFRESH_WORKER": "0"}, "refresh-worker = true").refresh_worker is False
    assert load(toml="refresh-worker = true", refresh_worker=False).refresh_worker is False


def test_what_is_overruled_is_not_judged(load: Load) -> None:
    assert load({"SUPERVISE_PORT": "nonsense"}, port="1").port == 1


def test_the_environment_may_name_the_file(load: Load, folder: Path) -> None:
    (folder / "other.toml").write_text("port = 5")
    assert load({"SUPERVISE_CONFIG": "other.toml"}).port == 5


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "toml", "where"),
    [
        ({"port": "x"}, {}, None, "--port: 'x' is not a number; give a whole number from 0 to 65535"),
        ({}, {"SUPERVISE_PORT": "x"}, None, "SUPERVISE_PORT: 'x' is not a number"),
        ({}, {}, "port = 'x'", "port in supervise.toml: 'x' is not a number"),
        ({}, {}, "max-body = 'x'", "max-body in supervise.toml: 'x' is not a size"),
    ],
)
def test_a_message_says_where(
    load: Load, words: dict[str, Any], environ: dict[str, str], toml: str | None, where: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        load(environ, toml, **words)
    assert str(refusal.value).startswith(where)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("prot = 1", "prot in supervise.toml: there is no such option; did you mean port?"),
        ("xyzzy = 1", "xyzzy in supervise.toml: there is no such option"),
        ("[http]\nport = 1", r"[http] in supervise.toml: sections mean nothing here"),
        ("config = 'other.toml'", "config in supervise.toml: there is no such option"),
        ("spec = 1", "spec in supervise.toml: there is no such option"),
        ("max-body = 1\nmax_body = 2", "max_body in supervise.toml: this option is there twice"),
        ("port = ", "is not TOML: Invalid value (at "),
        ("port = 1\nport = 2", "is not TOML"),
    ],
)
def test_files_that_are_wrong(load: Load, toml: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        load(toml=toml)
    assert message in str(refusal.value)


def test_files_that_are_not_there(load: Load, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--config: cannot read .*/missing\.toml: No such file or directory"):
        load(config="missing.toml")
    with pytest.raises(UsageError, match=r"SUPERVISE_CONFIG: cannot read .*: Is a directory"):
        load({"SUPERVISE_CONFIG": "."})
    (folder / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        load(config="binary.toml")


def test_no_handler(load: Load) -> None:
    with pytest.raises(UsageError, match="no handler: name a file or a module"):
        load(handler=None)
    with pytest.raises(HandlerError, match=r"did you mean handler\.py"):
        load(handler="handlr.py")


def test_unknown_keywords(folder: Path) -> None:
    with pytest.raises(UsageError, match="keyword prot: there is no such option; did you mean port"):
        make_settings("handler.py", prot=1)


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (
            {"host": "0.0.0.0"},
            {},
            "--host: 0.0.0.0 can be reached from other machines and no key is set; give one with --api-key",
        ),
        ({}, {"SUPERVISE_HOST": "::"}, "SUPERVISE_HOST: :: can be reached"),
        ({"no_auth": True}, {"SUPERVISE_API_KEYS": "k"}, "--no-auth and SUPERVISE_API_KEYS are mutually exclusive"),
        ({"simulate_gpus": "2", "gpus": "none"}, {}, "--simulate-gpus and --gpus are mutually exclusive"),
        ({"workers": "2", "gpus": "0"}, {}, "--workers counts workers on the CPU, and --gpus asks for GPUs"),
        (
            {"workers": "2"},
            {"SUPERVISE_SIMULATE_GPUS": "2"},
            "--workers counts workers on the CPU, and SUPERVISE_SIMULATE_GPUS asks",
        ),
        ({"store": "."}, {}, "is a folder; name a file in it"),
        (
            {"reload": True, "test_input": "1"},
            {},
            "--reload is for a handler that is served, and --test-input runs it once",
        ),
        (
            {"input": "-"},
            {"SUPERVISE_RELOAD": "1"},
            "SUPERVISE_RELOAD is for a handler that is served, and --input runs",
        ),
    ],
)
def test_options_that_contradict_each_other(
    load: Load, words: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        load(environ, **words)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        {"host": "0.0.0.0", "api_key": ["k"]},
        {"host": "0.0.0.0", "no_auth": True},
        {"host": "127.1.2.3"},
        {"host": "[::1]"},
        {"host": "localhost"},
        {"workers": "2", "gpus": "none"},
        {"workers": "2"},
        {"simulate_gpus": "0", "gpus": "none"},
    ],
)
def test_options_that_go_together(load: Load, words: dict[str, Any]) -> None:
    assert load(**words)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# --- keys -------------------------------------------------------------------------------------------------------------------


def test_a_file_of_keys(load: Load, folder: Path) -> None:
    (folder / "keys.txt").write_text("# ours\n\n  first  \nsecond\r\n# third\nsecond\n")
    made = load(api_key=["zeroth", "first"], api_key_file="keys.txt", host="0.0.0.0")
    assert made.api_key == ("zeroth", "first", "second")
    assert made.api_key_file == folder / "keys.txt"


def test_keys_of_both_variables(load: Load) -> None:
    assert load({"SUPERVISE_API_KEY": "a", "SUPERVISE_API_KEYS": "b,a"}).api_key == ("a", "b")
    with pytest.raises(UsageError, match="SUPERVISE_API_KEY and SUPERVISE_API_KEYS: a key is visible ASCII"):
        load({"SUPERVISE_API_KEY": "a b", "SUPERVISE_API_KEYS": "b"})


def test_keys_do_not_show(load: Load, folder: Path) -> None:
    (folder / "keys.txt").write_text("in-the-file")
    made = load(api_key=["on-the-line"], api_key_file="keys.txt")
    assert "in-the-file" in made.api_key
    for text in (repr(made), str(made), f"{made}", f"{made.api_key}"):
        assert "in-the-file" not in text
        assert "on-the-line" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--api-key-file: cannot read .*keys.txt: No such file"),
        (b"", "has no key in it"),
        (b"# only a comment\n", "has no key in it"),
        (b"good\nhas space\n", "line 2 of .* is not a key"),
        (b"\xff\n", "is not text"),
    ],
)
def test_files_of_keys_that_are_wrong(load: Load, folder: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (folder / "keys.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message) as refusal:
        load(api_key_file="keys.txt")
    assert "has space" not in str(refusal.value)


def test_no_auth_with_a_file_of_keys(load: Load, folder: Path) -> None:
    (folder / "keys.txt").write_text("k")
    with pytest.raises(UsageError, match="--no-auth and --api-key-file are mutually exclusive"):
        load(api_key_file="keys.txt", no_auth=True)
