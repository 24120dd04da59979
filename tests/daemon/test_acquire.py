"""What a caller gets when it asks for content: the right bytes under one revision, or a typed error and nothing visible."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from hotshelf_shared.wire import NDJSON
from tests import objects
from tests.daemon.conftest import SEGMENT, MakeDaemon, Put
from tests.daemon.looking import (
    assert_index_and_disk_agree,
    assert_nothing_visible,
    blobs_on_disk,
    granted,
    names_in,
    refused,
    rows,
    tree_of,
    value,
)
from tests.daemon_process import Daemon, UnixConnection
from tests.objects import Digest
from tests.servers.moto import Moto
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

OTHER = Digest.of(b"another tree altogether")


@contextlib.contextmanager
def later() -> Iterator[Callable[..., Future[Any]]]:
    """Runs calls on threads meanwhile. A test that fails does not wait for them."""
    pool = ThreadPoolExecutor(32)
    try:
        yield pool.submit
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def stream(daemon: Daemon, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed acquire."""
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:
        connection.request(
            "POST", "/v1/leases", json.dumps(body), {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        )
        response = connection.getresponse()
        assert (response.status, response.getheader("Content-Type")) == (200, "application/x-ndjson")
        for line in response:
            yield json.loads(line)


def leases_on(daemon: Daemon, source: str) -> int:
    return int(value(daemon, "SELECT count(*) FROM v_leases WHERE source LIKE ? || '%'", source))


# ---- hits and misses


def test_a_cold_acquire_gives_the_bytes_of_the_bucket_under_their_revision(shared: Daemon, put: Put) -> None:
    tree = objects.model(1, unet=3 * SEGMENT + 17)
    lease = granted(shared.acquire(put(tree)))
    assert tree_of(shared, lease) == tree
    assert lease["revision"] == objects.manifest_of(tree).revision
    assert {file["path"]: (file["digest"], file["size"]) for file in lease["files"]} == {
        path: (Digest.of(data), len(data)) for path, data in tree.items()
    }
    assert (lease["kind"], lease["skipped"], lease["path"]) == ("tree", [], f"snapshots/{lease['revision'][7:]}")
    assert 0 < lease["expires_s"] <= 60


def test_what_is_laid_out_is_relative_links_to_files_that_nobody_can_write(shared: Daemon, put: Put) -> None:
    lease = granted(shared.acquire(put(objects.model(1))))
    link = shared.store / lease["path"] / "unet" / "config.json"
    assert link.is_symlink()
    assert str(link.readlink()).startswith("../../../blobs/sha256/")
    assert link.stat().st_mode & 0o777 == 0o440


def test_a_hit_asks_the_origin_for_no_bytes(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = objects.model(1)
    source = put(tree)
    cold = granted(shared.acquire(source))
    hit = granted(shared.acquire(source))
    assert (hit["revision"], hit["path"], hit["files"]) == (cold["revision"], cold["path"], cold["files"])
    assert hit["id"] != cold["id"]
    assert hit["grant"] > cold["grant"]
    assert wire.bytes_for(prefix) == objects.size_of(tree)


def test_every_acquire_leaves_its_row_with_its_outcome(shared: Daemon, put: Put) -> None:
    source = put(objects.model(1))
    shared.acquire(source)
    shared.acquire(source)
    shared.acquire(f"{source}/nothing-here")
    told = rows(shared, "SELECT outcome, error, revision, uid FROM v_requests WHERE source LIKE ? || '%' ORDER BY id", source)
    assert [(row["outcome"], row["error"]) for row in told] == [("miss", None), ("hit", None), ("error", "not_found")]
    assert told[0]["revision"] == told[1]["revision"]


def test_many_who_ask_at_once_share_one_download(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = objects.model(1, unet=8 * SEGMENT)
    source = put(tree)
    wire.stall(f"{prefix}/unet/diffusion", after_bytes=1_000)
    with later() as start:
        waiting = [start(shared.acquire, source) for _ in range(32)]
        wait_until(lambda: leases_on(shared, source) == 32, what="32 leases on what is under way")
        wire.resume()
        leases = [granted(one.result(60)) for one in waiting]
    assert len({lease["revision"] for lease in leases}) == 1
    assert len({lease["id"] for lease in leases}) == 32
    assert wire.bytes_for(prefix) == objects.size_of(tree)
    outcomes = rows(shared, "SELECT outcome, count(*) AS n FROM v_requests WHERE source = ? GROUP BY outcome", source)
    assert {row["outcome"]: row["n"] for row in outcomes} == {"miss": 1, "coalesced": 31}


def test_models_that_share_published_files_fetch_and_store_them_once(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    parts = {f"{part}.safetensors": objects.noise((prefix, part), 2 * SEGMENT) for part in ("vae", "text", "both")}
    one, two = ({**parts, "unet.safetensors": objects.noise((prefix, n), 3 * SEGMENT)} for n in (1, 2))
    distinct = {Digest.of(data): len(data) for tree in (one, two) for data in tree.values()}
    sources = [put(objects.published(tree), f"/{number}") for number, tree in enumerate((one, two))]
    with later() as start:
        waiting = [start(shared.acquire, source) for source in sources]
        leases = [granted(each.result(60)) for each in waiting]
    assert [tree_of(shared, lease) for lease in leases] == [one, two]
    fetched = [each.body_bytes for each in wire.matching(method="GET", prefix=prefix) if "/blobs/sha256/" in each.key]
    assert sum(fetched) == sum(distinct.values())
    assert distinct.items() <= blobs_on_disk(shared).items()


def test_a_published_model_has_the_revision_of_its_manifest(shared: Daemon, put: Put) -> None:
    tree = objects.model(1)
    source = put(objects.published(tree))
    lease = granted(shared.acquire(source))
    assert (tree_of(shared, lease), lease["revision"]) == (tree, objects.manifest_of(tree).revision)


def test_models_that_share_files_store_them_once_though_nothing_is_published(shared: Daemon, put: Put) -> None:
    shared_file = objects.noise("shared", SEGMENT)
    for name in ("one", "two"):
        source = put({f"{name}/a.safetensors": shared_file, f"{name}/b.safetensors": name.encode() * 200})
        granted(shared.acquire(f"{source}/{name}"))
    assert blobs_on_disk(shared)[Digest.of(shared_file)] == SEGMENT
    assert value(shared, "SELECT snapshots FROM v_blobs WHERE digest = ?", Digest.of(shared_file)) == 2


# ---- which files


def test_a_prefix_never_matches_the_one_whose_name_goes_on(shared: Daemon, put: Put) -> None:
    source = put({"m1/a.safetensors": b"one" * 100, "m10/a.safetensors": b"ten" * 100, "m1.safetensors": b"x" * 300})
    assert tree_of(shared, granted(shared.acquire(f"{source}/m1"))) == {"a.safetensors": b"one" * 100}
    assert tree_of(shared, granted(shared.acquire(f"{source}/m1/"))) == {"a.safetensors": b"one" * 100}
    refused(shared.acquire(f"{source}/m"), "not_found")


def test_a_single_object_is_a_snapshot_of_one_file(shared: Daemon, put: Put) -> None:
    style = objects.lora(1)
    source = put({"loras/style.safetensors": style, "loras/other.safetensors": objects.lora(2)})
    lease = granted(shared.acquire(f"{source}/loras/style.safetensors"))
    assert (lease["kind"], tree_of(shared, lease)) == ("file", {"style.safetensors": style})


def test_an_object_wins_over_the_folder_of_the_same_name(moto_daemon: Daemon, moto: Moto, bucket: str, prefix: str) -> None:
    """SeaweedFS has files and folders and so cannot hold both; object stores can."""
    objects.put(moto, bucket, prefix, {"m": b"the object", "m/a.safetensors": b"the folder"})
    lease = granted(moto_daemon.acquire(f"s3://{bucket}/{prefix}/m"))
    assert (lease["kind"], tree_of(moto_daemon, lease)) == ("file", {"m": b"the object"})


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ({"allow_patterns": ["*.json"]}, {"model_index.json", "unet/config.json"}),
        ({"allow_patterns": "unet/*"}, {"unet/config.json", "unet/a.safetensors"}),
        ({"allow_patterns": ["unet/"], "ignore_patterns": ["*.json"]}, {"unet/a.safetensors"}),
        ({"ignore_patterns": ["*.safetensors", "*.txt"]}, {"model_index.json", "unet/config.json"}),
        ({"allow_patterns": ["*"]}, {"model_index.json", "unet/config.json", "unet/a.safetensors", "notes.txt"}),
    ],
)
def test_patterns_say_what_is_fetched(
    shared: Daemon, put: Put, wire: Recorder, prefix: str, patterns: dict[str, Any], left: set[str]
) -> None:
    tree = {"model_index.json": b"{}", "unet/config.json": b"{ }", "unet/a.safetensors": b"a" * 500, "notes.txt": b"hello"}
    lease = granted(shared.acquire(put(tree), **patterns))
    assert tree_of(shared, lease) == {path: tree[path] for path in left}
    assert lease["revision"] == objects.manifest_of({path: tree[path] for path in left}).revision
    assert wire.bytes_for(prefix) == sum(len(tree[path]) for path in left)


def test_files_that_execute_are_left_out_before_a_byte_of_them_is_fetched(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    safe = {"a.safetensors": b"a" * 300, "config.json": b"{}"}
    lease = granted(shared.acquire(put({**safe, "a.bin": b"pickle", "pipeline.py": b"import os", "unet/x.ckpt": b"p"})))
    assert tree_of(shared, lease) == safe
    assert {skip["path"]: skip["reason"] for skip in lease["skipped"]} == {
        "a.bin": "pickle by name", "pipeline.py": "python code", "unet/x.ckpt": "pickle by name",
    }  # fmt: skip
    assert lease["revision"] == objects.manifest_of(safe).revision
    assert {each.key for each in wire.matching(prefix=f"{prefix}/") if each.is_object_read} == {
        f"{prefix}/{path}" for path in safe
    }


def test_a_pickle_under_a_harmless_name_is_left_out_by_its_bytes(shared: Daemon, put: Put) -> None:
    evil = b"cos\nsystem\n(S'true'\ntR."
    lease = granted(shared.acquire(put({"a.safetensors": b"a" * 300, "unet/b.safetensors": evil})))
    assert tree_of(shared, lease) == {"a.safetensors": b"a" * 300}
    assert lease["skipped"] == [{"path": "unet/b.safetensors", "reason": "pickle by content"}]
    assert Digest.of(evil) not in blobs_on_disk(shared)


@pytest.mark.parametrize(
    "tree",
    [
        {"a.bin": b"x", "config.json": b"{}"},
        {"a.safetensors": b"cos\nsystem\n(S'true'\ntR."},
        {"a.safetensors": b"a" * 300, "config.json": b'{"auto_map": {"AutoModel": "m.Evil"}}'},
        {"a.safetensors": b"a" * 300, "model_index.json": b'{"_class_name": ["p", "Evil"]}'},
        {"a.safetensors": b"a" * 300, "model_index.json": b'{"unet": ["evil_library", "UNet"]}'},
    ],
    ids=["only pickles", "a pickle in disguise", "auto_map", "a class from code", "an unknown library"],
)
def test_what_would_execute_refuses_the_snapshot(shared: Daemon, put: Put, tree: objects.Tree) -> None:
    source = put(tree)
    refused(shared.acquire(source), "unsafe_content")
    assert rows(shared, "SELECT * FROM v_refs WHERE source = ?", source) == []
    assert leases_on(shared, source) == 0


def test_a_pickle_asked_for_by_its_own_name_is_unsafe(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    source = put({"a.ckpt": b"x"})
    problem = refused(shared.acquire(f"{source}/a.ckpt"), "unsafe_content")
    assert "a.ckpt" in problem["detail"]
    assert wire.bytes_for(prefix) == 0


def test_an_empty_file_is_a_file(shared: Daemon, put: Put) -> None:
    tree = {"a.safetensors": b"a" * 300, "empty.txt": b"", "also/empty": b""}
    assert tree_of(shared, granted(shared.acquire(put(tree)))) == tree


# ---- several sources


def test_several_sources_are_granted_together(shared: Daemon, put: Put) -> None:
    base, style = objects.model(1), objects.lora(1)
    source = put({**{f"base/{path}": data for path, data in base.items()}, "style.safetensors": style})
    body = {"sources": [f"{source}/base", {"source": f"{source}/style.safetensors"}]}
    leases = granted(shared.call("POST", "/v1/leases", body))["leases"]
    assert [tree_of(shared, lease) for lease in leases] == [base, {"style.safetensors": style}]


def test_of_several_sources_none_is_held_when_one_cannot_be(shared: Daemon, put: Put) -> None:
    source = put({"held/a.safetensors": b"a" * 200, "cold/b.safetensors": b"b" * 200})
    first = granted(shared.acquire(f"{source}/held"))
    shared.call("DELETE", f"/v1/leases/{first['id']}")
    body = {"sources": [f"{source}/held", f"{source}/cold", f"{source}/none"]}
    refused(shared.call("POST", "/v1/leases", body), "not_found")
    assert leases_on(shared, source) == 0


def test_a_source_asked_for_twice_at_once_is_two_leases_on_one_snapshot(shared: Daemon, put: Put) -> None:
    source = put({"a.safetensors": b"a" * 200})
    leases = granted(shared.call("POST", "/v1/leases", {"sources": [source, source]}))["leases"]
    assert len({lease["id"] for lease in leases}) == 2
    assert len({lease["path"] for lease in leases}) == 1


# ---- progress


def test_progress_tells_bytes_rate_and_time_left_and_ends_with_the_lease(shared: Daemon, put: Put, wire: Recorder) -> None:
    tree = {"a.safetensors": objects.noise("slow", 16 * SEGMENT)}
    source, total = put(tree), objects.size_of(tree)
    wire.limit_rate(total / 1.5)
    events = list(stream(shared, {"source": source}))
    *progress, last = events
    assert last["event"] == "ready"
    assert tree_of(shared, last["lease"]) == tree
    assert {event["event"] for event in progress} == {"progress"}
    told = [event for event in progress if event["bytes_total"] == total]
    assert len(told) >= 2
    done = [event["bytes_done"] for event in told]
    assert done == sorted(done)
    assert any(0 < event["bytes_done"] < total for event in told)
    assert any(event["rate_bytes_s"] > 0 and event["eta_s"] is not None and event["eta_s"] > 0 for event in told)
    assert {event["phase"] for event in told} <= {"fetch", "verify"}
    assert told[-1]["files_total"] == 1


def test_who_joins_a_download_sees_its_progress_too(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = objects.model(1, unet=4 * SEGMENT)
    source = put(tree)
    wire.stall(f"{prefix}/unet/diffusion", after_bytes=SEGMENT // 2)
    with later() as start:
        first = start(shared.acquire, source)
        wire.wait_until(lambda it: it.bytes_for(f"{prefix}/unet/diffusion") >= SEGMENT // 2)
        events = stream(shared, {"source": source})
        joined = next(event for event in events if event["phase"] == "fetch")
        assert joined["bytes_total"] == objects.size_of(tree)
        wire.resume()
        assert list(events)[-1]["event"] == "ready"
        granted(first.result(30))


def test_an_error_ends_the_stream_as_a_problem(shared: Daemon, put: Put) -> None:
    *_, last = stream(shared, {"source": f"{put({'a': b'x'})}/none"})
    assert (last["event"], last["problem"]["code"]) == ("error", "not_found")
    assert last["problem"]["hint"]


# ---- revisions


def test_a_pinned_revision_that_is_held_never_touches_the_network(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    tree = objects.model(1)
    source = f"{put(objects.published(tree))}@{objects.manifest_of(tree).revision}"
    granted(shared.acquire(source))
    asked = wire.count(prefix=prefix)
    with wire.down():
        for _ in range(3):
            assert tree_of(shared, granted(shared.acquire(source))) == tree
    assert wire.count(prefix=prefix) == asked


def test_a_revision_may_be_given_beside_the_source(shared: Daemon, put: Put) -> None:
    tree = objects.model(1)
    source, revision = put(tree), objects.manifest_of(tree).revision
    lease = granted(shared.acquire(source, revision=revision))
    assert lease["revision"] == revision


def test_a_revision_held_under_the_unpinned_source_is_served_without_the_origin(
    shared: Daemon, put: Put, wire: Recorder
) -> None:
    tree = objects.model(1)
    source = put(tree)
    revision = granted(shared.acquire(source))["revision"]
    with wire.down():
        assert tree_of(shared, granted(shared.acquire(f"{source}@{revision}"))) == tree


def test_an_older_published_revision_can_still_be_asked_for(shared: Daemon, put: Put) -> None:
    old, new = objects.model("old"), objects.model("new")
    put(objects.published(old))
    source = put(objects.published(new))
    assert tree_of(shared, granted(shared.acquire(source))) == new
    assert tree_of(shared, granted(shared.acquire(f"{source}@{objects.manifest_of(old).revision}"))) == old


def test_a_revision_that_was_never_published_is_not_found(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    source = put(objects.published(objects.model(1)))
    refused(shared.acquire(f"{source}@{OTHER}"), "not_found")
    assert "/blobs/" not in " ".join(each.key for each in wire.matching(method="GET", prefix=prefix))


def test_a_plain_prefix_of_another_revision_is_an_integrity_error(shared: Daemon, put: Put, prefix: str) -> None:
    tree = objects.model(prefix)
    source = put(tree)
    problem = refused(shared.acquire(f"{source}@{OTHER}"), "integrity_error")
    assert str(objects.manifest_of(tree).revision) in problem["detail"]
    assert leases_on(shared, source) == 0
    assert rows(shared, "SELECT * FROM v_snapshots WHERE revision = ?", objects.manifest_of(tree).revision) == []


# ---- content that is not what it claims


def spoilt(tree: objects.Tree, key: str, data: bytes) -> objects.Tree:
    assert key in tree
    return {**tree, key: data}


def test_a_blob_with_other_bytes_than_its_manifest_promises_is_refused(shared: Daemon, put: Put) -> None:
    wrong, good = b"the wrong bytes!" * 100, b"the right bytes!" * 100
    tree = objects.published({"a.safetensors": good})
    source = put(spoilt(tree, f"blobs/sha256/{Digest.of(good).hex}", wrong))
    problem = refused(shared.acquire(source), "integrity_error")
    assert Digest.of(good) in problem["detail"]
    assert {Digest.of(good), Digest.of(wrong)}.isdisjoint(blobs_on_disk(shared))
    assert leases_on(shared, source) == 0


@pytest.mark.parametrize("size", [100, 10_000, 3 * SEGMENT])
def test_a_blob_of_another_size_than_its_manifest_promises_is_refused(shared: Daemon, put: Put, size: int) -> None:
    good = objects.noise("good", 2 * SEGMENT)
    source = put(spoilt(objects.published({"a.safetensors": good}), f"blobs/sha256/{Digest.of(good).hex}", b"x" * size))
    refused(shared.acquire(source), "integrity_error")
    assert Digest.of(good) not in blobs_on_disk(shared)


def test_a_blob_that_is_not_there_is_named(shared: Daemon, put: Put) -> None:
    tree = objects.published({"a.safetensors": b"a" * 200, "b.safetensors": b"b" * 200})
    del tree[f"blobs/sha256/{Digest.of(b'b' * 200).hex}"]
    problem = refused(shared.acquire(put(tree)), "integrity_error")
    assert Digest.of(b"b" * 200).hex in problem["detail"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree, name: spoilt(tree, name, tree[name].replace(b"a.safetensors", b"b.safetensors")),
        lambda tree, name: spoilt(tree, name, b"[]"),
        lambda tree, name: spoilt(tree, name, b""),
        lambda tree, name: {path: data for path, data in tree.items() if path != name},
        lambda tree, _: spoilt(tree, "hotshelf.json", b"not json"),
        lambda tree, _: spoilt(tree, "hotshelf.json", b'{"revision": "latest"}'),
        lambda tree, _: spoilt(tree, "hotshelf.json", b"[" * 10_000),
        lambda tree, _: spoilt(tree, "hotshelf.json", b'{"revision": 3, "x": "' + b"x" * 70_000 + b'"}'),
    ],
    ids=["another tree", "no manifest", "empty", "missing", "no json", "no revision", "deep", "huge"],
)
def test_a_broken_manifest_is_an_integrity_error(
    shared: Daemon, put: Put, change: Callable[[objects.Tree, str], objects.Tree]
) -> None:
    tree = {"a.safetensors": b"a" * 200}
    name = f"manifests/{objects.manifest_of(tree).revision.hex}.json"
    source = put(change(objects.published(tree), name))
    refused(shared.acquire(source), "integrity_error")
    assert leases_on(shared, source) == 0


@pytest.mark.parametrize("path", ["../../escape", "/etc/passwd", "a/../../b", "a\\b", "a//b"])
def test_a_manifest_whose_paths_would_step_out_is_refused(shared: Daemon, put: Put, path: str) -> None:
    body = json.dumps({"files": {path: {"digest": OTHER, "size": 1}}, "version": 1}, sort_keys=True, separators=(",", ":"))
    revision = Digest.of(body.encode())
    tree = {f"manifests/{revision.hex}.json": body.encode(), "hotshelf.json": json.dumps({"revision": revision}).encode()}
    refused(shared.acquire(put(tree)), "integrity_error")


def test_keys_that_would_step_out_of_their_folder_are_refused(
    moto_daemon: Daemon, moto: Moto, bucket: str, prefix: str
) -> None:
    for number, key in enumerate(("a/../../b.json", "a//b.json", "a\\b.json", "a/./b.json")):
        objects.put(moto, bucket, f"{prefix}{number}", {key: b"{}", "ok.safetensors": b"x" * 200})
        refused(moto_daemon.acquire(f"s3://{bucket}/{prefix}{number}"), "unsafe_content")
        assert leases_on(moto_daemon, f"s3://{bucket}/{prefix}") == 0


def test_a_push_that_has_not_finished_is_not_found(shared: Daemon, put: Put) -> None:
    tree = objects.published({"a.safetensors": b"a" * 200})
    del tree["hotshelf.json"]
    assert "not finished" in refused(shared.acquire(put(tree)), "not_found")["detail"]


def test_a_prefix_that_changes_while_it_is_fetched_is_fetched_once_more(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    old, new = objects.model(f"old {prefix}"), objects.model(f"new {prefix}")
    source = put(old)
    wire.before(lambda _: put(new), prefix=f"{prefix}/unet/diffusion")
    lease = granted(shared.acquire(source))
    assert tree_of(shared, lease) == new
    assert rows(shared, "SELECT * FROM v_snapshots WHERE revision = ?", objects.manifest_of(old).revision) == []


def test_a_file_added_while_the_rest_is_fetched_is_noticed_by_the_second_listing(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    source, more = put({"a.safetensors": b"a" * 200}), {"b.safetensors": b"b" * 200}
    wire.before(lambda _: put(more), prefix=f"{prefix}/a.safetensors")
    assert tree_of(shared, granted(shared.acquire(source))) == {"a.safetensors": b"a" * 200, **more}


def test_a_prefix_that_never_stops_changing_is_a_typed_error(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    source, counter = put({"a.safetensors": b"a" * 200}), iter(range(1_000))

    def change(_: object) -> None:
        put({"a.safetensors": b"%d" % next(counter) * 100})

    wire.before(change, prefix=f"{prefix}/a.safetensors", times=None)
    problem = refused(shared.acquire(source), "integrity_error")
    assert "changed" in problem["detail"]
    assert leases_on(shared, source) == 0
    assert wire.count(method="GET", prefix=f"{prefix}/a.safetensors") == 2


# ---- requests that cannot be met


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", "invalid_request"),
        ("s3://", "invalid_request"),
        ("s3://weights/a/../b", "invalid_request"),
        ("s3://weights/../other/b", "invalid_request"),
        ("s3://weights/a\0b", "invalid_request"),
        ("s3://weights/a\\b", "invalid_request"),
        ("s3://weights/a//b", "invalid_request"),
        ("s3://WEIGHTS!/a", "invalid_request"),
        ("s3://key:secret@weights/a", "invalid_request"),
        ("s3://weights/a@sha256:123", "invalid_request"),
        ("ftp://host/a", "invalid_request"),
        ("file://relative", "invalid_request"),
        ("x" * 3_000, "invalid_request"),
        ("no-such-model", "not_found"),
        ("file:///etc/passwd", "access_denied"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_before_anything_is_asked(
    shared: Daemon, wire: Recorder, source: str, code: str
) -> None:
    asked = len(wire.requests)
    refused(shared.acquire(source), code)
    assert len(wire.requests) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"[]", b"{}", b'{"source": 3}', b'{"sources": []}', b'{"source": "a", "sources": ["a"]}',
        b'{"source": "a", "alow_patterns": []}', b'{"source": "a", "allow_patterns": [3]}', b'{"source": "a", "timeout_s": -1}',
        b'{"source": "a", "timeout_s": true}', b'{"source": "a", "timeout_s": NaN}', b'{"source": "a", "client": "short"}',
        b'{"source": "a", "source": "b"}', b'{"source": "a", "revision": "main"}', b'\xff{"source": "a"}', b"[" * 60_000,
    ],
)  # fmt: skip
def test_a_body_that_makes_no_sense_is_an_invalid_request(shared: Daemon, body: bytes) -> None:
    refused(shared.call("POST", "/v1/leases", body), "invalid_request")


def test_a_misspelt_field_is_told_the_right_one(shared: Daemon) -> None:
    problem = refused(shared.acquire("s3://weights/a", alow_patterns=["*"]), "invalid_request")
    assert "'allow_patterns'" in problem["hint"]


def test_an_empty_prefix_is_not_found_and_so_is_a_missing_bucket(shared: Daemon, bucket: str, prefix: str) -> None:
    refused(shared.acquire(f"s3://{bucket}/{prefix}"), "not_found")
    assert "no bucket" in refused(shared.acquire(f"s3://no-such-bucket/{prefix}"), "not_found")["detail"]


def test_patterns_that_leave_nothing_say_what_is_there(shared: Daemon, put: Put) -> None:
    problem = refused(shared.acquire(put({"a.safetensors": b"x" * 200}), allow_patterns=["*.gguf"]), "not_found")
    assert "a.safetensors" in problem["detail"]


def test_a_wrong_secret_is_denied_by_key_id_and_leaves_nothing(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    source = put({"a.safetensors": b"x" * 200})
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket, secret_access_key="wrong-secret-here")})
    problem = refused(daemon.acquire(source), "access_denied")
    assert seaweedfs.access_key_id in problem["detail"]
    assert "wrong-secret-here" not in json.dumps(problem) + daemon.log_text
    assert_nothing_visible(daemon)


# ---- deadlines and those who leave


def test_a_deadline_keeps_what_was_fetched_and_the_next_one_goes_on(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    data = objects.noise("resume", 12 * SEGMENT)
    source, key = put({"a.safetensors": data}), f"{prefix}/a.safetensors"
    wire.limit_rate(len(data) / 2)
    problem = refused(shared.acquire(source, timeout_s=1), "timeout")
    assert problem["retryable"]
    assert "of 3,145,728 bytes" in problem["detail"]
    wait_until(lambda: rows(shared, "SELECT * FROM v_transfers WHERE state = 'reserved' AND bytes_done > 0"))
    kept = value(shared, "SELECT bytes_done FROM v_transfers WHERE key = ?", key)
    wire.limit_rate(None)
    before = len(wire.ranges_for(key))
    assert tree_of(shared, granted(shared.acquire(source))) == {"a.safetensors": data}
    again = [asked for asked in wire.ranges_for(key)[before:] if asked]
    assert sum(last + 1 - first for first, last in again) == len(data) - kept
    assert rows(shared, "SELECT * FROM v_transfers WHERE key = ?", key) == []


def test_a_deadline_of_one_does_not_end_it_for_another(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = {"a.safetensors": objects.noise("patient", 4 * SEGMENT)}
    source = put(tree)
    wire.stall(f"{prefix}/a", after_bytes=1_000)
    with later() as start:
        patient = start(shared.acquire, source)
        wire.wait_until(lambda it: it.bytes_for(f"{prefix}/a") >= 1_000)
        refused(shared.acquire(source, timeout_s=0.3), "timeout")
        wire.resume()
        assert tree_of(shared, granted(patient.result(30))) == tree
    assert wire.bytes_for(prefix) == 4 * SEGMENT


def test_a_deadline_is_kept_though_the_origin_has_gone_quiet(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    source = put({"a.safetensors": objects.noise("quiet", 4 * SEGMENT)})
    wire.stall(prefix, after_bytes=1_000)
    began = time.monotonic()
    refused(shared.acquire(source, timeout_s=0.5), "timeout")
    assert time.monotonic() - began < 5  # the connection itself is given up after 20 s of silence
    wire.resume()
    assert set(tree_of(shared, granted(shared.acquire(source)))) == {"a.safetensors"}


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_client_that_leaves_ends_a_download_that_nobody_else_waits_for(
    shared: Daemon, put: Put, wire: Recorder, prefix: str, accept: str
) -> None:
    source, key = put({"a.safetensors": objects.noise("left", 4 * SEGMENT)}), f"{prefix}/a.safetensors"
    wire.stall(key, after_bytes=1_000)
    connection = UnixConnection(shared.socket)
    connection.request("POST", "/v1/leases", json.dumps({"source": source}), {"Accept": accept})
    wire.wait_until(lambda it: it.bytes_for(key) >= 1_000)
    connection.close()
    wait_until(lambda: not leases_on(shared, source), what="the leases of one who left to go", timeout_s=10)
    wire.resume()
    told = wait_until(lambda: rows(shared, "SELECT outcome, error FROM v_requests WHERE source = ?", source))
    assert told == [{"outcome": "error", "error": "client_gone"}]
    wait_until(lambda: not rows(shared, "SELECT * FROM v_transfers WHERE key = ? AND state != 'reserved'", key))
    assert rows(shared, "SELECT * FROM v_refs WHERE source = ?", source) == []


def test_a_client_that_leaves_does_not_end_it_for_another(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = {"a.safetensors": objects.noise("stay", 4 * SEGMENT)}
    source, key = put(tree), f"{prefix}/a.safetensors"
    wire.stall(key, after_bytes=1_000)
    connection = UnixConnection(shared.socket)
    connection.request("POST", "/v1/leases", json.dumps({"source": source}))
    wire.wait_until(lambda it: it.bytes_for(key) >= 1_000)
    staying = UnixConnection(shared.socket)
    staying.request("POST", "/v1/leases", json.dumps({"source": source}), {"Accept": NDJSON})
    events = map(json.loads, staying.getresponse())
    assert next(event for event in events if event.get("phase") == "fetch"), "it waits for the same download"
    connection.close()
    wait_until(lambda: leases_on(shared, source) == 1)
    wire.resume()
    assert tree_of(shared, list(events)[-1]["lease"]) == tree
    staying.close()
    assert wire.bytes_for(prefix) == 4 * SEGMENT


def test_who_leaves_and_asks_again_at_once_is_served(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = {"a.safetensors": objects.noise("again", 4 * SEGMENT)}
    source = put(tree)
    wire.stall(f"{prefix}/a", after_bytes=1_000)
    for _ in range(8):
        with contextlib.closing(UnixConnection(shared.socket)) as connection:
            connection.request("POST", "/v1/leases", json.dumps({"source": source}))
            wait_until(lambda: leases_on(shared, source) > 0)
    with later() as start:
        asking = start(shared.acquire, source)
        wait_until(lambda: leases_on(shared, source) > 0)
        wire.resume()
        assert tree_of(shared, granted(asking.result(30))) == tree
    assert '"defect"' not in shared.log_text


def test_a_streaming_client_that_leaves_at_the_end_leaves_no_lease(shared: Daemon, put: Put) -> None:
    source = put({"a.safetensors": b"x" * 200})
    granted(shared.acquire(source))
    for _ in range(10):
        connection = UnixConnection(shared.socket)
        connection.request("POST", "/v1/leases", json.dumps({"source": source}), {"Accept": "application/x-ndjson"})
        connection.close()
    assert shared.call("GET", "/v1/status").status == 200


# ---- an origin that stumbles


def test_connections_that_break_are_taken_up_where_they_broke(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = {"a.safetensors": objects.noise("broken", 4 * SEGMENT)}
    source = put(tree)
    wire.cut(prefix, after_bytes=SEGMENT // 2, times=2)
    wire.cut(prefix, after_bytes=SEGMENT // 4, times=2, reset=False)
    assert tree_of(shared, granted(shared.acquire(source))) == tree
    assert wire.bytes_for(prefix) <= 4 * SEGMENT + SEGMENT  # at most what was on the two reset connections, once more


def test_a_busy_origin_is_asked_again(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    tree = {"a.safetensors": b"x" * 200}
    source = put(tree)
    wire.answer(503, prefix=prefix, times=2)
    wire.answer(503, prefix=prefix, times=1, method="HEAD")
    assert tree_of(shared, granted(shared.acquire(source))) == tree


def test_an_origin_that_is_off_serves_what_is_held_and_fails_misses_fast(shared: Daemon, put: Put, wire: Recorder) -> None:
    tree = {"a.safetensors": b"x" * 200}
    source = put(tree)
    granted(shared.acquire(source))
    with wire.down():
        assert tree_of(shared, granted(shared.acquire(source))) == tree
        problem = refused(shared.acquire(f"{source}-cold", timeout_s=20), "origin_unavailable")
        assert problem["retryable"]
        body = {"sources": [source, f"{source}-cold"]}
        refused(shared.call("POST", "/v1/leases", body), "origin_unavailable")
    assert leases_on(shared, f"{source}-cold") == 0


# ---- freshness


@pytest.fixture
def fresh(make_daemon: MakeDaemon, recorder: Recorder, seaweedfs: SeaweedFS, bucket: str, prefix: str) -> Daemon:
    """A daemon that looks again at every hit; `frozen` is a name that it leaves alone."""
    frozen = {"source": f"s3://{bucket}/{prefix}", "freeze": True}
    return make_daemon(
        origins={"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)},
        revalidate_s=0.05,
        models={"frozen": frozen},
    )


def test_a_changed_origin_flips_in_the_background_and_holders_keep_the_old_one(
    fresh: Daemon, put: Put, recorder: Recorder, bucket: str, prefix: str
) -> None:
    old, new = ({"a.safetensors": data * 100} for data in (b"old", b"new"))
    source = put(old, "-live")
    held = granted(fresh.acquire(source))
    put(new, "-live")
    assert granted(fresh.acquire(source))["revision"] == held["revision"]  # answered at once, from what is held
    wait_until(lambda: granted(fresh.acquire(source))["revision"] == objects.manifest_of(new).revision)
    assert tree_of(fresh, held) == old
    ref = rows(fresh, "SELECT revision, previous FROM v_refs WHERE source = ?", source)
    assert ref == [{"revision": objects.manifest_of(new).revision, "previous": held["revision"]}]
    assert "flipped" in {row["kind"] for row in rows(fresh, "SELECT kind FROM v_events")}


def test_a_source_is_looked_at_at_most_once_per_revalidate_s(shared: Daemon, put: Put, wire: Recorder, prefix: str) -> None:
    source = put({"a.safetensors": b"x" * 200})
    for _ in range(10):
        granted(shared.acquire(source))
    listings = [each for each in wire.requests if each.query.get("prefix") == f"{prefix}/"]
    assert len(listings) <= 3  # the fetch's two, and one look


def test_a_frozen_name_does_not_flip_not_even_by_way_of_its_source(
    fresh: Daemon, put: Put, recorder: Recorder, bucket: str, prefix: str
) -> None:
    old, new = ({"a.safetensors": data * 100} for data in (b"old", b"new"))
    source = put(old)
    held = granted(fresh.acquire("frozen"))["revision"]
    put(new)

    def asked() -> int:
        return recorder.count(prefix=prefix) - recorder.count(prefix=f"{prefix}-live")

    before = asked()
    for _ in range(5):
        assert granted(fresh.acquire("frozen"))["revision"] == held
        assert granted(fresh.acquire(source))["revision"] == held
    live = put(old, "-live")
    granted(fresh.acquire(live))
    put(new, "-live")
    wait_until(lambda: granted(fresh.acquire(live))["revision"] != held)  # by now a look would have happened
    assert granted(fresh.acquire("frozen"))["revision"] == held
    assert asked() == before


def test_a_look_that_fails_harms_nobody(fresh: Daemon, put: Put, recorder: Recorder) -> None:
    tree = {"a.safetensors": b"x" * 200}
    source = put(tree, "-live")
    granted(fresh.acquire(source))
    with recorder.down():
        for _ in range(3):
            assert tree_of(fresh, granted(fresh.acquire(source))) == tree
        wait_until(lambda: "background fetch failed" in fresh.log_text)
        assert tree_of(fresh, granted(fresh.acquire(source))) == tree


# ---- names


def test_a_configured_name_stands_for_its_source_and_patterns(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    source = put({"a.safetensors": b"x" * 200, "notes.txt": b"hello"})
    daemon = make_daemon(
        origins={"weed": seaweedfs.settings(bucket)},
        default_bucket=bucket,
        models={"sdxl": {"source": source, "allow_patterns": ["*.safetensors"], "preload": True}},
        loras={"style": {"source": f"{source}/a.safetensors"}},
    )
    wait_until(lambda: value(daemon, "SELECT count(*) FROM v_refs") == 1, what="the preload")
    lease = granted(daemon.acquire("sdxl"))
    assert tree_of(daemon, lease) == {"a.safetensors": b"x" * 200}
    assert granted(daemon.acquire("style"))["kind"] == "file"
    assert set(tree_of(daemon, granted(daemon.acquire("sdxl", allow_patterns=["*.txt"])))) == {"notes.txt"}
    by_key = granted(daemon.acquire(source.removeprefix(f"s3://{bucket}/")))
    assert by_key["source"] == source
    outcomes = [row["outcome"] for row in rows(daemon, "SELECT outcome FROM v_requests ORDER BY id")]
    assert outcomes[0] == "hit"


def test_a_preload_is_tried_again_when_its_origin_was_away_at_the_start(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, bucket: str
) -> None:
    source = put({"a.safetensors": objects.noise("later", 10_000)})
    with recorder.down():
        daemon = make_daemon(
            origins={"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)},
            models={"sdxl": {"source": source, "preload": True}},
            revalidate_s=0.2,
            fetch={"attempts": 1},
        )
        wait_until(lambda: rows(daemon, "SELECT 1 FROM v_events WHERE kind = 'background_failed'"), what="the first attempt")
        assert rows(daemon, "SELECT 1 FROM v_refs") == []
    wait_until(lambda: rows(daemon, "SELECT 1 FROM v_refs"), what="another attempt")


def test_files_come_from_configured_roots_only(make_daemon: MakeDaemon, tmp_path: Any) -> None:
    tree = objects.model(1)
    objects.write(tmp_path / "root" / "m", tree)
    objects.write(tmp_path / "other" / "m", tree)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "other" / "m")
    daemon = make_daemon(roots=[str(tmp_path / "root")])
    assert tree_of(daemon, granted(daemon.acquire(f"file://{tmp_path}/root/m"))) == tree
    for outside in ("other/m", "root/link", "root/link/model_index.json"):
        refused(daemon.acquire(f"file://{tmp_path}/{outside}"), "access_denied")


# ---- the daemon's own end


def test_a_download_outlives_a_kill_and_goes_on(
    make_daemon: MakeDaemon, recorder: Recorder, seaweedfs: SeaweedFS, put: Put, bucket: str, prefix: str
) -> None:
    data = objects.noise("killed", 16 * SEGMENT)
    source, key = put({"a.safetensors": data}), f"{prefix}/a.safetensors"
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    daemon = make_daemon(origins=origins, fetch={"segment_bytes": SEGMENT, "connections": 4})
    recorder.limit_rate(len(data) / 2)
    with later() as start:
        asking = start(daemon.acquire, source)
        recorder.wait_until(lambda it: it.bytes_for(key) >= len(data) / 2)
        daemon.kill9()
        with pytest.raises((OSError, http.client.HTTPException)):
            asking.result(30)
    recorder.limit_rate(None)
    assert names_in(daemon, "snapshots") == []
    daemon.start()
    assert tree_of(daemon, granted(daemon.acquire(source))) == {"a.safetensors": data}
    assert recorder.bytes_for(key) <= len(data) + 4 * SEGMENT
    assert_index_and_disk_agree(daemon)
    assert names_in(daemon, "ingest") == []


def test_a_clean_stop_ends_a_download_soon_and_leaves_it_resumable(
    make_daemon: MakeDaemon, recorder: Recorder, seaweedfs: SeaweedFS, put: Put, bucket: str, prefix: str
) -> None:
    data = objects.noise("stopped", 8 * SEGMENT)
    source, key = put({"a.safetensors": data}), f"{prefix}/a.safetensors"
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    fetch = {"segment_bytes": SEGMENT, "connections": 1}
    daemon = make_daemon(origins=origins, fetch=fetch, drain_s=0.2)
    recorder.stall(key, after_bytes=1_000, times=1)
    failures: list[object] = []

    def ask() -> None:
        try:
            failures.append(daemon.acquire(source).status)
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    recorder.wait_until(lambda it: it.bytes_for(key) >= 1_000)
    assert daemon.terminate(timeout_s=20) == 0
    asking.join(30)
    assert failures
    assert failures != [200]
    assert not daemon.socket.exists()
    recorder.resume()
    daemon.start()
    assert tree_of(daemon, granted(daemon.acquire(source))) == {"a.safetensors": data}


def test_a_daemon_that_is_stopping_is_not_ready_and_answers_what_is_under_way(
    make_daemon: MakeDaemon, recorder: Recorder, seaweedfs: SeaweedFS, put: Put, bucket: str, prefix: str
) -> None:
    tree = {"a.safetensors": objects.noise("draining", 2 * SEGMENT)}
    source, key = put(tree), f"{prefix}/a.safetensors"
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}, drain_s=30)
    recorder.stall(key, after_bytes=1_000, times=1)
    assert daemon.get_http("/readyz").status == 200
    with later() as start:
        asking = start(daemon.acquire, source)
        recorder.wait_until(lambda it: it.bytes_for(key) >= 1_000)
        ending = start(daemon.terminate)
        wait_until(lambda: daemon.get_http("/readyz").status == 503, what="not ready while draining")
        assert daemon.get_http("/livez").status == 200
        recorder.resume()
        assert asking.result(30).status == 200
        assert ending.result(30) == 0


# ---- many processes

WORKER = """
import json, sys, hotshelf
with hotshelf.acquire(sys.argv[1], timeout=120) as lease:
    sizes = {path: (lease.path / path).stat().st_size for path in lease.files}
    print(json.dumps({"revision": lease.revision, "sizes": sizes}), flush=True)
    sys.stdin.read()
"""


def test_sixteen_processes_cold_at_once_cost_the_origin_each_byte_once(
    shared: Daemon, put: Put, wire: Recorder, prefix: str
) -> None:
    tree = objects.model(prefix, unet=160 * objects.MIB, text_encoder=32 * objects.MIB, vae=16 * objects.MIB)
    assert objects.size_of(tree) >= 200_000_000
    source = put(tree)
    argv = [sys.executable, "-c", WORKER, source]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=shared.environment)
            )
            for _ in range(16)
        ]
        told = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]
        assert leases_on(shared, source) == 16
    assert [worker.returncode for worker in workers] == [0] * 16
    assert {each["revision"] for each in told} == {objects.manifest_of(tree).revision}
    assert all(each["sizes"] == {path: len(data) for path, data in tree.items()} for each in told)
    assert wire.bytes_for(prefix) / objects.size_of(tree) == 1.00
    wait_until(lambda: leases_on(shared, source) == 0, what="the leases of processes that ended")


@pytest.fixture(scope="module")
def moto_daemon(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("moto-daemon"), origins={"moto": moto.settings("weights")}) as daemon:
        yield daemon
