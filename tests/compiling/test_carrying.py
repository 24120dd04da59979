"""A folder onto the shelf as a bundle, and back out of it, through a real daemon."""

from __future__ import annotations

import os
import pathlib

import pytest

from hotshelf.archive import Limits
from hotshelf.client import Client
from hotshelf.compiling import Outcome, fetch, keep
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import DaemonUnavailable, IntegrityError, InvalidRequest, TooLarge
from tests.client.archives import archive_of
from tests.compiling.conftest import lay, tree_of
from tests.daemon.bundling import folder_of, forge, share
from tests.daemon.workers import Worker
from tests.daemon_process import Daemon

TREE = {"inductor/ab/c.so": b"\x7fELF" * 300, "inductor/fxgraph/x": b"graph"}


def leases(daemon: Daemon) -> int:
    return int(daemon.call("GET", "/v1/status").body["leases"])


def test_what_one_process_keeps_another_one_fetches(
    daemon: Daemon, client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    kept = keep(client, name, lay(tmp_path / "a", TREE), timeout=30)
    assert kept.outcome is Outcome.BOUND
    tree = fetch(Client(daemon.socket, daemon.store), name, tmp_path / "b", timeout=30)
    assert tree is not None
    assert set(tree) == set(TREE)
    assert tree_of(tmp_path / "b") == TREE
    assert os.stat(tmp_path / "b").st_mode & 0o777 == 0o700
    assert leases(daemon) == 0


def test_where_there_is_none_nothing_is_made(client: Client, name: BundleName, tmp_path: pathlib.Path) -> None:
    assert fetch(client, name, tmp_path / "b", timeout=30) is None
    assert not (tmp_path / "b").exists()


def test_the_same_folder_again_is_told_so_and_another_one_finds_the_name_taken(
    client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    first = keep(client, name, lay(tmp_path / "a", TREE), timeout=30)
    again = keep(client, name, tmp_path / "a", timeout=30)
    assert (again.outcome, again.digest) == (Outcome.SAME, first.digest)
    other = keep(client, name, lay(tmp_path / "o", {"inductor/x": b"other"}), timeout=30)
    assert (other.outcome, other.digest != first.digest) == (Outcome.OTHER, True)
    fetch(client, name, tmp_path / "b", timeout=30)
    assert tree_of(tmp_path / "b") == TREE


def test_another_environment_s_and_another_graph_s_are_not_fetched(
    client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    keep(client, name, lay(tmp_path / "a", TREE), timeout=30)
    for foreign in (BundleName.of("torch_h100", name.graph_key), BundleName.of(name.environment_key, "unet_2")):
        assert fetch(client, foreign, tmp_path / "b", timeout=30) is None


def test_bytes_that_were_changed_on_the_volume_after_the_lease_are_not_unpacked(
    daemon: Daemon, client: Client, name: BundleName, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(Worker(daemon), archive_of({"inductor/ab/c.so": b"good"}), f"/v1/bundles/{name}")
    acquire = Client.acquire

    def then_changed(self: Client, source: str, **more: object) -> object:
        lease = acquire(self, source, **more)  # type: ignore[call-overload]
        path = (lease.path / "archive").resolve()
        path.chmod(0o600)
        path.write_bytes(archive_of({"inductor/ab/c.so": b"evil"}))
        return lease

    monkeypatch.setattr(Client, "acquire", then_changed)
    with pytest.raises(IntegrityError):
        fetch(client, name, tmp_path / "b", timeout=30)
    assert not (tmp_path / "b").exists()


def test_without_a_daemon_it_is_said_and_is_no_miss(name: BundleName, tmp_path: pathlib.Path) -> None:
    nobody = Client(tmp_path / "nobody", tmp_path)
    with pytest.raises(DaemonUnavailable):
        fetch(nobody, name, tmp_path / "b", timeout=0.2)
    with pytest.raises(DaemonUnavailable):
        keep(nobody, name, lay(tmp_path / "a", TREE), timeout=0.2)


def test_what_is_too_large_or_no_cache_is_not_sent(
    daemon: Daemon, client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    folder = lay(tmp_path / "a", TREE)
    with pytest.raises(TooLarge, match="the most"):
        keep(client, name, folder, timeout=30, max_archive_bytes=10)
    with pytest.raises(TooLarge):
        keep(client, name, folder, timeout=30, limits=Limits(files=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest):
        keep(client, name, tmp_path / "empty", timeout=30)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequest):
        keep(client, name, folder, timeout=30)
    assert daemon.call("GET", f"/v1/bundles/{name}").status == 404
    assert [name for name in os.listdir(tmp_path) if name.startswith(".packing")] == []


def test_a_bundle_whose_document_was_tampered_with_is_not_there(
    daemon: Daemon, client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    keep(client, name, lay(tmp_path / "a", TREE), timeout=30)
    forge(folder_of(daemon, str(name)), uid=12_345)
    assert fetch(client, name, tmp_path / "b", timeout=30) is None


def test_an_archive_that_rotted_on_the_volume_is_not_there_and_is_sent_anew(
    daemon: Daemon, client: Client, name: BundleName, tmp_path: pathlib.Path
) -> None:
    tree = {"inductor/a": b"rots"}
    kept = keep(client, name, lay(tmp_path / "a", tree), timeout=30)
    rotten = (folder_of(daemon, str(name)) / "archive").resolve()
    rotten.chmod(0o600)
    rotten.write_bytes(b"\0" * kept.size)
    assert fetch(client, name, tmp_path / "b", timeout=30) is None
    assert keep(client, name, tmp_path / "a", timeout=30).outcome is Outcome.BOUND
    fetch(client, name, tmp_path / "b", timeout=30)
    assert tree_of(tmp_path / "b") == tree
