"""Whose a store is: how handlers are named in it, which names are one handler's, and who may have what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.config.resolve import make_settings
from supervisor.errors import StoreError, UsageError
from supervisor.job import JobStatus
from supervisor.store import owner, summary
from supervisor.store.opening import MEMORY
from supervisor.store.store import Store
from supervisor.wire.messages import HandlerSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with ``h1/handler.py`` and ``h2/handler.py`` in it; ``link`` and ``deep/link`` lead to ``h1``."""
    for name in ("h1", "h2", "deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "handler.py").write_text("def handler(job): return 1\n")
    (tmp_path / "link").symlink_to("h1")
    (tmp_path / "deep/link").symlink_to(tmp_path / "h1")
    (tmp_path / "h2/linked.py").symlink_to("../h1/handler.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def named(folder: Path) -> Callable[[str], str]:
    """The name in the default store of the handler that the command line calls so."""
    return lambda handler: owner.name_of(make_settings(handler).spec, folder / ".supervise/handler.db")


@pytest.fixture
def left(folder: Path, bring: Callable[..., str]) -> Callable[..., Store]:
    """The default store, which is ``theirs`` and has a job in each of ``statuses``."""

    def make(theirs: str | None, *statuses: JobStatus) -> Store:
        store = Store.open(folder / ".supervise/handler.db")
        for seq, status in enumerate(statuses, 1):
            bring(store, seq, status)
        if theirs is not None:
            store.set_owner(theirs)
        return store

    return make


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        ("h1/handler.py", "../h1/handler.py"),
        ("./h2/../h1/handler.py", "../h1/handler.py"),
        ("link/handler.py", "../link/handler.py"),
        ("deep/link/../handler.py", "../handler.py"),  # as the system reads it: `..` is where the link leads to
        ("a.b", "a.b"),
        ("a.b:run", "a.b:run"),
    ],
)
def test_names(named: Callable[[str], str], folder: Path, handler: str, name: str) -> None:
    (folder / "handler.py").touch()
    assert named(handler) == name


def test_a_file_beside_its_store_is_no_module(folder: Path) -> None:
    assert owner.name_of(HandlerSpec("file", str(folder / "bare")), folder / "jobs.db") == "./bare"


@pytest.mark.parametrize(
    "handler", ["h1/handler.py", "h2/../h1/handler.py", "link/handler.py", "deep/link/handler.py", "h2/linked.py"]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_one_file_by_any_path(named: Callable[[str], str], folder: Path, handler: str, absolute: bool) -> None:
    name = named(str(folder / handler) if absolute else handler)
    store = folder / ".supervise/handler.db"
    assert owner.is_same(name, named("h1/handler.py"), store)
    assert owner.is_same(named("h1/handler.py"), name, store)
    assert not owner.is_same(name, named("h2/handler.py"), store)


def test_a_link_to_the_next_release_is_the_same_handler(named: Callable[[str], str], folder: Path) -> None:
    before = named("link/handler.py")
    (folder / "link").unlink()
    (folder / "link").symlink_to("h2")
    assert owner.is_same(before, named("link/handler.py"), folder / ".supervise/handler.db")


def test_one_folder_of_stores_by_two_links_is_of_two_handlers(folder: Path) -> None:
    (folder / "stores").mkdir()
    names = []
    for name in ("h1", "h2"):
        (folder / name / ".supervise").symlink_to("../stores")
        spec = HandlerSpec("file", str(folder / name / "handler.py"))
        names.append(owner.name_of(spec, folder / name / ".supervise/handler.db"))
    assert not owner.is_same(*names, folder / "stores/handler.db")


def test_a_hard_link_is_another_handler(named: Callable[[str], str], folder: Path) -> None:
    """The files beside it are not the same."""
    (folder / "h2/handler.py").unlink()
    (folder / "h2/handler.py").hardlink_to(folder / "h1/handler.py")
    assert not owner.is_same(named("h1/handler.py"), named("h2/handler.py"), folder / ".supervise/handler.db")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b:run", True),  # which function the module itself serves, only running it would tell
        ("a.b:run", "a.b:run", True),
        ("a.b:run", "a.b:walk", False),
        ("a.b", "c.b", False),
        ("a.b:run", "c.b:run", False),
        ("../a.b", "a.b", False),
    ],
)
def test_modules(folder: Path, one: str, other: str, same: bool) -> None:
    assert owner.is_same(one, other, folder / "jobs.db") is owner.is_same(other, one, folder / "jobs.db") is same


# --- in the store ----------------------------------------------------------------------------------------------------------


def test_the_owner_is_kept(store: Store) -> None:
    assert store.owner is None
    for name in ("../h1/handler.py", "a.b", "../caf\udce9/handler.py"):  # a folder's name that is not UTF-8
        store.set_owner(name)
        assert store.owner == name


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_the_owner_is_on_disk_at_once(file: Path, loop: Any, durability: Any) -> None:
    with Store.open(file, durability=durability, deliver=loop.deliver) as store:
        store.set_owner("a.b")
        copy = file.with_name("killed.db")
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{file}{suffix}").read_bytes())
    with Store.open(copy) as store:
        assert store.owner == "a.b"


def test_a_disk_that_refuses_leaves_the_owner(file: Path, files_limited_to: Any) -> None:
    with Store.open(file) as store:
        store.set_owner("a.b")
        with files_limited_to(1), pytest.raises(StoreError):
            store.set_owner("c.d")
        assert store.owner == "a.b"
        store.set_owner("c.d")
        assert store.owner == "c.d"


