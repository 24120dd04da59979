"""An index that becomes unreadable under a running daemon: it is set aside and built anew, and clients only wait a moment."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from hotshelf.client import Client
from hotshelf_daemon.index.opening import KEPT
from tests import objects
from tests.daemon.looking import granted, index_of, refused, rows
from tests.daemon_process import Daemon
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


def broken(daemon: Daemon) -> int:
    names = [path.name for path in index_of(daemon).parent.glob("index.db.broken-*")]
    return sum(not name.endswith(("-wal", "-shm")) for name in names)
