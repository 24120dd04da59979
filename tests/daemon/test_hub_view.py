"""`hub/`: what is configured, laid out as the Hugging Face cache is, for programs that know nothing of us."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from typing import Any

import pytest

from tests import objects, signing
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import blobs_on_disk, granted, names_in, refused, rows
from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.hub import Hub
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

TREE = objects.model("view")
REVISION = objects.manifest_of(TREE).revision
COMMIT = REVISION.hex[:40]


@pytest.fixture
def source(put: Put) -> str:
    return put(objects.published(TREE))


@pytest.fixture
def make(make_daemon: MakeDaemon, seaweedfs: SeaweedFS) -> Any:
    def started(**settings: Any) -> Daemon:
        return make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, **settings)

    return started


def commits(daemon: Daemon, name: str) -> list[str]:
    return sorted(path.name for path in (daemon.store / "hub" / f"models--shelf--{name}" / "snapshots").glob("*"))


def offline(daemon: Daemon) -> dict[str, str]:
    """For programs that read the view and ask nobody."""
    return {"HF_HUB_CACHE": str(daemon.store / "hub"), "HF_HUB_OFFLINE": "1"}


def ran(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/python", "-c", code], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_configured_name_shows_as_a_repository_whose_commit_is_its_revision(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    assert names_in(daemon, "hub") == []
    granted(daemon.acquire("sdxl"))
    repository = daemon.store / "hub" / "models--shelf--sdxl"
    assert (repository / "refs" / "main").read_text() == COMMIT
    assert objects.read(repository / "snapshots" / COMMIT) == TREE
    links = [path for path in (repository / "snapshots" / COMMIT).rglob("*") if not path.is_dir()]
    assert all(os.readlink(link).startswith("../") for link in links)  # on every mount of the whole store


def test_the_same_source_acquired_by_its_own_name_shows_too_and_a_stranger_does_not(make: Any, source: str, put: Put) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    granted(daemon.acquire(put(objects.model("stranger"), "-x")))
    assert names_in(daemon, "hub") == []
    granted(daemon.acquire(source))
    assert commits(daemon, "sdxl") == [COMMIT]


def test_a_new_revision_takes_the_ref_and_leaves_the_old_commit_to_its_readers(make: Any, source: str, put: Put) -> None:
    daemon, later = make(models={"sdxl": {"source": source}}, revalidate_s=0.1), objects.model("later")
    granted(daemon.acquire("sdxl"))
    put(objects.published(later))
    main = daemon.store / "hub" / "models--shelf--sdxl" / "refs" / "main"
    commit = objects.manifest_of(later).revision.hex[:40]
    wait_until(lambda: granted(daemon.acquire("sdxl")) and main.read_text() == commit, what="the ref to flip")
    assert commits(daemon, "sdxl") == sorted([COMMIT, commit])
    assert objects.read(main.parents[1] / "snapshots" / COMMIT) == TREE
    for row in rows(daemon, "SELECT id FROM v_leases WHERE revision = ?", REVISION):
        daemon.call("DELETE", f"/v1/leases/{row['id']}")
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))
    assert commits(daemon, "sdxl") == [commit]
    assert main.read_text() == commit


def test_an_organisation_of_the_hub_that_is_called_as_ours_takes_no_configured_name_s_place(make: Any, source: str) -> None:
    with Hub() as hub:
        hub.push("shelf/sdxl", objects.model("somebody else's"))
        daemon = make(models={"sdxl": {"source": source}}, hf={"endpoint": hub.endpoint_url})
        granted(daemon.acquire("sdxl"))
        granted(daemon.acquire("hf://shelf/sdxl"))
        for _ in range(2):
            assert (daemon.store / "hub" / "models--shelf--sdxl" / "refs" / "main").read_text() == COMMIT
            assert commits(daemon, "sdxl") == [COMMIT]
            daemon.restart()


def test_what_is_rolled_back_and_refreshed_shows_so(make: Any, source: str, put: Put) -> None:
    daemon, later = make(models={"sdxl": {"source": source}}), objects.model("later")
    granted(daemon.acquire("sdxl"))
    put(objects.published(later))
    main = daemon.store / "hub" / "models--shelf--sdxl" / "refs" / "main"
    commit = objects.manifest_of(later).revision.hex[:40]
    for call, expected in (("refresh", commit), ("rollback", COMMIT), ("refresh", commit)):
        granted(daemon.call("POST", f"/v1/{call}", {"source": "sdxl"}))
        assert main.read_text() == expected


def test_what_is_evicted_leaves_nothing_behind(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    lease = granted(daemon.acquire("sdxl"))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))
    assert names_in(daemon, "hub") == []
    assert blobs_on_disk(daemon) == {}


def test_what_is_to_be_viewed_is_pinned_as_long_as_it_is_configured(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source, "view": True}})
    lease = granted(daemon.acquire("sdxl"))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    refused(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"), "in_use")
    daemon.restart(models={"sdxl": {"source": source}})
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))


def test_what_shows_goes_after_what_does_not(make: Any, put: Put) -> None:
    trees = [{"a.safetensors": objects.noise(name, 50_000)} for name in ("shown", "other", "third")]
    shown, other, third = (put(tree, f"-{number}") for number, tree in enumerate(trees))
    daemon = make(models={"shown": {"source": shown}}, budget=120_000)
    for source in ("shown", other):
        daemon.call("DELETE", f"/v1/leases/{granted(daemon.acquire(source))['id']}")
    granted(daemon.acquire(third))
    left = {objects.manifest_of(tree).revision for tree in (trees[0], trees[2])}
    assert {row["revision"] for row in rows(daemon, "SELECT revision FROM v_snapshots")} == left


def test_two_names_for_one_thing_both_show(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}, "other": {"source": source}})
    granted(daemon.acquire("other"))
    assert names_in(daemon, "hub") == ["models--shelf--other", "models--shelf--sdxl"]


def test_a_name_that_clients_of_the_hub_refuse_does_not_show_and_is_leased_all_the_same(make: Any, source: str) -> None:
    models = {name: {"source": source} for name in ("a--b", "with space", "folder/name", "fine")}
    daemon = make(models=models)
    for name in models:
        granted(daemon.acquire(name))
    assert names_in(daemon, "hub") == ["models--shelf--fine"]


# ---- what is broken is put right


@pytest.fixture
def shown(make: Any, source: str) -> Daemon:
    daemon = make(models={"sdxl": {"source": source}})
    granted(daemon.acquire("sdxl"))
    return daemon


def test_a_view_that_was_tampered_with_is_whole_after_a_start(shown: Daemon) -> None:
    shown.kill9()
    repository = shown.store / "hub" / "models--shelf--sdxl"
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / COMMIT / "model_index.json").unlink()
    link = repository / "snapshots" / COMMIT / "unet" / "config.json"
    link.unlink()
    link.symlink_to("/etc/passwd")
    stranger = shown.store / "hub" / "models--any--thing" / "snapshots" / ("1" * 40)
    stranger.mkdir(parents=True)
    (stranger / "x").symlink_to(f"../../../../blobs/sha256/ab/{'ab' * 32}")
    shown.start()
    assert objects.read(repository / "snapshots" / COMMIT) == TREE
    assert (repository / "refs" / "main").read_text() == COMMIT
    assert names_in(shown, "hub") == ["models--shelf--sdxl"]


def test_a_view_that_was_deleted_is_there_again_after_a_start(shown: Daemon) -> None:
    shown.kill9()
    shutil.rmtree(shown.store / "hub")
    shown.start()
    assert objects.read(shown.store / "hub" / "models--shelf--sdxl" / "snapshots" / COMMIT) == TREE


def test_a_name_that_is_configured_later_shows_from_the_start_on(shown: Daemon, source: str) -> None:
    shown.restart(models={"sdxl": {"source": source}, "new": {"source": source}})
    assert commits(shown, "new") == [COMMIT]


def test_blobs_found_wrong_do_not_show(shown: Daemon) -> None:
    digest = objects.manifest_of(TREE)["unet/config.json"].digest
    path = shown.store / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    os.chmod(path, 0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    assert granted(shown.call("POST", "/v1/verify"))["wrong"]
    assert names_in(shown, "hub") == []
    granted(shown.acquire("sdxl"))  # heals it
    assert objects.read(shown.store / "hub" / "models--shelf--sdxl" / "snapshots" / COMMIT) == TREE


def test_a_folder_that_cannot_be_written_costs_the_view_and_not_the_lease(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    (daemon.store / "hub" / "models--shelf--sdxl").write_text("in the way")
    granted(daemon.acquire("sdxl"))
    assert "does not show" in daemon.log_text
    daemon.restart()
    granted(daemon.acquire("sdxl"))


def test_what_another_put_there_is_left_alone_and_stops_nothing(shown: Daemon) -> None:
    theirs = shown.store / "hub" / "models--other--thing"
    objects.write(theirs / "snapshots" / ("1" * 40), {"config.json": b"{}"})
    (theirs / "refs").mkdir()
    (theirs / "refs" / "main").write_text("1" * 40)
    shown.restart()
    assert (theirs / "snapshots" / ("1" * 40) / "config.json").exists()
    assert commits(shown, "sdxl") == [COMMIT]


def test_a_name_that_came_to_mean_something_else_does_not_show_what_it_meant(shown: Daemon, put: Put) -> None:
    shown.restart(models={"sdxl": {"source": put(objects.model("b"), "-b")}})
    assert names_in(shown, "hub") == []


def test_what_must_be_signed_by_now_and_is_not_does_not_show(shown: Daemon, tmp_path: pathlib.Path) -> None:
    signing.pair(tmp_path, "key")
    origin = {**shown.settings["origins"]["weed"], "verify": "required", "keys": [str(tmp_path / "key.pub")]}
    shown.restart(origins={"weed": origin})
    refused(shown.acquire("sdxl"), "integrity_error")
    assert names_in(shown, "hub") == []


def test_files_with_the_longest_names_show(make: Any, put: Put) -> None:
    tree = {**TREE, f"{'x' * 250}.json": b"{}"}
    daemon = make(models={"long": {"source": put(tree)}})
    granted(daemon.acquire("long"))
    assert objects.read(daemon.store / "hub" / "models--shelf--long" / "snapshots" / commits(daemon, "long")[0]) == tree
    assert names_in(daemon, "ingest") == []


# ---- repositories of the hub itself


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.push("org/name", TREE)
        yield running


@pytest.fixture
def of_hub(make_daemon: MakeDaemon, hub: Hub) -> Any:
    def started(**settings: Any) -> Daemon:
        return make_daemon(**{"hf": {"endpoint": hub.endpoint_url}, "revalidate_s": 600, **settings})

    return started


def test_a_repository_shows_under_its_own_name_and_commit(of_hub: Any, hub: Hub) -> None:
    daemon, commit = of_hub(), hub.repos["org/name"].refs["main"]
    granted(daemon.acquire("hf://org/name"))
    repository = daemon.store / "hub" / "models--org--name"
    assert (repository / "refs" / "main").read_text() == commit
    assert objects.read(repository / "snapshots" / commit) == TREE


def test_two_selections_of_one_commit_show_as_one_that_only_grows(of_hub: Any, hub: Hub) -> None:
    daemon = of_hub()
    folder = daemon.store / "hub" / "models--org--name" / "snapshots" / hub.repos["org/name"].refs["main"]
    for pattern, shown in (("*.json", {"json"}), ("*.safetensors", {"json", "safetensors"})):
        granted(daemon.acquire("hf://org/name", allow_patterns=[pattern]))
        assert {path.rpartition(".")[2] for path in objects.read(folder)} == shown
    daemon.restart()
    assert {path.rpartition(".")[2] for path in objects.read(folder)} == {"json", "safetensors"}


def test_a_commit_asked_for_by_its_name_takes_no_branch_and_a_branch_keeps_its_own(of_hub: Any, hub: Hub) -> None:
    daemon, first = of_hub(), hub.repos["org/name"].refs["main"]
    hub.push("org/name", objects.model("dev"), branch="dev")
    granted(daemon.acquire(f"hf://org/name@{first}"))
    refs = daemon.store / "hub" / "models--org--name" / "refs"
    assert not refs.exists()
    granted(daemon.acquire("hf://org/name@dev"))
    assert objects.read(refs) == {"dev": hub.repos["org/name"].refs["dev"].encode()}


def test_a_branch_that_moves_takes_its_ref_along(of_hub: Any, hub: Hub) -> None:
    daemon = of_hub(revalidate_s=0.1)
    granted(daemon.acquire("hf://org/name"))
    commit = hub.push("org/name", objects.model("later"))
    main = daemon.store / "hub" / "models--org--name" / "refs" / "main"
    wait_until(lambda: main.read_text() == commit, what="the ref to flip")
    assert objects.read(main.parents[1] / "snapshots" / commit) == objects.model("later")


def test_a_configured_repository_is_pinned_unless_it_is_not_to_be(of_hub: Any) -> None:
    daemon = of_hub(models={"m": {"source": "hf://org/name"}})
    lease = granted(daemon.acquire("m"))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    refused(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"), "in_use")
    daemon.restart(models={"m": {"source": "hf://org/name", "view": False}})
    granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    assert names_in(daemon, "hub") == []


def test_evicting_one_selection_of_a_commit_leaves_the_others_of_it_shown(of_hub: Any, hub: Hub) -> None:
    daemon = of_hub(models={"m": {"source": "hf://org/name", "allow_patterns": ["*.json"]}})
    granted(daemon.acquire("m"))
    lease = granted(daemon.acquire("hf://org/name", allow_patterns=["*.safetensors"]))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    repository = daemon.store / "hub" / "models--org--name"
    commit = (repository / "refs" / "main").read_text()
    assert objects.read(repository / "snapshots" / commit) == {p: data for p, data in TREE.items() if p.endswith(".json")}


def test_a_repository_that_was_rolled_back_stays_there_under_other_selections_too(of_hub: Any, hub: Hub) -> None:
    daemon = of_hub()
    first = granted(daemon.acquire("hf://org/name"))
    hub.push("org/name", objects.model("later"))
    granted(daemon.call("POST", "/v1/refresh", {"source": "hf://org/name"}))
    assert granted(daemon.call("POST", "/v1/rollback", {"source": "hf://org/name"}))["revision"] == first["revision"]
    lease = granted(daemon.acquire("hf://org/name", allow_patterns=["unet/*"]))
    assert objects.read(daemon.store / lease["path"]) == {p: data for p, data in TREE.items() if p.startswith("unet/")}


def test_the_commit_of_a_lost_index_is_known_again(of_hub: Any, hub: Hub) -> None:
    daemon = of_hub()
    granted(daemon.acquire("hf://org/name"))
    daemon.kill9()
    shutil.rmtree(daemon.store / "hub")
    shutil.rmtree(daemon.store / "index")
    daemon.start()
    assert objects.read(daemon.store / "hub" / "models--org--name" / "snapshots" / hub.repos["org/name"].refs["main"]) == TREE


# ---- programs that know nothing of us


@pytest.mark.torch
def test_the_hub_s_own_programs_read_it_offline(shown: Daemon) -> None:
    environment = clean_environment(HOME=str(shown.folder), **offline(shown))
    code = "from huggingface_hub import snapshot_download; print(snapshot_download('shelf/sdxl'))"
    assert objects.read(ran(code, environment)) == TREE
    path = "from huggingface_hub import hf_hub_download; print(hf_hub_download('shelf/sdxl', 'unet/config.json'))"
    assert pathlib.Path(ran(path, environment)).read_bytes() == TREE["unet/config.json"]
    listed = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/hf", "cache", "ls"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "shelf/sdxl" in listed.stdout
    assert "inconsistenc" not in listed.stderr
