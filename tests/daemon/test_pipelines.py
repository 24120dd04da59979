"""A built pipeline is bound to its recipe's key and leased by it: the right tree, to whom it concerns, to nobody else."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from hotshelf_shared.built import MAX_BIND_BODY_BYTES, Built
from hotshelf_shared.recipe import LoraRecipe
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import (
    assert_index_and_disk_agree,
    blobs_on_disk,
    granted,
    index_of,
    names_in,
    refused,
    rows,
    tree_of,
    value,
)
from tests.daemon.workers import GROUP, OTHER, WORKER, Worker, manifest_json, recipe_of
from tests.daemon_process import Daemon
from tests.faults.invariants import Promise, wrongs_after_restart
from tests.objects import Digest, Tree
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

TREE = objects.model("built")
RECIPE = recipe_of("built", loras=(LoraRecipe(Digest.of(b"style"), {"unet": 0.7}),))
PIPELINE = f"pipeline:{RECIPE.key}"
ENTRY = manifest_json(TREE)["files"]["model_index.json"]


@pytest.fixture
def mine(make_daemon: MakeDaemon) -> Daemon:
    """A daemon without origins, that may be killed."""
    return make_daemon()


@pytest.fixture
def team(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that workers of other uids may use, none of them trusted but root."""
    daemon = make_daemon(socket_group=str(GROUP), trusted_uids=[0])
    os.chmod(daemon.socket.parent, 0o755)
    return daemon


def other_tree(tree: Tree = TREE) -> Tree:
    return {**tree, "unet/diffusion_pytorch_model.safetensors": objects.safetensors("other", 96 << 10)}


def events(daemon: Daemon) -> list[str]:
    return [row["kind"] for row in rows(daemon, "SELECT kind FROM v_events ORDER BY id")]


def evict(daemon: Daemon, target: str) -> Any:
    return daemon.call("DELETE", f"/v1/snapshots/{quote(target, safe='')}")


def folder_of(daemon: Daemon, key: str = RECIPE.key) -> pathlib.Path:
    return daemon.store / "pipelines" / key


def evict_now(daemon: Daemon, target: str) -> Any:
    """Whoever leases it."""
    for row in rows(daemon, "SELECT id, uid FROM v_leases"):
        Worker(daemon, row["uid"] or None).ask("DELETE", f"/v1/leases/{row['id']}")
    return evict(daemon, target)


def harm(daemon: Daemon, data: bytes) -> None:
    """Other bytes in the file of this blob, and the daemon has noticed."""
    name = Digest.of(data).hex
    path = daemon.store / "blobs" / "sha256" / name[:2] / name
    os.chmod(path, 0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    assert granted(daemon.call("POST", "/v1/verify"))["wrong"] == [f"sha256:{name}"]


def assert_nothing_of_pipelines(daemon: Daemon) -> None:
    assert rows(daemon, "SELECT * FROM v_pipelines") == []
    assert names_in(daemon, "pipelines") == []
    assert rows(daemon, "SELECT * FROM v_refs WHERE source LIKE 'pipeline:%'") == []


# ---- bind, show, lease


def test_what_one_worker_built_the_next_one_leases_at_once(mine: Daemon) -> None:
    told = Worker(mine).build(RECIPE, TREE, build={"torch": "2.13.0", "seconds": {"build": 1.5}})
    revision = objects.manifest_of(TREE).revision
    lease = granted(Worker(mine).lease(PIPELINE))
    assert (lease["revision"], lease["kind"], lease["source"]) == (revision, "tree", PIPELINE)
    assert tree_of(mine, lease) == TREE
    assert "phases" not in lease
    assert value(mine, "SELECT outcome FROM v_requests") == "hit"
    assert told == granted(Worker(mine).show(RECIPE.key))
    assert {name: told[name] for name in ("key", "revision", "recipe", "uid", "files", "bytes", "path", "build", "held")} == {
        "key": RECIPE.key,
        "revision": revision,
        "recipe": RECIPE.to_json(),
        "uid": os.getuid(),
        "files": len(TREE),
        "bytes": objects.size_of(TREE),
        "path": lease["path"],
        "build": {"torch": "2.13.0", "seconds": {"build": 1.5}},
        "held": True,
    }
    assert_index_and_disk_agree(mine)
    assert names_in(mine, "ingest") == []


def test_a_pipeline_on_disk_says_what_it_is_and_leads_to_its_files(mine: Daemon) -> None:
    Worker(mine).build(RECIPE, TREE, build={"torch": "2"})
    folder = folder_of(mine)
    assert sorted(os.listdir(folder)) == ["build.json", "snapshot"]
    assert os.readlink(folder / "snapshot") == f"../../snapshots/{objects.manifest_of(TREE).revision.hex}"
    assert objects.read(folder / "snapshot") == TREE
    said = json.loads((folder / "build.json").read_bytes())
    assert Built.parse((folder / "build.json").read_bytes(), RECIPE.key).recipe == RECIPE
    assert (said["key"], said["uid"], said["build"]) == (RECIPE.key, os.getuid(), {"torch": "2"})
    assert said["files"] == manifest_json(TREE)["files"]
    assert said["created_at"] > 0
    assert said["hotshelf"]


def test_a_pipeline_can_be_leased_by_its_revision_too_but_by_no_other(mine: Daemon) -> None:
    Worker(mine).build(RECIPE, TREE)
    revision = objects.manifest_of(TREE).revision
    assert granted(Worker(mine).lease(f"{PIPELINE}@{revision}"))["revision"] == revision
    assert granted(Worker(mine).lease(PIPELINE, revision=revision))["revision"] == revision
    refused(Worker(mine).lease(f"{PIPELINE}@{Digest.of(b'another')}"), "not_found")


def test_a_pipeline_is_leased_together_with_other_sources(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)})
    Worker(daemon).build(RECIPE, TREE)
    base = {"a.safetensors": b"a" * 300}
    leases = granted(Worker(daemon).lease(PIPELINE, put(base)))["leases"]
    assert [tree_of(daemon, lease) for lease in leases] == [TREE, base]
    refused(Worker(daemon).lease(put(base, "-x"), f"pipeline:{'0' * 64}"), "not_found")
    assert value(daemon, "SELECT count(*) FROM v_leases") == 2


