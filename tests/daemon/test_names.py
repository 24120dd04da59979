"""`names/`: every configured name at a path that stays, whatever it stands for."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from tests import objects
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import blobs_on_disk, granted
from tests.daemon_process import Daemon
from tests.servers.hub import Hub
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

TREE = objects.model("named")
LATER = objects.model("named later")
REVISION = objects.manifest_of(TREE).revision


@pytest.fixture
def source(put: Put) -> str:
    return put(TREE)


@pytest.fixture
def make(make_daemon: MakeDaemon, seaweedfs: SeaweedFS) -> Any:
    def started(**settings: Any) -> Daemon:
        return make_daemon(origins={"weed": seaweedfs.settings()}, **settings)

    return started


def names(daemon: Daemon) -> list[str]:
    root = daemon.store / "names"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink())


def test_models_and_loras_show_apart_and_follow_the_bucket_and_its_rollback(make: Any, source: str, put: Put) -> None:
    style = put({"style.safetensors": objects.lora("named")}, "-l") + "/style.safetensors"
    daemon = make(models={"sdxl": {"source": source}}, loras={"style": {"source": style}})
    assert names(daemon) == []
    granted(daemon.acquire("sdxl"))
    granted(daemon.acquire("style"))
    assert names(daemon) == ["loras/style", "models/sdxl"]
    sdxl = daemon.store / "names" / "models" / "sdxl"
    assert os.readlink(sdxl) == f"../../snapshots/{REVISION.hex}"  # on every mount of the whole store
    assert objects.read(daemon.store / "names" / "loras" / "style") == {"style.safetensors": objects.lora("named")}
    put(LATER)
    for call, tree in (("refresh", LATER), ("rollback", TREE), ("refresh", LATER)):
        granted(daemon.call("POST", f"/v1/{call}", {"source": "sdxl"}))
        assert objects.read(sdxl) == tree


def test_a_file_that_is_called_as_its_name_is_still_in_a_folder_of_that_name(make: Any, put: Put) -> None:
    source = put({"s.safetensors": objects.lora("same")}) + "/s.safetensors"
    daemon = make(loras={"s.safetensors": {"source": source}})
    granted(daemon.acquire("s.safetensors"))
    assert objects.read(daemon.store / "names" / "loras" / "s.safetensors") == {"s.safetensors": objects.lora("same")}


def test_a_repository_of_the_hub_shows_by_its_configured_name_too(make_daemon: MakeDaemon) -> None:
    with Hub() as hub:
        hub.push("org/name", TREE)
        daemon = make_daemon(hf={"endpoint": hub.endpoint_url}, models={"m": {"source": "hf://org/name"}})
        granted(daemon.acquire("m"))
        assert objects.read(daemon.store / "names" / "models" / "m") == TREE


def test_what_is_evicted_or_no_longer_configured_leaves_no_link(make: Any, source: str, put: Put) -> None:
    daemon = make(models={"a": {"source": source}, "b": {"source": put(LATER, "-b")}})
    lease = granted(daemon.acquire("a"))
    granted(daemon.acquire("b"))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))
    assert names(daemon) == ["models/b"]
    daemon.restart(models={"a": {"source": source}})
    assert names(daemon) == []


def test_names_that_could_leave_their_folder_or_be_one_have_no_place_and_are_leased_all_the_same(
    make: Any, source: str
) -> None:
    odd = ("folder/name", ".hidden", "x" * 201)
    daemon = make(models={name: {"source": source} for name in (*odd, "with space", "fine")})
    for name in odd:
        granted(daemon.acquire(name))
    assert names(daemon) == ["models/fine", "models/with space"]


def test_blobs_found_wrong_do_not_show_until_they_are_healed(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    granted(daemon.acquire("sdxl"))
    digest = objects.manifest_of(TREE)["unet/config.json"].digest
    path = daemon.store / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    os.chmod(path, 0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    assert granted(daemon.call("POST", "/v1/verify"))["wrong"]
    assert names(daemon) == []
    granted(daemon.acquire("sdxl"))
    assert objects.read(daemon.store / "names" / "models" / "sdxl") == TREE


def test_after_a_start_it_is_right_whatever_was_done_to_it_and_what_is_another_s_stays(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source}})
    granted(daemon.acquire("sdxl"))
    daemon.kill9()
    root = daemon.store / "names"
    (root / "models" / "sdxl").unlink()
    (root / "models" / "sdxl").symlink_to(f"../../snapshots/{'0' * 64}")
    (root / "models" / "gone").symlink_to(f"../../snapshots/{REVISION.hex}")
    (root / "mine").write_text("a stranger's")
    daemon.start()
    assert names(daemon) == ["models/sdxl"]
    assert objects.read(root / "models" / "sdxl") == TREE
    assert (root / "mine").exists()
    daemon.kill9()
    shutil.rmtree(root)
    shutil.rmtree(daemon.store / "index")
    daemon.start()
    assert objects.read(root / "models" / "sdxl") == TREE


def test_a_preloaded_name_shows_before_anybody_asks_and_is_kept_for_readers_without_a_lease(make: Any, source: str) -> None:
    daemon = make(models={"sdxl": {"source": source, "preload": True, "view": True}})
    wait_until(lambda: names(daemon) == ["models/sdxl"], what="the name to show")
    assert daemon.call("DELETE", f"/v1/snapshots/{REVISION}").body["code"] == "in_use"
    assert blobs_on_disk(daemon)
