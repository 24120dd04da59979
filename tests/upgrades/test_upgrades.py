"""A store of an earlier version opens, serves without asking the origin, resumes, and is rebuilt as its own version would."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator

import pytest

from hotshelf_daemon.index.migrations import KNOWN
from tests import objects
from tests.daemon.looking import granted, rows, tree_of
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs
from tests.faults.scripted_origin import ScriptedOrigin
from tests.upgrades.writing import ADDRESS, BUILT, HALF, KEPT, PINNED, RECIPE, SEGMENT, STORES, publish, settings

MakeDaemon = Callable[..., Daemon]
OLD = sorted(path.name.removesuffix(".tar.xz") for path in STORES.glob("*.tar.xz"))


@pytest.fixture
def origin() -> Iterator[ScriptedOrigin]:
    with ScriptedOrigin(at=ADDRESS) as server:
        publish(server)
        yield server


@pytest.fixture(params=OLD)
def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    with tarfile.open(STORES / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="tar")
    return tmp_path / "store"


def test_every_migration_but_the_newest_has_a_store_that_stopped_there() -> None:
    assert [name for name in sorted(KNOWN)[1:-1] if name not in OLD] == []


def test_what_an_earlier_version_held_is_served_without_the_origin(make_daemon: MakeDaemon, store: pathlib.Path) -> None:
    daemon = make_daemon(store=store, **settings())
    for name, tree in (("s3://weights/kept", KEPT), ("pinned", PINNED)):
        assert tree_of(daemon, granted(daemon.acquire(name))) == tree
    assert list(visible_wrongs(store)) == []
    pinned = str(objects.manifest_of(PINNED).revision)
    assert rows(daemon, "SELECT revision FROM v_pins") == [{"revision": pinned}]
    assert daemon.call("DELETE", f"/v1/snapshots/{pinned}").body["code"] == "in_use"


def test_a_download_that_an_earlier_version_began_is_resumed(
    make_daemon: MakeDaemon, origin: ScriptedOrigin, store: pathlib.Path
) -> None:
    daemon = make_daemon(store=store, **settings())
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/half"))) == HALF
    ranges = [ask.range for ask in origin.asked if ask.kind == "GET" and ask.range]
    assert min(start for start, _ in ranges) == SEGMENT


def test_an_index_that_was_migrated_is_the_index_of_a_new_store(make_daemon: MakeDaemon, store: pathlib.Path) -> None:
    migrated, new = make_daemon("migrated", store=store, **settings()), make_daemon("new", **settings())
    assert shape(migrated) == shape(new)


def test_the_store_of_an_earlier_version_is_indexed_anew_when_its_index_is_lost(
    make_daemon: MakeDaemon, store: pathlib.Path
) -> None:
    shutil.rmtree(store / "index")
    daemon = make_daemon(store=store, **settings())
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/kept"))) == KEPT
    assert {row["revision"] for row in rows(daemon, "SELECT revision FROM v_pins")} == {
        str(objects.manifest_of(PINNED).revision)
    }


@pytest.mark.parametrize("store", [name for name in OLD if name >= "m003"], indirect=True)
def test_a_pipeline_that_an_earlier_version_bound_is_leased(make_daemon: MakeDaemon, store: pathlib.Path) -> None:
    daemon = make_daemon(store=store, **settings())
    assert tree_of(daemon, granted(daemon.acquire(f"pipeline:{RECIPE.key}"))) == BUILT


def shape(daemon: Daemon) -> dict[str, list[str]]:
    """Every table and view with its columns."""
    with contextlib.closing(sqlite3.connect(f"file:{daemon.store}/index/index.db?mode=ro", uri=True)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        return {name: sorted(row[1] for row in db.execute(f"PRAGMA table_info({name})")) for name in names}
