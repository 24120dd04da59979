"""An index that becomes unreadable under a running daemon: it is set aside and built anew, and clients only wait a moment."""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from hotshelf.client import Client
from hotshelf_daemon.acquire import Names
from hotshelf_daemon.config import load
from hotshelf_daemon.index import open_index, snapshots
from hotshelf_daemon.index.opening import KEPT
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.recover import Adoption, recover
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import Layout
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish
from tests import objects
from tests.daemon.looking import granted, index_of, refused, rows, tree_of
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs, wrongs_after_restart
from tests.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
TREES = {name: objects.model(name, unet=20_000, text_encoder=4_000, vae=4_000) for name in ("a", "b")}


@pytest.fixture
def daemon(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> Daemon:
    """One that holds both models and has lost the origin they came from."""
    for name, tree in TREES.items():
        objects.write(tmp_path / "origin" / name, tree)
    running = make_daemon(roots=[str(tmp_path / "origin")], models={name: {"source": source(tmp_path, name)} for name in TREES})
    for name in TREES:
        granted(running.acquire(name))
    assert running.call("PUT", "/v1/pins/b").status < 300
    shutil.rmtree(tmp_path / "origin")
    (tmp_path / "origin").mkdir()
    return running


def source(folder: pathlib.Path, name: str) -> str:
    return f"file://{folder}/origin/{name}"


def spoil(daemon: Daemon) -> None:
    """Other bytes in place, as a failing disk or a foreign program leaves them; the log's shared memory is no file's."""
    for path in (index_of(daemon), pathlib.Path(f"{index_of(daemon)}-wal")):
        with path.open("r+b") as file:
            file.write(os.urandom(path.stat().st_size))


def test_clients_are_served_without_the_origin_and_without_a_restart(daemon: Daemon) -> None:
    client, pid = Client(daemon.socket, daemon.store), daemon.pid
    spoil(daemon)
    for name, tree in TREES.items():
        with client.acquire(name, timeout=30) as lease:
            assert objects.read(lease.path) == tree
    assert daemon.pid == pid
    assert [row["revision"] for row in rows(daemon, "SELECT revision FROM v_pins")] == [
        objects.manifest_of(TREES["b"]).revision
    ]
    assert daemon.call("GET", "/v1/health").body["status"] == "ok"
    assert broken(daemon) == 1


def test_whoever_finds_it_broken_is_told_to_ask_again(daemon: Daemon) -> None:
    spoil(daemon)
    problem = refused(daemon.acquire("a"), "daemon_unavailable")
    assert problem["retryable"]
    assert "built anew" in problem["detail"]


def test_nothing_piles_up_when_it_breaks_again_and_again(daemon: Daemon) -> None:
    client = Client(daemon.socket, daemon.store)
    for _ in range(5):
        spoil(daemon)
        with client.acquire("a", timeout=30):
            pass
        wait_until(daemon.is_healthy, what="the daemon to be back")
    assert broken(daemon) == KEPT
    assert '"defect"' not in daemon.log_text


def test_a_large_shelf_without_an_index_serves_while_it_is_read(daemon: Daemon) -> None:
    assert daemon.terminate() == 0
    shutil.rmtree(daemon.store / "index")
    stranger = daemon.store / "blobs" / "sha256" / "ff" / ("ff" * 32)
    stranger.parent.mkdir(exist_ok=True)
    with stranger.open("wb") as file:
        file.truncate(3 << 29)  # more than anybody waits for; nothing is written
    daemon.start()
    for name, tree in TREES.items():
        assert tree_of(daemon, granted(daemon.acquire(name))) == tree
    assert stranger.exists(), "it was read to the end before anything was served"
    assert sum(granted(daemon.call("GET", "/v1/status"))["held_bytes"].values()) > 3 << 29
    wait_until(lambda: not stranger.exists(), timeout_s=60, what="the stranger to be put aside")
    wait_until(lambda: "the shelf is read" in daemon.log_text, what="the end of the reading")
    pinned = objects.manifest_of(TREES["b"]).revision
    assert [row["revision"] for row in rows(daemon, "SELECT revision FROM v_pins")] == [pinned]
    assert list(visible_wrongs(daemon.store)) == []
    daemon.kill9()
    assert list(wrongs_after_restart(daemon.store, [])) == []


def test_what_is_asked_for_is_looked_at_first_and_what_rotted_is_not_served(daemon: Daemon) -> None:
    """The daemon's own parts, without the life of the reading, which would be over too soon to tell."""
    rotten = next(
        entry for entry in objects.manifest_of(TREES["a"]).blobs() if entry not in objects.manifest_of(TREES["b"]).blobs()
    )
    assert daemon.terminate() == 0
    shutil.rmtree(daemon.store / "index")
    path = daemon.store / "blobs" / "sha256" / rotten.hex[:2] / rotten.hex
    path.chmod(0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    settings = load({"store": str(daemon.store), "listen": "", **daemon.settings}, {}).settings
    names = Names(settings)
    wishes = {name: names.want(Wish(Source.parse(name))).key for name in TREES}
    layout = Layout(settings.store, group=None)
    index = open_index(settings.index_path)
    try:
        left = recover(layout, index, b"key", patience_bytes=0).left
        assert left > 10
        shelf = Shelf(settings, layout, index, Metrics("test"), b"key")

        async def ask() -> None:
            adoption = Adoption(shelf)
            assert await adoption.bring(["0" * 64]) is False
            assert await adoption.bring([wishes["b"]]) is True
            assert [row.wish for row in index.read(snapshots.refs)] == [wishes["b"]]
            assert await adoption.bring([wishes["a"]]) is False
            await adoption.run()
            adoption.stop()

        asyncio.run(ask())
        assert shelf.unread_bytes == 0
        assert not path.exists()
        assert [row.wish for row in index.read(snapshots.refs)] == [wishes["b"]]
    finally:
        index.close()
        layout.close()


def broken(daemon: Daemon) -> int:
    names = [path.name for path in index_of(daemon).parent.glob("index.db.broken-*")]
    return sum(not name.endswith(("-wal", "-shm")) for name in names)