def test_a_pipeline_is_leased_whole(mine: Daemon) -> None:
    Worker(mine).build(RECIPE, TREE)
    refused(Worker(mine).lease(PIPELINE, allow_patterns=["*.json"]), "invalid_request")


def test_a_name_may_stand_for_a_pipeline(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(models={"ready": {"source": PIPELINE}}, revalidate_s=0.001)
    Worker(daemon).build(RECIPE, TREE)
    for _ in range(3):
        assert tree_of(daemon, granted(Worker(daemon).lease("ready"))) == TREE
    assert events(daemon) == []  # a key never stands for something else tomorrow: nothing to ask anybody


def test_what_is_not_there_is_not_found(mine: Daemon) -> None:
    for key in ("0" * 64, "x", "a" * 200):
        refused(Worker(mine).show(key), "not_found")
        refused(Worker(mine).lease(f"pipeline:{key}"), "not_found")


def test_a_pipeline_shares_what_is_on_the_shelf(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put) -> None:
    """Only what the build changed is handed in: the rest is the base's, and stays although the base goes."""
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)})
    worker = Worker(daemon)
    lease = granted(daemon.acquire(put(TREE)))
    built = other_tree()
    lacking = {path: data for path, data in built.items() if not worker.has(data)}
    assert list(lacking) == ["unet/diffusion_pytorch_model.safetensors"]
    worker.hand_in(lacking)
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    granted(evict(daemon, lease["revision"]))
    assert worker.bind(RECIPE, built).status == 201
    assert tree_of(daemon, granted(worker.lease(PIPELINE))) == built


# ---- what cannot be bound


def test_a_pipeline_over_blobs_that_are_not_held_names_them(mine: Daemon) -> None:
    worker = Worker(mine)
    paths = sorted(TREE)
    worker.hand_in({path: TREE[path] for path in paths[3:]})
    problem = refused(worker.bind(RECIPE, TREE), "missing_blobs")
    assert problem["details"]["missing"] == sorted({str(Digest.of(TREE[path])) for path in paths[:3]})
    assert_nothing_of_pipelines(mine)
    worker.hand_in(TREE)
    assert worker.bind(RECIPE, TREE).status == 201


