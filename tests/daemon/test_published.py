"""What a trusted worker built on one node is leased on another through the operator's prefix; what was tampered with is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.buckets import keys, read, write
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import assert_index_and_disk_agree, granted, names_in, refused, rows, tree_of, value
from tests.daemon.workers import GROUP, OTHER, WORKER, Worker, recipe_of
from tests.daemon_process import Daemon
from tests.objects import Digest, Tree
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

UNET = "unet/diffusion_pytorch_model.safetensors"
Node = Callable[..., Daemon]


@pytest.fixture
def node(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str) -> Node:
    """Daemons that share a prefix; what `recorder` sees is the second's and any later one's."""

    def make(name: str, **settings: Any) -> Daemon:
        way = {} if name == "first" else {"endpoint_url": recorder.endpoint_url}
        daemon = make_daemon(
            name,
            origins={"weed": seaweedfs.settings(BUCKET, **way)},
            publish={"pipelines": f"s3://{BUCKET}/{prefix}/shared"},
            **settings,
        )
        os.chmod(daemon.socket.parent, 0o755)
        return daemon

    return make


@pytest.fixture
def recipe(prefix: str) -> Recipe:
    return recipe_of(prefix)


@pytest.fixture
def tree(prefix: str) -> Tree:
    return objects.model(prefix)


def await_published(daemon: Daemon, recipe: Recipe) -> None:
    wait_until(
        lambda: rows(daemon, "SELECT key FROM v_pipelines WHERE key = ? AND published_to IS NOT NULL", recipe.key),
        what="the pipeline to be published",
    )


def events(daemon: Daemon) -> list[str]:
    return [row["kind"] for row in rows(daemon, "SELECT kind FROM v_events ORDER BY id")]


# ---- from node to node


def test_what_was_built_on_one_node_is_leased_on_another_that_fetches_only_what_it_lacks(
    node: Node, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first, second = node("first"), node("second")
    Worker(first).build(recipe, tree, build={"torch": "2"})
    await_published(first, recipe)
    digests = objects.manifest_of(tree).blobs()
    assert keys(seaweedfs, f"{prefix}/shared/") == sorted(
        [f"blobs/sha256/{digest.hex}" for digest in digests]
        + [f"manifests/{objects.manifest_of(tree).revision.hex}.json", f"pipelines/{recipe.key}.json"]
    )
    assert (
        read(seaweedfs, f"{prefix}/shared/pipelines/{recipe.key}.json")
        == (first.store / "pipelines" / recipe.key / "build.json").read_bytes()
    )
    objects.put(seaweedfs, BUCKET, f"{prefix}/base", {path: data for path, data in tree.items() if path != UNET})
    granted(second.acquire(f"s3://{BUCKET}/{prefix}/base"))
    assert tree_of(second, granted(Worker(second).lease(f"pipeline:{recipe.key}"))) == tree
    fetched = {one.key.rpartition("/")[2] for one in recorder.matching(prefix=f"{prefix}/shared/blobs/")}
    assert fetched == {Digest.of(tree[UNET]).hex}
    assert recorder.bytes_for(f"{prefix}/shared/blobs/") == len(tree[UNET])
    assert value(second, "SELECT uid FROM v_pipelines") == os.getuid()
    assert granted(Worker(second).show(recipe.key))["build"] == {"torch": "2"}
    assert objects.read(second.store / "pipelines" / recipe.key / "snapshot") == tree
    assert_index_and_disk_agree(second)
    with recorder.down():  # from now on it is this node's own
        assert tree_of(second, granted(Worker(second).lease(f"pipeline:{recipe.key}"))) == tree
        second.restart()
        assert tree_of(second, granted(Worker(second).lease(f"pipeline:{recipe.key}"))) == tree
    assert [row["outcome"] for row in rows(second, "SELECT outcome FROM v_requests ORDER BY id")] == [
        "miss",
        "miss",
        "hit",
        "hit",
    ]


def test_asking_for_a_published_pipeline_answers_and_fetches_nothing(
    node: Node, recorder: Recorder, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first, second = node("first"), node("second")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    shown = granted(Worker(second).show(recipe.key))
    assert (shown["revision"], shown["held"], shown["path"]) == (objects.manifest_of(tree).revision, False, None)
    assert rows(second, "SELECT * FROM v_pipelines") == []
    assert recorder.count(prefix=f"{prefix}/shared/blobs/") == 0
    pinned = f"pipeline:{recipe.key}@{shown['revision']}"
    refused(Worker(second).lease(f"pipeline:{recipe.key}@{Digest.of(b'x')}"), "not_found")
    assert tree_of(second, granted(Worker(second).lease(pinned))) == tree
    assert granted(Worker(second).show(recipe.key))["held"] is True


def test_workers_that_ask_for_what_is_not_there_do_not_ask_the_origin_each_time(
    node: Node, recorder: Recorder, prefix: str, recipe: Recipe
) -> None:
    second = node("second")
    for _ in range(5):
        refused(Worker(second).show(recipe.key), "not_found")
        refused(Worker(second).lease(f"pipeline:{recipe.key}"), "not_found")
    assert recorder.count(prefix=f"{prefix}/shared/pipelines/") == 1


@pytest.mark.parametrize("how", ["down", "silent"])
def test_an_origin_that_does_not_answer_delays_nobody(node: Node, recorder: Recorder, recipe: Recipe, how: str) -> None:
    second = node("second")
    if how == "down":
        recorder.stop()
    else:
        recorder.stall()
    began = time.monotonic()
    refused(Worker(second).lease(f"pipeline:{recipe.key}"), "not_found")
    assert time.monotonic() - began < 6  # two seconds, on a busy machine
    for _ in range(20):
        refused(Worker(second).show(recipe.key), "not_found")
    assert time.monotonic() - began < 8
    recorder.heal()


def test_two_workers_on_one_node_fetch_a_published_pipeline_once(
    node: Node, recorder: Recorder, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first, second = node("first"), node("second")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    leases = granted(Worker(second).lease(f"pipeline:{recipe.key}", f"pipeline:{recipe.key}"))["leases"]
    assert [tree_of(second, lease) for lease in leases] == [tree, tree]
    assert recorder.bytes_for(f"{prefix}/shared/blobs/") == sum(objects.manifest_of(tree).blobs().values())


def test_a_preloaded_name_brings_a_published_pipeline(node: Node, recipe: Recipe, tree: Tree) -> None:
    first = node("first")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    second = node("second", models={"ready": {"source": f"pipeline:{recipe.key}", "preload": True}})
    wait_until(lambda: rows(second, "SELECT key FROM v_pipelines"), what="the pipeline to be preloaded")
    assert tree_of(second, granted(Worker(second).lease("ready"))) == tree
    assert value(second, "SELECT outcome FROM v_requests") == "hit"


def test_a_lost_blob_is_fetched_again_from_the_prefix(
    node: Node, recorder: Recorder, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first = node("first")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    first.kill9()
    blob = Digest.of(tree[UNET]).hex
    (first.store / "blobs" / "sha256" / blob[:2] / blob).unlink()
    first.start()
    assert tree_of(first, granted(Worker(first).lease(f"pipeline:{recipe.key}"))) == tree
    assert value(first, "SELECT count(*) FROM v_pipelines WHERE published_to IS NOT NULL") == 1


# ---- what is published, and when


@pytest.mark.root
def test_only_what_trusted_uids_built_is_published(
    node: Node, seaweedfs: SeaweedFS, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first = node("first", socket_group=str(GROUP), trusted_uids=[WORKER])
    mine = recipe_of("untrusted")
    Worker(first, OTHER).build(mine, tree)
    Worker(first, WORKER).hand_in(tree)
    assert Worker(first, WORKER).bind(recipe, tree).status == 201
    await_published(first, recipe)
    assert [key for key in keys(seaweedfs, f"{prefix}/shared/") if "pipelines/" in key] == [f"pipelines/{recipe.key}.json"]
    assert value(first, "SELECT published_to FROM v_pipelines WHERE key = ?", mine.key) is None


@pytest.mark.root
def test_a_published_tree_takes_the_place_of_what_only_a_stranger_trusts(node: Node, recipe: Recipe, tree: Tree) -> None:
    first, second = node("first"), node("second", socket_group=str(GROUP))
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    mallory = Worker(second, WORKER)
    evil = {**tree, UNET: objects.safetensors("evil", 1_000)}
    mallory.build(recipe, evil)
    assert tree_of(second, granted(mallory.lease(f"pipeline:{recipe.key}"))) == evil
    assert tree_of(second, granted(Worker(second, OTHER).lease(f"pipeline:{recipe.key}"))) == tree
    assert tree_of(second, granted(mallory.lease(f"pipeline:{recipe.key}"))) == tree


def test_what_could_not_be_published_is_when_the_next_daemon_starts(
    node: Node, recorder: Recorder, recipe: Recipe, tree: Tree
) -> None:
    second = node("second")
    with recorder.down():
        Worker(second).build(recipe, tree)
        wait_until(lambda: events(second), what="the failure to be told")
        assert events(second) == ["publish_failed"]
        assert tree_of(second, granted(Worker(second).lease(f"pipeline:{recipe.key}"))) == tree
        assert second.terminate() == 0
    second.start()
    await_published(second, recipe)


def test_another_tree_that_was_published_first_stays(
    node: Node, seaweedfs: SeaweedFS, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first, second = node("first"), node("second")
    other = {**tree, UNET: objects.safetensors("other", 1_000)}
    Worker(second).build(recipe, other)
    await_published(second, recipe)
    Worker(first).build(recipe, tree)
    wait_until(lambda: events(first), what="the conflict to be told")
    assert events(first) == ["publish_failed"]
    said = json.loads(read(seaweedfs, f"{prefix}/shared/pipelines/{recipe.key}.json"))
    assert said["revision"] == objects.manifest_of(other).revision
    assert tree_of(first, granted(Worker(first).lease(f"pipeline:{recipe.key}"))) == tree


# ---- what must not be believed


def tampered(said: dict[str, Any], how: str) -> None:
    entry = said["files"]["model_index.json"]
    match how:
        case "recipe":
            said["recipe"]["dtype"] = "float32"
        case "key":
            said["key"] = "0" * 64
        case "manifest":
            said["files"]["unet/config.json"] = entry
        case "path":
            said["files"] = {"../../etc/cron.d/x": entry}
        case "code":
            said["files"]["model.py"] = entry
        case "format":
            said["recipe"]["format"] = 2


@pytest.mark.parametrize("how", ["recipe", "key", "manifest", "path", "code", "format", "no JSON"])
def test_a_tampered_document_is_as_good_as_none_and_an_event(
    node: Node, seaweedfs: SeaweedFS, prefix: str, recipe: Recipe, tree: Tree, how: str
) -> None:
    first, second = node("first"), node("second")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    key = f"{prefix}/shared/pipelines/{recipe.key}.json"
    said = json.loads(read(seaweedfs, key))
    tampered(said, how)
    if how == "code":  # and consistent in itself
        said["revision"] = str(objects.manifest_of({**tree, "model.py": tree["model_index.json"]}).revision)
    write(seaweedfs, key, b"{" if how == "no JSON" else json.dumps(said).encode())
    refused(Worker(second).show(recipe.key), "not_found")
    refused(Worker(second).lease(f"pipeline:{recipe.key}"), "not_found")
    assert events(second) == ["pipeline_refused"]
    assert (names_in(second, "pipelines"), names_in(second, "snapshots")) == ([], [])


def test_a_published_blob_with_wrong_bytes_is_never_served(
    node: Node, seaweedfs: SeaweedFS, prefix: str, recipe: Recipe, tree: Tree
) -> None:
    first, second = node("first"), node("second")
    Worker(first).build(recipe, tree)
    await_published(first, recipe)
    write(seaweedfs, f"{prefix}/shared/blobs/sha256/{Digest.of(tree[UNET]).hex}", b"x" * len(tree[UNET]))
    refused(Worker(second).lease(f"pipeline:{recipe.key}"), "integrity_error")
    assert (names_in(second, "pipelines"), names_in(second, "snapshots")) == ([], [])
    assert rows(second, "SELECT * FROM v_leases") == []


def test_a_prefix_that_is_no_bucket_s_folder_is_refused_by_its_name(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(start=False, publish={"pipelines": "https://example.com/x"})
    daemon.launch()
    assert daemon.wait() == 78
    assert "publish.pipelines" in daemon.log_text
