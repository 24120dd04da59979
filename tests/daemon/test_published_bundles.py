"""What a trusted worker compiled on one node is leased on another through the prefix; what nobody vouches for is not."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

from hotshelf_shared.bundle import ARCHIVE, Bundle, publishing_key
from hotshelf_shared.manifest import FileEntry, Manifest
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.buckets import keys, read, write
from tests.daemon.bundling import AT, BUNDLE, NAME, document_of, folder_of, share
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import assert_index_and_disk_agree, granted, index_of, names_in, refused, rows, value
from tests.daemon.workers import GROUP, OTHER, WORKER, Worker
from tests.daemon_process import Daemon
from tests.objects import Digest
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

DATA = objects.noise("bundle", 70_001)
OTHER_DATA = objects.noise("other", 50_001)
KEY = b"k" * 40
Node = Callable[..., Daemon]


@pytest.fixture
def node(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str, tmp_path: pathlib.Path) -> Node:
    """Daemons that share a prefix, and a key unless told otherwise; what `recorder` sees is the second's."""

    def make(name: str, *, key: bytes = KEY, max_size: int = 1 << 20, **settings: Any) -> Daemon:
        way = {} if name == "first" else {"endpoint_url": recorder.endpoint_url}
        file = tmp_path / f"{name}.key"
        file.write_bytes(key)
        file.chmod(0o600)
        daemon = make_daemon(
            name,
            origins={"weed": seaweedfs.settings(BUCKET, **way)},
            bundles={"key_file": str(file), "max_size": max_size},
            publish={"bundles": f"s3://{BUCKET}/{prefix}/shared"},
            **settings,
        )
        os.chmod(daemon.socket.parent, 0o755)
        return daemon

    return make


@pytest.fixture
def document(prefix: str) -> str:
    return f"{prefix}/shared/bundles/{NAME}.json"


def await_published(daemon: Daemon, count: int = 1) -> None:
    query = "SELECT count(*) FROM v_bundles WHERE published_to IS NOT NULL"
    wait_until(lambda: value(daemon, query) == count, what="the bundles to be published")


def events(daemon: Daemon) -> list[str]:
    return [row["kind"] for row in rows(daemon, "SELECT kind FROM v_events ORDER BY id")]


def leased(daemon: Daemon, uid: int | None = None, source: str = BUNDLE) -> bytes:
    """The archive, at the path that the lease says, in a folder whose document is this daemon's own."""
    worker = Worker(daemon) if uid is None else Worker(daemon, uid)
    lease = granted(worker.lease(source))
    folder = daemon.store / lease["path"]
    data = (folder / ARCHIVE).read_bytes()
    assert lease["files"] == [{"path": ARCHIVE, "digest": Digest.of(data), "size": len(data)}]
    assert Bundle.parse((folder / "bundle.json").read_bytes()).is_signed_with(KEY)
    assert worker.ask("DELETE", f"/v1/leases/{lease['id']}").status == 204
    return data


def evict(daemon: Daemon) -> None:
    revision = granted(Worker(daemon).ask("GET", AT))["revision"]
    granted(daemon.call("DELETE", f"/v1/snapshots/{revision}"))


def assert_nothing_is_served(daemon: Daemon, source: str = BUNDLE) -> None:
    refused(Worker(daemon).lease(source), "not_found")
    refused(Worker(daemon).ask("GET", f"/v1/bundles/{source.partition(':')[2]}"), "not_found")
    assert rows(daemon, "SELECT * FROM v_leases") == []
    assert (names_in(daemon, "bundles"), names_in(daemon, "snapshots")) == ([], [])


# ---- from node to node