def test_a_key_that_is_not_the_recipe_s_is_refused_by_both_their_names(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.hand_in(TREE)
    for key in ("0" * 64, recipe_of("another").key, "x", "..%2F..%2Fetc"):
        problem = refused(worker.bind(RECIPE, TREE, key=key), "invalid_request")
        assert RECIPE.key in problem["detail"]
    assert_nothing_of_pipelines(mine)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: body["recipe"].update(surprise=1), "invalid_request"),
        (lambda body: body["recipe"].update(format=2), "invalid_request"),
        (lambda body: body["recipe"].update(base="sha256:12"), "invalid_request"),
        (lambda body: body["recipe"].update(loras=[["sha256:12", 1.0]]), "invalid_request"),
        (lambda body: body.update(recipe=None), "invalid_request"),
        (lambda body: body.update(surprise=1), "invalid_request"),
        (lambda body: body.update(build=[1]), "invalid_request"),
        (lambda body: body.update(build={"versions": ["2.13"]}), "invalid_request"),
        (lambda body: body.update(build={"x": "y" * 70_000}), "invalid_request"),
        (lambda body: body["manifest"].update(version=2), "invalid_request"),
        (lambda body: body["manifest"].update(more=1), "invalid_request"),
        (lambda body: body["manifest"].update(files={}), "invalid_request"),
        (lambda body: body["manifest"]["files"].update({"../x": ENTRY}), "invalid_request"),
        (lambda body: body["manifest"]["files"].update({"/x": ENTRY}), "invalid_request"),
        (lambda body: body["manifest"]["files"]["model_index.json"].update(size=7), "invalid_request"),
        (lambda body: body["manifest"]["files"].update({"x.py": ENTRY}), "unsafe_content"),
        (lambda body: body["manifest"]["files"].update({"weights.bin": ENTRY}), "unsafe_content"),
    ],
)  # fmt: skip
def test_a_pipeline_that_is_not_clean_is_refused(mine: Daemon, change: Callable[[Any], None], code: str) -> None:
    worker = Worker(mine)
    worker.hand_in(TREE)
    body = json.loads(json.dumps({"recipe": RECIPE.to_json(), "manifest": manifest_json(TREE)}))
    change(body)
    refused(worker.ask("PUT", f"/v1/pipelines/{RECIPE.key}", body), code)
    assert_nothing_of_pipelines(mine)


def test_a_body_beyond_its_limit_is_refused(mine: Daemon) -> None:
    refused(mine.call("PUT", f"/v1/pipelines/{RECIPE.key}", b" " * (MAX_BIND_BODY_BYTES + 1)), "too_large")
    refused(mine.call("PUT", f"/v1/pipelines/{RECIPE.key}", b"{" * 100_000), "invalid_request")


def test_a_large_tree_is_bound(mine: Daemon) -> None:
    """Its manifest is far larger than any other call's body may be."""
    worker = Worker(mine)
    tree = {**TREE, **{f"extra/{number:05}.txt": b"same" for number in range(10_000)}}
    worker.hand_in({**TREE, "extra": b"same"})
    assert worker.bind(RECIPE, tree).status == 201
    assert len(granted(worker.lease(PIPELINE))["files"]) == len(tree)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel", "auto_map": {"AutoModel": "evil.Model"}}),
        ("unet/config.json", {"_class_name": ["evil", "Model"]}),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline", "unet": ["evil", "Model"]}),
        ("model_index.json", {"_class_name": ["pipeline", "MyPipeline"]}),
    ],
)
def test_a_document_that_asks_for_code_refuses_the_pipeline(mine: Daemon, path: str, document: dict[str, Any]) -> None:
    worker = Worker(mine)
    tree = {**TREE, path: json.dumps(document).encode()}
    worker.hand_in(tree)
    assert path in refused(worker.bind(RECIPE, tree), "unsafe_content")["detail"]
    assert_nothing_of_pipelines(mine)


# ---- the first tree wins


def test_the_same_tree_again_changes_nothing(mine: Daemon) -> None:
    worker = Worker(mine)
    told = worker.build(RECIPE, TREE, build={"n": 1})
    worker.hand_in(TREE)
    assert granted(worker.bind(RECIPE, TREE, build={"n": 2})) == told
    assert events(mine) == []


