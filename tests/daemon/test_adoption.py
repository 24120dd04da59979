"""A Hugging Face cache that huggingface_hub has made, as a real daemon takes from it: what is asked, believed and shared."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hotshelf_daemon.ingest import adopting
from hotshelf_daemon.origin.caches import Caches, Found
from hotshelf_shared.digest import Digest
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import SEGMENT, MakeDaemon, Put
from tests.daemon.looking import assert_index_and_disk_agree, granted, names_in, refused, rows, tree_of, value
from tests.daemon_process import Daemon, call
from tests.faults.inside import Inside, run_inside
from tests.faults.volume import mounted
from tests.servers.hub import Hub, git_name
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.servers.threaded import Ask, Reply
from tests.test_servers import downloaded

REPO, SOURCE = "org/name", "hf://org/name"
TREE = objects.model("adopted", unet=6 * SEGMENT + 1_000)
UNET = "unet/diffusion_pytorch_model.safetensors"
WRONG = "a file in a Hugging Face cache is not what its name says"
FETCH = {"segment_bytes": SEGMENT, "connections": 4, "attempts": 3}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.push(REPO, TREE)
        yield running


@pytest.fixture
def home(hub: Hub, tmp_path: pathlib.Path) -> pathlib.Path:
    """An HF_HOME whose cache holds all of it; the hub has forgotten who asked."""
    assert isinstance(downloaded(hub, tmp_path / "home" / "hub"), pathlib.Path)
    hub.asked.clear()
    return tmp_path / "home"


@pytest.fixture
def start(make_daemon: MakeDaemon, hub: Hub, home: pathlib.Path) -> Callable[..., Daemon]:
    def begin(env: dict[str, str] | None = None, **settings: object) -> Daemon:
        given = {"hf": {"endpoint": hub.endpoint_url}, "fetch": FETCH, "revalidate_s": 600}
        return make_daemon(env={"HF_HOME": str(home)} if env is None else env, **{**given, **settings})

    return begin


def name_of(data: bytes, path: str) -> str:
    return Digest.of(data).hex if path.endswith(".safetensors") else git_name(data)


def blob_of(home: pathlib.Path, path: str, repository: str = "models--org--name") -> pathlib.Path:
    return home / "hub" / repository / "blobs" / name_of(TREE[path], path)


def held(daemon: Daemon, data: bytes) -> pathlib.Path:
    digest = Digest.of(data).hex
    return daemon.store / "blobs" / "sha256" / digest[:2] / digest


def bytes_asked(hub: Hub) -> set[str]:
    """The paths of files whose bytes were asked of the hub or its CDN."""
    known = {Digest.of(data).hex: path for path, data in TREE.items()}
    cdn = {known[ask.path.removeprefix("/objects/")] for ask in hub.asked_of("cdn")}
    return cdn | {re.sub(r".*/(?:resolve|models/org/\w+)/[^/]*/", "", ask.path) for ask in hub.asked_of("hub", "/resolve")}


def adopted_bytes(daemon: Daemon) -> int:
    counted = re.search(r'origin_bytes_total\{origin="hub-cache"\} (\S+)', daemon.get_http("/metrics").body)
    return int(float(counted[1])) if counted else 0


# ---- what is taken


def test_what_a_cache_holds_is_leased_without_a_byte_from_the_hub(
    hub: Hub, start: Callable[..., Daemon], home: pathlib.Path
) -> None:
    daemon = start()
    lease = granted(daemon.acquire(SOURCE))
    assert (lease["revision"], tree_of(daemon, lease)) == (objects.manifest_of(TREE).revision, TREE)
    assert bytes_asked(hub) == set()
    assert hub.asked  # which commit it is and what that holds
    assert adopted_bytes(daemon) == objects.size_of(TREE)
    assert names_in(daemon, "ingest") == []
    assert_index_and_disk_agree(daemon)


def test_a_blob_is_the_daemon_s_own_and_does_not_change_with_the_cache(
    start: Callable[..., Daemon], home: pathlib.Path
) -> None:
    daemon = start()
    lease = granted(daemon.acquire(SOURCE))
    for path, data in TREE.items():
        blob, theirs = held(daemon, data).stat(), blob_of(home, path).stat()
        assert (blob.st_mode & 0o7777, blob.st_uid, blob.st_nlink) == (0o440, os.geteuid(), 1)
        assert (blob.st_dev, blob.st_ino) != (theirs.st_dev, theirs.st_ino)
        blob_of(home, path).write_bytes(b"\0" * len(data))
    assert tree_of(daemon, lease) == TREE
    assert_index_and_disk_agree(daemon)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_the_cache_is_where_its_library_s_variables_say(
    hub: Hub, start: Callable[..., Daemon], home: pathlib.Path, variable: str
) -> None:
    daemon = start(env={variable: str(home / "hub"), "HF_HOME": "/nowhere"})
    granted(daemon.acquire(SOURCE))
    assert bytes_asked(hub) == set()


def test_without_a_cache_that_anybody_names_nothing_is_looked_for(hub: Hub, start: Callable[..., Daemon]) -> None:
    daemon = start(env={})
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE
    assert bytes_asked(hub) == set(TREE)


def test_a_content_is_taken_whoever_s_it_is_and_the_rest_is_fetched(hub: Hub, start: Callable[..., Daemon]) -> None:
    fork = {**TREE, "unet/config.json": b'{"_class_name": "UNet2DConditionModel", "fork": true}'}
    hub.push("org/fork", fork)
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire("hf://org/fork"))) == fork
    assert bytes_asked(hub) == {"unet/config.json"}


def test_what_was_pushed_to_a_bucket_is_taken_by_its_digest(
    start: Callable[..., Daemon], put: Put, seaweedfs: SeaweedFS, recorder: Recorder
) -> None:
    source = put(objects.published(TREE))
    daemon = start(origins={"it": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)})
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    fetched = {Digest.parse(f"sha256:{one.key[-64:]}") for one in recorder.requests if "/blobs/" in one.key}
    assert fetched == {Digest.of(data) for path, data in TREE.items() if not path.endswith(".safetensors")}


def test_the_shelf_s_own_view_is_no_cache_to_take_from(hub: Hub, make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    view = tmp_path / "store" / "hub" / "models--org--name" / "blobs"
    settings = {"hf": {"endpoint": hub.endpoint_url}, "store": str(tmp_path / "store"), "fetch": FETCH}
    daemon = make_daemon(env={"HF_HUB_CACHE": str(view.parents[1])}, **settings)
    objects.write(view, {name_of(data, path): data for path, data in TREE.items()})
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE
    assert bytes_asked(hub) == set(TREE)


@pytest.mark.root
@pytest.mark.needs("mkfs.xfs")
def test_where_files_can_share_bytes_nothing_is_copied(hub: Hub, make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    size = 64 << 20
    tree = objects.model("shared", unet=size)
    hub.push(REPO, tree)
    with mounted(tmp_path, "xfs") as volume:
        assert isinstance(downloaded(hub, volume.path / "hub"), pathlib.Path)
        hub.asked.clear()
        hf = {"endpoint": hub.endpoint_url, "caches": [str(volume.path / "hub")]}
        daemon = make_daemon(hf=hf, store=str(volume.path / "store"))
        os.sync()
        before = os.statvfs(volume.path)
        lease = granted(daemon.acquire(SOURCE))
        os.sync()
        after = os.statvfs(volume.path)
        assert (before.f_bfree - after.f_bfree) * after.f_frsize < size // 8
        assert hub.asked_of("cdn") == []
        theirs = volume.path / "hub" / "models--org--name" / "blobs" / Digest.of(tree[UNET]).hex
        with theirs.open("r+b") as file:
            file.write(b"another")
        assert tree_of(daemon, lease) == tree
        assert_index_and_disk_agree(daemon)
        daemon.close()


@pytest.mark.root
@pytest.mark.needs("mkfs.xfs")
def test_a_cache_on_another_file_system_is_copied_from(hub: Hub, make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    tree = objects.model("copied", unet=40 << 20)
    hub.push(REPO, tree)
    with mounted(tmp_path, "xfs") as volume:
        assert isinstance(downloaded(hub, volume.path / "hub"), pathlib.Path)
        hub.asked.clear()
        hf = {"endpoint": hub.endpoint_url, "caches": [str(volume.path / "hub")]}
        daemon = make_daemon(hf=hf, fetch={"page_cache": "drop"})
        assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == tree
        assert hub.asked_of("cdn") == []


# ---- what is wrong there


def test_wrong_bytes_under_a_right_name_cost_one_look_and_come_from_the_hub(
    hub: Hub, start: Callable[..., Daemon], home: pathlib.Path
) -> None:
    flipped, git, cut = UNET, "unet/config.json", "vae/diffusion_pytorch_model.safetensors"
    for path in (flipped, git):
        data = bytearray(TREE[path])
        data[-1] ^= 1
        blob_of(home, path).write_bytes(data)
    blob_of(home, cut).write_bytes(TREE[cut][:-1])
    daemon = start()
    for _ in range(2):
        lease = granted(daemon.acquire(SOURCE))
        assert tree_of(daemon, lease) == TREE
        assert bytes_asked(hub) == {flipped, git, cut}
        assert names_in(daemon, "ingest") == []
        assert_index_and_disk_agree(daemon)
        assert daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
        assert daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}").status < 300
        hub.asked.clear()
    assert daemon.log_text.count(WRONG) == 3
    assert rows(daemon, "SELECT * FROM v_events WHERE kind = 'quarantined'") == []


def test_a_download_that_was_cut_off_gives_way_to_a_cache_that_has_all_of_it(
    hub: Hub, start: Callable[..., Daemon], home: pathlib.Path
) -> None:
    blob = blob_of(home, UNET)
    away = blob.rename(blob.with_suffix(".incomplete"))

    def only_the_beginning(ask: Ask, reply: Reply) -> None:
        if not ask.headers.get("range", "").startswith("bytes=0-"):
            reply.status, reply.headers, reply.body = 503, {}, b"no"

    hub.misdeed(only_the_beginning, server="cdn")
    daemon = start()
    refused(daemon.acquire(SOURCE), "origin_unavailable")
    assert value(daemon, "SELECT bytes_done FROM v_transfers") > 0
    away.rename(blob)
    daemon.restart()
    hub.asked.clear()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE
    assert bytes_asked(hub) == set()
    assert names_in(daemon, "ingest") == []


class _Hanging(Caches):
    """As one on a network file system whose server has gone."""

    answers = threading.Event()

    @contextmanager
    def opened(self, name: str, size: int) -> Iterator[Found | None]:
        self.answers.wait()
        with super().opened(name, size) as found:
            yield found


def test_a_cache_that_does_not_answer_holds_up_nobody_for_long(
    hub: Hub, home: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "Caches", _Hanging)

    def story(daemon: Inside) -> None:
        left = call(daemon.socket, "POST", "/v1/leases", {"source": SOURCE, "timeout_s": 0.3})
        assert left.body["code"] == "timeout"
        lease = daemon.acquire("name")
        assert objects.read(tmp_path / "store" / lease["path"]) == TREE

    hf = {"endpoint": hub.endpoint_url, "caches": [str(home / "hub")]}
    fetch = {**FETCH, "idle_timeout_s": 1.0}
    try:
        run_inside(tmp_path / "store", socket=tmp_path / "s", story=story, base="hf://org", hf=hf, fetch=fetch)
    finally:
        _Hanging.answers.set()
        logging.disable(logging.NOTSET)
    assert bytes_asked(hub) == set(TREE)