# --- who may have it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS])
def test_unfinished_jobs_of_another_file_are_refused(
    left: Callable[..., Store], folder: Path, status: JobStatus
) -> None:
    with left("../h1/handler.py", status, JobStatus.FAILED) as store:
        with pytest.raises(UsageError) as refusal:
            owner.check(store, make_settings("h2/handler.py"))
        assert store.owner == "../h1/handler.py"
    said = str(refusal.value)
    names = ("store .supervise/handler.db", "1 unfinished job of ", folder / "h1/handler.py", folder / "h2/handler.py")
    for word in (*names, "--endpoint-id", "--store", "--adopt"):
        assert str(word) in said


@pytest.mark.parametrize(
    ("theirs", "options", "why"),
    [
        ("../h1/handler.py", {"adopt": True}, "--adopt"),
        ("../h1/handler.py", {"store": ".supervise/handler.db"}, "keyword store"),
        ("../h1/handler.py", {"endpoint_id": "handler"}, "keyword endpoint_id"),
        ("pkg.handler", {"endpoint_id": "handler", "store": ".supervise/handler.db"}, "keyword store"),
    ],
)
def test_whoever_says_so_takes_it_over(
    left: Callable[..., Store], theirs: str, options: dict[str, object], why: str
) -> None:
    settings = make_settings("h2/handler.py", **options)
    with left(theirs, JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS) as store:
        said = owner.check(store, settings)
        assert said is not None
        assert "\n" not in said
        assert said.endswith(f"with 2 unfinished jobs ({why})")
        owner.claim(store, settings.spec)
        assert store.owner == "../h2/handler.py"
        assert owner.check(store, settings) is None


def test_what_only_ended_is_taken_over(left: Callable[..., Store]) -> None:
    with left("../h1/handler.py", *(status for status in JobStatus if status.terminal)) as store:
        said = owner.check(store, make_settings("h2/handler.py"))
        assert said is not None
        assert said.endswith("h1/handler.py, with 0 unfinished jobs")


@pytest.mark.parametrize("theirs", [None, "../h2/handler.py", "../h1/../h2/handler.py"])
def test_what_is_nobodys_or_ones_own_is_had_in_silence(left: Callable[..., Store], theirs: str | None) -> None:
    with left(theirs, JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS) as store:
        assert owner.check(store, make_settings("h2/handler.py", adopt=True)) is None
        assert owner.check(store, make_settings("h2/handler.py")) is None


def test_a_folder_may_be_moved_with_its_store(
    folder: Path, tmp_path_factory: Any, monkeypatch: Any, bring: Any
) -> None:
    with Store.open(folder / ".supervise/handler.db") as store:
        bring(store, 1, JobStatus.IN_QUEUE)
        owner.claim(store, make_settings("h1/handler.py").spec)
    moved = folder.rename(tmp_path_factory.mktemp("another") / "place")
    monkeypatch.chdir(moved)
    with Store.open(moved / ".supervise/handler.db") as store:
        assert owner.check(store, make_settings("h1/handler.py")) is None
        with pytest.raises(UsageError, match=f"of {moved}/h1/handler.py, and this is {moved}/h2/handler.py"):
            owner.check(store, make_settings("h2/handler.py"))


def test_the_owner_of_a_planted_store_commands_no_terminal(left: Callable[..., Store]) -> None:
    with left("../\x1b[2J\nh1/handler.py", JobStatus.IN_QUEUE) as store, pytest.raises(UsageError) as refusal:
        owner.check(store, make_settings("h2/handler.py"))
    assert str(refusal.value).isprintable()


def test_the_store_of_a_batch_is_named_by_its_output(left: Callable[..., Store]) -> None:
    settings = msgspec.structs.replace(make_settings("h2/handler.py", endpoint_id="x", input="-"), store_given=None)
    refusal = pytest.raises(UsageError, match=r"another file with --output, or .* --adopt$")
    with left("../h1/handler.py", JobStatus.IN_QUEUE) as store, refusal:
        owner.check(store, settings)


def test_two_functions_do_not_become_one_handler_by_way_of_their_module(left: Callable[..., Store]) -> None:
    module, run, walk = (HandlerSpec("function", "a.b", name) for name in (None, "run", "walk"))
    settings = msgspec.structs.replace(make_settings("h2/handler.py"), spec=walk)
    for specs in ((run, module), (module, run), (module, run, module)):
        with left(None) as store:
            for spec in specs:
                owner.claim(store, spec)
            assert store.owner == "a.b:run"
            assert owner.check(store, settings) is not None
            owner.claim(store, walk)
            assert store.owner == "a.b:walk"
            store.set_owner("c.d")


# --- in words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "start", "end"),
    [
        ([], "0 queued", None),
        ([JobStatus.IN_QUEUE], "1 queued", "1 job stays queued in .supervise/handler.db"),
        ([JobStatus.IN_PROGRESS], "0 queued, 1 interrupted", "1 job stays queued in .supervise/handler.db"),
        (
            [*JobStatus, JobStatus.IN_QUEUE],
            "2 queued, 1 interrupted, 4 ended",
            "3 jobs stay queued in .supervise/handler.db",
        ),
    ],
)
def test_what_it_holds(left: Callable[..., Store], statuses: list[JobStatus], start: str, end: str | None) -> None:
    with left(None, *statuses) as store:
        counts = store.counts()
        assert summary.at_start(store.path, counts) == f"store .supervise/handler.db: {start}"
        assert summary.at_end(store.path, counts) == end


def test_a_store_elsewhere_has_its_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(MEMORY) as store:
        counts = store.counts()
    monkeypatch.chdir(folder / "h1")
    assert summary.at_start(folder / "jobs.db", counts) == f"store {folder}/jobs.db: 0 queued"
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert summary.shown(folder / "jobs.db") == str(folder / "jobs.db")