def test_what_was_compiled_on_one_node_is_leased_on_another(
    node: Node, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str, document: str
) -> None:
    first, second = node("first"), node("second")
    told = share(Worker(first), DATA)
    await_published(first)
    revision = Manifest.of({ARCHIVE: FileEntry(Digest.of(DATA), len(DATA))}).revision
    assert keys(seaweedfs, f"{prefix}/shared/") == sorted(
        [f"blobs/sha256/{Digest.of(DATA).hex}", f"bundles/{NAME}.json", f"manifests/{revision.hex}.json"]
    )
    said = Bundle.parse(read(seaweedfs, document))
    assert said.is_signed_with(publishing_key(KEY))
    assert (str(said.name), said.digest, said.size) == (NAME, Digest.of(DATA), len(DATA))
    shown = granted(Worker(second).ask("GET", AT))
    assert (shown["held"], shown["path"], shown["revision"]) == (False, None, told["revision"])
    assert recorder.count(prefix=f"{prefix}/shared/blobs/") == 0
    refused(Worker(second).lease(f"{BUNDLE}@{Digest.of(b'x')}"), "not_found")
    (resolved,) = granted(Worker(second).ask("POST", "/v1/resolve", {"source": BUNDLE}))["resolved"]
    assert (resolved["held"], resolved["files"][0]["digest"]) == (False, Digest.of(DATA))
    assert leased(second) == DATA
    assert recorder.bytes_for(f"{prefix}/shared/blobs/") == len(DATA)
    assert granted(Worker(second).ask("GET", AT))["held"] is True
    assert [one["graph_key"] for one in granted(Worker(second).ask("GET", "/v1/bundles"))["bundles"]] == [told["graph_key"]]
    assert value(second, "SELECT uid FROM v_bundles") == os.getuid()
    assert value(second, "SELECT published_to FROM v_bundles") == f"s3://{BUCKET}/{prefix}/shared"
    assert_index_and_disk_agree(second)
    with recorder.down():  # from now on it is this node's own
        assert leased(second) == DATA
        second.restart()
        assert leased(second) == DATA
    assert [row["outcome"] for row in rows(second, "SELECT outcome FROM v_requests ORDER BY id")] == [
        "error",
        "miss",
        "hit",
        "hit",
    ]
    evict(second)
    assert leased(second) == DATA  # evicted, it comes back from the prefix
    assert events(second) == []


def test_workers_that_ask_for_what_is_not_there_do_not_ask_the_origin_each_time(
    node: Node, recorder: Recorder, prefix: str
) -> None:
    second = node("second")
    for _ in range(5):
        assert_nothing_is_served(second)
    assert recorder.count(prefix=f"{prefix}/shared/bundles/") == 1


@pytest.mark.parametrize("how", ["down", "silent"])
def test_an_origin_that_does_not_answer_delays_nobody(node: Node, recorder: Recorder, how: str) -> None:
    second = node("second")
    if how == "down":
        recorder.stop()
    else:
        recorder.stall()
    began = time.monotonic()
    for _ in range(5):
        assert_nothing_is_served(second)
    assert time.monotonic() - began < 8  # two seconds, on a busy machine
    share(Worker(second), DATA)
    assert leased(second) == DATA
    recorder.heal()


def test_what_is_held_but_not_as_it_was_bound_comes_from_the_prefix(node: Node) -> None:
    first = node("first")
    share(Worker(first), DATA)
    await_published(first)
    (folder_of(first) / ARCHIVE).unlink()
    (folder_of(first) / ARCHIVE).symlink_to("/etc/passwd")
    assert leased(first) == DATA
    blob = first.store / "blobs" / "sha256" / Digest.of(DATA).hex[:2] / Digest.of(DATA).hex
    blob.chmod(0o640)
    blob.write_bytes(b"x" * len(DATA))
    assert leased(first) == DATA
    assert set(events(first)) == {"bundle_refused", "quarantined"}
    assert value(first, "SELECT count(*) FROM v_bundles WHERE published_to IS NOT NULL") == 1


# ---- what is published, and when