def test_another_tree_for_the_same_key_is_refused_and_an_event(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.build(RECIPE, TREE)
    worker.hand_in(other_tree())
    problem = refused(worker.bind(RECIPE, other_tree()), "conflict")
    assert str(objects.manifest_of(TREE).revision) in problem["detail"]
    assert events(mine) == ["pipeline_conflict"]
    assert tree_of(mine, granted(worker.lease(PIPELINE))) == TREE
    assert objects.read(folder_of(mine) / "snapshot") == TREE


def test_a_tree_that_was_damaged_gives_way(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.build(RECIPE, TREE)
    harm(mine, TREE["unet/diffusion_pytorch_model.safetensors"])
    refused(worker.lease(PIPELINE), "not_found")
    refused(worker.show(RECIPE.key), "not_found")
    worker.hand_in(other_tree())
    assert worker.bind(RECIPE, other_tree()).status == 201
    assert tree_of(mine, granted(worker.lease(PIPELINE))) == other_tree()


@pytest.mark.root
def test_a_tree_that_another_made_whole_again_is_still_whose_it_was(team: Daemon) -> None:
    trusted, other = Worker(team), Worker(team, WORKER)
    trusted.build(RECIPE, TREE)
    harm(team, TREE["unet/config.json"])
    other.hand_in(TREE)
    assert other.bind(RECIPE, TREE).status == 201
    assert granted(other.show(RECIPE.key))["uid"] == os.getuid()
    assert tree_of(team, granted(Worker(team, OTHER).lease(PIPELINE))) == TREE
    assert granted(evict_now(team, PIPELINE))["freed_bytes"] == sum(objects.manifest_of(TREE).blobs().values())
    assert blobs_on_disk(team) == {}  # nothing that was handed in still waits to be bound


def test_a_snapshot_removed_by_hand_is_laid_out_anew(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.build(RECIPE, TREE)
    shutil.rmtree(mine.store / "snapshots" / objects.manifest_of(TREE).revision.hex)
    assert tree_of(mine, granted(worker.lease(PIPELINE))) == TREE


# ---- whom a key is answered


@pytest.mark.root
def test_what_an_untrusted_uid_built_is_for_itself_only(team: Daemon) -> None:
    builder, other = Worker(team, WORKER), Worker(team, OTHER)
    builder.build(RECIPE, TREE)
    revision = objects.manifest_of(TREE).revision
    assert granted(builder.lease(PIPELINE))["revision"] == revision
    assert granted(builder.show(RECIPE.key))["uid"] == WORKER
    absent = f"pipeline:{'0' * 64}"
    for stranger in (other, Worker(team, 61_009)):
        nothing = refused(stranger.lease(absent), "not_found")
        for reply in (stranger.lease(PIPELINE), stranger.lease(f"{PIPELINE}@{revision}"), stranger.show(RECIPE.key)):
            problem = refused(reply, "not_found")
            assert {**problem, "detail": problem["detail"].replace(RECIPE.key, "0" * 64)} == nothing
        refused(stranger.lease(PIPELINE, absent), "not_found")
        refused(stranger.lease(absent, PIPELINE), "not_found")
    assert {row["uid"] for row in rows(team, "SELECT uid FROM v_leases")} == {WORKER}


@pytest.mark.root
def test_a_trusted_uid_is_answered_whoever_built_it(team: Daemon) -> None:
    Worker(team, WORKER).build(RECIPE, TREE)
    assert tree_of(team, granted(Worker(team).lease(PIPELINE))) == TREE
    assert granted(Worker(team).show(RECIPE.key))["uid"] == WORKER
    refused(Worker(team, OTHER).show(RECIPE.key), "not_found")


@pytest.mark.root
def test_nobody_is_trusted_unless_the_operator_lists_them(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(socket_group=str(GROUP))
    os.chmod(daemon.socket.parent, 0o755)
    Worker(daemon).build(RECIPE, TREE)
    refused(Worker(daemon, WORKER).lease(PIPELINE), "not_found")
    refused(Worker(daemon, WORKER).show(RECIPE.key), "not_found")
    assert tree_of(daemon, granted(Worker(daemon).lease(PIPELINE))) == TREE


@pytest.mark.root
def test_what_a_trusted_uid_built_is_for_everybody(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(socket_group=str(GROUP), trusted_uids=[WORKER])
    os.chmod(daemon.socket.parent, 0o755)
    Worker(daemon, WORKER).build(RECIPE, TREE)
    for uid in (OTHER, WORKER, None):
        assert tree_of(daemon, granted(Worker(daemon, uid).lease(PIPELINE))) == TREE
        assert granted(Worker(daemon, uid).show(RECIPE.key))["uid"] == WORKER


@pytest.mark.root
def test_who_built_the_same_is_answered_too(team: Daemon) -> None:
    Worker(team, WORKER).build(RECIPE, TREE)
    other = Worker(team, OTHER)
    other.hand_in(TREE)
    assert granted(other.bind(RECIPE, TREE))["uid"] == WORKER
    assert tree_of(team, granted(other.lease(PIPELINE))) == TREE
    refused(Worker(team, 61_009).lease(PIPELINE), "not_found")


@pytest.mark.root
def test_an_untrusted_uid_cannot_put_its_tree_in_a_trusted_one_s_place(team: Daemon) -> None:
    Worker(team).build(RECIPE, TREE)
    mallory = Worker(team, WORKER)
    mallory.hand_in(other_tree())
    refused(mallory.bind(RECIPE, other_tree()), "conflict")
    assert tree_of(team, granted(mallory.lease(PIPELINE))) == TREE


@pytest.mark.root
def test_an_untrusted_uid_cannot_keep_a_trusted_one_from_its_key(team: Daemon) -> None:
    mallory, trusted = Worker(team, WORKER), Worker(team)
    mallory.build(RECIPE, other_tree())
    lease = granted(mallory.lease(PIPELINE))
    pinned = f"{PIPELINE}@{lease['revision']}"
    granted(mallory.lease(pinned))
    refused(Worker(team, OTHER).bind(RECIPE, TREE), "missing_blobs")
    trusted.hand_in(TREE)
    assert trusted.bind(RECIPE, TREE).status == 201
    assert events(team) == ["pipeline_replaced"]
    for worker in (mallory, trusted, Worker(team, OTHER)):
        assert tree_of(team, granted(worker.lease(PIPELINE))) == TREE
        refused(worker.lease(pinned), "not_found")
    assert tree_of(team, lease) == other_tree()  # what is leased stays
    assert objects.read(folder_of(team) / "snapshot") == TREE
    assert json.loads((folder_of(team) / "build.json").read_bytes())["uid"] == os.getuid()


@pytest.mark.root
def test_a_trusted_uid_that_builds_the_same_makes_it_everybody_s(team: Daemon) -> None:
    Worker(team, WORKER).build(RECIPE, TREE)
    Worker(team).hand_in(TREE)
    assert Worker(team).bind(RECIPE, TREE).status == 201
    assert granted(Worker(team, OTHER).show(RECIPE.key))["uid"] == os.getuid()
    assert tree_of(team, granted(Worker(team, OTHER).lease(PIPELINE))) == TREE


@pytest.mark.root
def test_a_restart_distrusts_whom_the_operator_no_longer_lists(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(socket_group=str(GROUP), trusted_uids=[WORKER])
    os.chmod(daemon.socket.parent, 0o755)
    Worker(daemon, WORKER).build(RECIPE, TREE)
    daemon.restart(trusted_uids=[])
    os.chmod(daemon.socket.parent, 0o755)
    refused(Worker(daemon, OTHER).lease(PIPELINE), "not_found")
    assert granted(Worker(daemon, WORKER).lease(PIPELINE))


# ---- until it goes


def test_eviction_takes_all_of_a_pipeline(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.build(RECIPE, TREE)
    lease = granted(worker.lease(PIPELINE))
    refused(evict(mine, PIPELINE), "in_use")
    mine.call("DELETE", f"/v1/leases/{lease['id']}")
    assert granted(evict(mine, PIPELINE))["freed_bytes"] == sum(objects.manifest_of(TREE).blobs().values())
    assert_nothing_of_pipelines(mine)
    assert (blobs_on_disk(mine), names_in(mine, "snapshots"), names_in(mine, "trash")) == ({}, [], [])
    refused(worker.lease(PIPELINE), "not_found")
    assert worker.build(RECIPE, other_tree())  # the key is free again


def test_a_pipeline_makes_room_when_nobody_holds_it_and_is_not_the_first_to(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, budget=600_000)
    worker = Worker(daemon)
    old = granted(daemon.acquire(put({"a.safetensors": objects.noise("a", 300_000)}, "-a")))
    daemon.call("DELETE", f"/v1/leases/{old['id']}")
    worker.build(RECIPE, TREE)
    new = granted(daemon.acquire(put({"b.safetensors": objects.noise("b", 300_000)}, "-b")))
    assert rows(daemon, "SELECT revision FROM v_evictions") == [{"revision": old["revision"]}]
    daemon.call("DELETE", f"/v1/leases/{new['id']}")
    granted(daemon.acquire(put({"c.safetensors": objects.noise("c", 550_000)}, "-c")))
    assert_nothing_of_pipelines(daemon)
    refused(worker.lease(PIPELINE), "not_found")


def test_collecting_takes_nothing_of_a_pipeline(mine: Daemon) -> None:
    Worker(mine).build(RECIPE, TREE)
    assert granted(mine.call("POST", "/v1/collect"))["blobs"] == []
    assert tree_of(mine, granted(Worker(mine).lease(PIPELINE))) == TREE


def test_a_pipeline_can_be_pinned_and_shown_by_its_source(mine: Daemon) -> None:
    Worker(mine).build(RECIPE, TREE)
    target = quote(PIPELINE, safe="")
    granted(mine.call("PUT", f"/v1/pins/{target}"))
    refused(evict(mine, PIPELINE), "in_use")
    shown = granted(mine.call("GET", f"/v1/snapshots/{target}"))
    assert (shown["sources"], shown["pinned"]) == ([PIPELINE], True)
    assert [(one["key"], one["recipe"]) for one in shown["pipelines"]] == [(RECIPE.key, RECIPE.to_json())]


# ---- restarts


def lease_again(daemon: Daemon) -> None:
    lease = granted(Worker(daemon).lease(PIPELINE))
    assert tree_of(daemon, lease) == TREE
    assert objects.read(folder_of(daemon) / "snapshot") == TREE
    assert value(daemon, "SELECT count(*) FROM v_pipelines") == 1
    assert_index_and_disk_agree(daemon)


@pytest.fixture
def bound(mine: Daemon) -> Daemon:
    """A daemon with the pipeline bound, killed."""
    Worker(mine).build(RECIPE, TREE, build={"torch": "2"})
    told = granted(Worker(mine).show(RECIPE.key))
    mine.kill9()
    promise = Promise(told["revision"], {path: str(Digest.of(data)) for path, data in TREE.items()})
    assert list(wrongs_after_restart(mine.store, [promise])) == []
    return mine


def test_a_pipeline_that_was_acknowledged_survives_a_killed_daemon(bound: Daemon) -> None:
    bound.start()
    lease_again(bound)
    assert granted(Worker(bound).show(RECIPE.key))["build"] == {"torch": "2"}


@pytest.mark.root
def test_a_lost_index_is_rebuilt_with_its_pipelines_and_whose_they_are(team: Daemon) -> None:
    Worker(team, WORKER).build(RECIPE, TREE, build={"torch": "2"})
    told = granted(Worker(team, WORKER).show(RECIPE.key))
    team.kill9()
    shutil.rmtree(team.store / "index")
    team.start()
    os.chmod(team.socket.parent, 0o755)
    assert granted(Worker(team, WORKER).show(RECIPE.key)) == told
    assert tree_of(team, granted(Worker(team, WORKER).lease(PIPELINE))) == TREE
    refused(Worker(team, OTHER).lease(PIPELINE), "not_found")


def test_a_lost_folder_is_written_anew(bound: Daemon) -> None:
    before = (folder_of(bound) / "build.json").read_bytes()
    shutil.rmtree(folder_of(bound))
    bound.start()
    lease_again(bound)
    assert (folder_of(bound) / "build.json").read_bytes() == before


@pytest.mark.parametrize(
    "tamper",
    [
        lambda said: said["recipe"].update(dtype="float32"),
        lambda said: said.update(key="0" * 64),
        lambda said: said.update(revision=str(Digest.of(b"x"))),
        lambda said: said["files"].pop("model_index.json"),
        lambda said: said["files"]["unet/config.json"].update(size=1),
        lambda said: said.update(uid="root"),
        lambda said: said.pop("build"),
        lambda said: said.clear(),
    ],
    ids=["recipe", "key", "revision", "file", "size", "uid", "no build", "nothing"],
)
def test_a_tampered_document_is_never_adopted(bound: Daemon, tamper: Callable[[Any], None]) -> None:
    path = folder_of(bound) / "build.json"
    said = json.loads(path.read_bytes())
    tamper(said)
    path.unlink()
    path.write_text(json.dumps(said))
    shutil.rmtree(bound.store / "index")
    bound.start()
    assert_nothing_of_pipelines(bound)
    assert events(bound) == ["pipeline_refused"]
    assert any(RECIPE.key in name for name in names_in(bound, "quarantine"))
    refused(Worker(bound).lease(PIPELINE), "not_found")


def test_a_link_that_leads_elsewhere_is_never_adopted(bound: Daemon, tmp_path: pathlib.Path) -> None:
    (folder_of(bound) / "snapshot").unlink()
    (folder_of(bound) / "snapshot").symlink_to(tmp_path)
    shutil.rmtree(bound.store / "index")
    bound.start()
    assert_nothing_of_pipelines(bound)


def test_a_tampered_document_of_a_pipeline_that_the_index_knows_is_put_right(bound: Daemon) -> None:
    path = folder_of(bound) / "build.json"
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(before.replace(b"float16", b"float32"))
    bound.start()
    lease_again(bound)
    assert path.read_bytes() == before


def test_a_folder_whose_snapshot_is_gone_is_removed(bound: Daemon) -> None:
    blob = Digest.of(TREE["unet/config.json"]).hex
    (bound.store / "blobs" / "sha256" / blob[:2] / blob).unlink()
    shutil.rmtree(bound.store / "index")
    bound.start()
    assert_nothing_of_pipelines(bound)
    Worker(bound).build(RECIPE, TREE)
    lease_again(bound)


def test_a_lost_blob_of_a_pipeline_is_handed_in_again(bound: Daemon) -> None:
    blob = Digest.of(TREE["unet/config.json"]).hex
    (bound.store / "blobs" / "sha256" / blob[:2] / blob).unlink()
    bound.start()
    refused(Worker(bound).lease(PIPELINE), "not_found")
    problem = refused(Worker(bound).bind(RECIPE, TREE), "missing_blobs")
    assert problem["details"]["missing"] == [f"sha256:{blob}"]
    assert Worker(bound).put(TREE["unet/config.json"]).status == 201
    assert Worker(bound).bind(RECIPE, TREE).status == 201
    lease_again(bound)


def test_other_settings_of_safety_find_the_pipeline_all_the_same(bound: Daemon) -> None:
    """They are part of what a ref is kept under: the key is answered from its row."""
    bound.restart(safety={"allow_libraries": ["mine"]})
    lease_again(bound)


def test_an_index_from_before_pipelines_is_brought_up_to_date(bound: Daemon) -> None:
    with sqlite3.connect(index_of(bound)) as db:
        db.executescript(
            "DROP VIEW v_pipelines; DROP VIEW v_waste; DROP TABLE handed_in; DROP TABLE pipeline_builders;"
            "DROP INDEX pipelines_by_revision; DROP TABLE pipelines;"
            "CREATE TABLE pipelines (key TEXT PRIMARY KEY, revision TEXT NOT NULL, recipe TEXT NOT NULL, uid INTEGER NOT NULL,"
            " created_at REAL NOT NULL) WITHOUT ROWID;"
            "CREATE VIEW v_pipelines AS SELECT key, revision, recipe, uid, created_at FROM pipelines;"
            "CREATE VIEW v_waste AS SELECT 1 AS kind, 2 AS subject, 3 AS bytes;"
            "DELETE FROM _sqlite_migrations WHERE name LIKE 'm003%'"
        )
    db.close()
    bound.start()
    lease_again(bound)


def test_a_blob_handed_in_is_free_to_go_with_its_pipeline(mine: Daemon) -> None:
    """Bound is bound: nothing still waits for it."""
    Worker(mine).build(RECIPE, TREE)
    granted(evict(mine, PIPELINE))
    wait_until(lambda: blobs_on_disk(mine) == {})


def test_a_weight_file_whose_header_lies_cannot_be_bound(mine: Daemon) -> None:
    worker = Worker(mine)
    broken = {**TREE, "unet/diffusion_pytorch_model.safetensors": b"\xff" * 7 + b"\x7f" + b"{}" * 40}
    worker.hand_in(broken)
    problem = worker.bind(RECIPE, broken)
    assert problem.status >= 400
    assert "unet/diffusion_pytorch_model.safetensors" in problem.body["detail"]
    refused(worker.lease(PIPELINE), "not_found")