@pytest.mark.root
def test_only_what_trusted_uids_compiled_is_published_and_then_is_everybody_s(
    node: Node, seaweedfs: SeaweedFS, prefix: str
) -> None:
    first, second = node("first", socket_group=str(GROUP), trusted_uids=[WORKER]), node("second", socket_group=str(GROUP))
    share(Worker(first, OTHER), OTHER_DATA, "/v1/bundles/e/untrusted")
    share(Worker(first, WORKER), DATA)
    await_published(first)
    assert [key for key in keys(seaweedfs, f"{prefix}/shared/") if "bundles/" in key] == [f"bundles/{NAME}.json"]
    refused(Worker(second, OTHER).lease("bundle:e/untrusted"), "not_found")
    assert leased(second, OTHER) == DATA


@pytest.mark.root
def test_a_published_bundle_takes_the_place_of_what_only_a_stranger_trusts(node: Node) -> None:
    first, second = node("first"), node("second", socket_group=str(GROUP))
    share(Worker(first), DATA)
    await_published(first)
    share(Worker(second, WORKER), OTHER_DATA)
    assert leased(second, WORKER) == OTHER_DATA
    assert leased(second, OTHER) == DATA
    assert leased(second, WORKER) == DATA


@pytest.mark.parametrize("how", ["down", "killed"])
def test_what_could_not_be_published_is_when_the_next_daemon_starts(
    node: Node, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str, document: str, how: str
) -> None:
    second = node("second")
    if how == "down":
        recorder.stop()
        share(Worker(second), DATA)
        wait_until(lambda: events(second), what="the failure to be told")
        assert events(second) == ["publish_failed"]
        assert leased(second) == DATA
        assert second.terminate() == 0
        recorder.start()
    else:
        recorder.answer(503, prefix=f"{prefix}/shared/blobs/", method="PUT", times=None)
        share(Worker(second), DATA)
        wait_until(lambda: recorder.count(prefix=f"{prefix}/shared/blobs/"), what="the archive to be on its way")
        second.kill9()
        recorder.heal()
        assert f"bundles/{NAME}.json" not in keys(seaweedfs, f"{prefix}/shared/")
    second.start()
    await_published(second)
    assert Bundle.parse(read(seaweedfs, document)).digest == Digest.of(DATA)
    assert leased(second) == DATA


def test_another_archive_that_was_published_first_stays(node: Node, seaweedfs: SeaweedFS, document: str) -> None:
    first, second = node("first"), node("second")
    share(Worker(second), OTHER_DATA)
    await_published(second)
    share(Worker(first), DATA)
    wait_until(lambda: events(first), what="the conflict to be told")
    assert events(first) == ["publish_failed"]
    there = Bundle.parse(read(seaweedfs, document))
    assert there.digest == Digest.of(OTHER_DATA)
    assert leased(first) == DATA
    refused(Worker(first).lease(f"{BUNDLE}@{there.revision}"), "not_found")


# ---- what must not be believed


def test_what_another_key_signed_is_none_and_is_replaced_by_what_is_compiled_here(
    node: Node, seaweedfs: SeaweedFS, document: str
) -> None:
    first, second = node("first", key=b"r" * 40), node("second")
    share(Worker(first), OTHER_DATA)
    await_published(first)
    assert_nothing_is_served(second)
    assert events(second) == ["bundle_refused"]
    share(Worker(second), DATA)
    await_published(second)
    assert leased(second) == DATA
    assert Bundle.parse(read(seaweedfs, document)).is_signed_with(publishing_key(KEY))
    log = first.log_text + second.log_text
    assert "kkkkkkkk" not in log
    assert "rrrrrrrr" not in log


def test_a_document_that_nobody_vouches_for_is_none_and_an_event(node: Node, seaweedfs: SeaweedFS, prefix: str) -> None:
    """Whoever may write the bucket, and read what a node has bound, puts everything there that he can."""
    first, second = node("first"), node("second", max_size=60_000)
    share(Worker(first), OTHER_DATA, "/v1/bundles/other-gpu/0000")
    share(Worker(first), OTHER_DATA)
    await_published(first, 2)
    other = read(seaweedfs, f"{prefix}/shared/bundles/other-gpu/0000.json")
    own = (folder_of(first) / "bundle.json").read_bytes()  # as it would be of an archive that a stranger bound
    body = document_of(first)

    def forged(**changed: Any) -> bytes:
        name = {"environment_key": "forged", "graph_key": str(len(documents))}
        return json.dumps({**body, **name, **changed}, sort_keys=True, separators=(",", ":")).encode()

    documents = [other, own, b"{", b"", b"[" * 100_000, b" " * 5_000]
    documents.append(forged())
    documents.append(forged(digest=Digest.of(DATA), size=len(DATA)))
    documents.append(forged(hmac=""))
    documents.append(forged(hmac=None))
    documents.append(Bundle.parse(forged(size=60_001)).signed(publishing_key(KEY)).canonical())
    documents.append(Bundle.parse(forged()).signed(KEY).canonical())
    for number, data in enumerate(documents):
        write(seaweedfs, f"{prefix}/shared/bundles/forged/{number}.json", data)
        assert_nothing_is_served(second, f"bundle:forged/{number}")
    assert events(second) == ["bundle_refused"] * len(documents)
    assert leased(second) == OTHER_DATA
    good = Bundle.parse(forged()).signed(publishing_key(KEY)).canonical()
    write(seaweedfs, f"{prefix}/shared/bundles/forged/{len(documents)}.json", good)
    assert leased(second, source=f"bundle:forged/{len(documents)}") == OTHER_DATA


def test_a_published_archive_with_wrong_bytes_is_never_served(node: Node, seaweedfs: SeaweedFS, prefix: str) -> None:
    first, second = node("first"), node("second")
    share(Worker(first), DATA)
    await_published(first)
    write(seaweedfs, f"{prefix}/shared/blobs/sha256/{Digest.of(DATA).hex}", b"x" * len(DATA))
    refused(Worker(second).lease(BUNDLE), "integrity_error")
    assert (names_in(second, "bundles"), names_in(second, "snapshots")) == ([], [])
    assert rows(second, "SELECT * FROM v_leases") == []
    share(Worker(second), OTHER_DATA)  # and it is in nobody's way
    assert leased(second) == OTHER_DATA


def test_an_older_document_that_is_put_back_is_what_a_trusted_worker_compiled_then(
    node: Node, seaweedfs: SeaweedFS, document: str
) -> None:
    """Which is all that a signature says; another key is what takes it back."""
    first = node("first")
    share(Worker(first), DATA)
    await_published(first)
    before = read(seaweedfs, document)
    evict(first)
    write(seaweedfs, document, b"")
    share(Worker(first), OTHER_DATA)
    await_published(first)
    write(seaweedfs, document, before)
    assert leased(first) == OTHER_DATA
    second = node("second")
    assert leased(second) == DATA
    assert second.terminate() == 0
    (pathlib.Path(second.settings["bundles"]["key_file"])).write_bytes(b"r" * 40)
    second.start()
    refused(Worker(second).lease(BUNDLE), "not_found")


# ---- the configuration, and indexes from before


def test_a_prefix_without_a_key_that_all_nodes_have_is_refused(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(start=False, publish={"bundles": "s3://weights/built"})
    daemon.launch()
    assert daemon.wait() == 78
    assert "publish.bundles is set and bundles.key_file is not" in daemon.log_text
    assert "openssl rand -hex 32" in daemon.log_text


def test_an_index_from_before_bundles_were_published_is_brought_up_to_date_and_they_are(node: Node) -> None:
    first = node("first")
    settings = first.settings.pop("publish")
    first.restart()
    share(Worker(first), DATA)
    first.terminate()
    with sqlite3.connect(index_of(first)) as db:
        db.executescript(
            "DROP VIEW v_bundles; ALTER TABLE bundles DROP COLUMN published_to;"
            "CREATE VIEW v_bundles AS SELECT digest FROM bundles;"
            "DELETE FROM _sqlite_migrations WHERE name LIKE 'm007%'"
        )
    db.close()
    first.settings["publish"] = settings
    first.start()
    await_published(first)
    assert leased(first) == DATA
    first.terminate()
    shutil.rmtree(first.store / "index")
    first.start()
    await_published(first)  # it is there, and that is seen
    assert leased(first) == DATA
