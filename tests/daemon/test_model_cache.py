"""`model_cache/`: what Truss's list names lies where Truss would put it, before anybody asks, and newer when it is."""

from __future__ import annotations

import os
import pathlib
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests import objects
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import blobs_on_disk, granted, refused, rows
from tests.daemon_process import Daemon
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TREE = objects.model("truss")
LATER = objects.model("truss later")
REVISION = objects.manifest_of(TREE).revision


@pytest.fixture
def make(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder) -> Any:
    """Daemons with this list, whose origin is read through the recorder."""

    def started(*entries: dict[str, Any], **settings: Any) -> Daemon:
        origins = {"weed": seaweedfs.settings(endpoint_url=recorder.endpoint_url)}
        return make_daemon(**{"origins": origins, "model_cache": [*entries], **settings})

    return started


@pytest.fixture
def source(put: Put) -> str:
    return put(TREE)


def at(daemon: Daemon, source: str) -> pathlib.Path:
    """Where Truss puts what `source` names."""
    return daemon.store / "model_cache" / source.partition("://")[2]


def shows(path: pathlib.Path, tree: objects.Tree) -> bool:
    try:
        return objects.read(path) == tree
    except OSError:
        return False


def there(path: pathlib.Path, tree: objects.Tree) -> None:
    wait_until(lambda: shows(path, tree), what=f"{path.name} to show")


# ---- the life of it


def test_it_is_there_before_anybody_asks_and_a_restart_asks_the_origin_for_no_byte(
    make: Any, source: str, recorder: Recorder
) -> None:
    entry = {"repo_id": source, "kind": "s3", "allow_patterns": ["*.safetensors", "*.json"], "ignore_patterns": ["vae/*"]}
    daemon = make(entry)
    chosen = {
        path: data for path, data in TREE.items() if path.endswith(("safetensors", "json")) and not path.startswith("vae/")
    }
    there(at(daemon, source), chosen)
    assert os.readlink(at(daemon, source)).startswith("../../snapshots/")  # on every mount of the whole store
    name = source.partition("://")[2]
    assert granted(daemon.acquire(name))["revision"] == objects.manifest_of(chosen).revision
    seen = recorder.bytes_for("")
    daemon.restart()
    assert shows(at(daemon, source), chosen)
    granted(daemon.acquire(name))
    assert recorder.bytes_for("") == seen


def test_a_whole_bucket_lies_below_its_name(make: Any, s3: S3Client) -> None:
    bucket = f"truss-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=bucket)
    objects.upload(s3, bucket, "", TREE)
    daemon = make({"repo_id": bucket, "kind": "s3"})
    there(daemon.store / "model_cache" / bucket, TREE)
    assert os.readlink(daemon.store / "model_cache" / bucket) == f"../snapshots/{REVISION.hex}"


def test_a_new_revision_takes_the_folder_at_once_and_readers_of_the_old_one_keep_it(make: Any, source: str, put: Put) -> None:
    daemon = make({"repo_id": source}, revalidate_s=0.1)
    there(at(daemon, source), TREE)
    with (at(daemon, source) / "unet/config.json").open("rb") as reader:
        put(LATER)
        name = source.partition("://")[2]
        wait_until(lambda: granted(daemon.acquire(name)) and shows(at(daemon, source), LATER), what="the folder to turn")
        assert reader.read() == TREE["unet/config.json"]
    assert shows(daemon.store / "snapshots" / REVISION.hex, TREE)


def test_several_folders_of_one_bucket_show_beside_each_other(make: Any, put: Put) -> None:
    one, other = put(TREE, "-a"), put(LATER, "-b")
    daemon = make({"repo_id": one}, {"repo_id": other})
    there(at(daemon, one), TREE)
    there(at(daemon, other), LATER)


def test_an_object_by_its_own_key_shows_as_that_file(make: Any, put: Put) -> None:
    source = put({"style.safetensors": objects.lora("truss")}) + "/style.safetensors"
    daemon = make({"repo_id": source})
    wait_until(at(daemon, source).is_file, what="the file to show")
    assert at(daemon, source).read_bytes() == objects.lora("truss")


def test_with_use_volume_it_lies_in_the_folder_that_truss_is_given(make: Any, source: str) -> None:
    daemon = make({"repo_id": source, "kind": "s3", "use_volume": True, "volume_folder": "my/sdxl"})
    there(daemon.store / "model_cache" / "my" / "sdxl", TREE)
    assert not at(daemon, source).exists()


def test_entries_of_one_folder_are_one_download_and_one_tree(make: Any, source: str) -> None:
    daemon = make(*({"repo_id": source, "allow_patterns": [glob]} for glob in ("unet/*", "vae/*", "*.json")))
    wanted = {path: data for path, data in TREE.items() if path.startswith(("unet/", "vae/")) or path.endswith(".json")}
    there(at(daemon, source), wanted)
    assert len(rows(daemon, "SELECT * FROM v_snapshots")) == 1


def test_it_is_pinned_as_long_as_the_list_names_it_and_leaves_with_it(make: Any, source: str) -> None:
    daemon = make({"repo_id": source})
    there(at(daemon, source), TREE)
    refused(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"), "in_use")
    daemon.restart(model_cache=[])
    assert os.listdir(daemon.store / "model_cache") == []
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))
    assert blobs_on_disk(daemon) == {}


def test_what_is_unpinned_by_hand_and_evicted_leaves_the_folder_first(make: Any, source: str) -> None:
    daemon = make({"repo_id": source})
    there(at(daemon, source), TREE)
    name = source.partition("://")[2].replace("/", "%2F")
    assert daemon.call("DELETE", f"/v1/pins/{name}").status < 300
    granted(daemon.call("DELETE", f"/v1/snapshots/{REVISION}"))
    assert os.listdir(daemon.store / "model_cache") == []


def test_a_name_among_models_is_what_that_says_and_truss_s_folder_stays_away(make: Any, put: Put) -> None:
    listed, other = put(TREE, "-listed"), put(LATER, "-other")
    name = listed.partition("://")[2]
    daemon = make({"repo_id": listed}, models={name: {"source": other}})
    assert granted(daemon.acquire(name))["revision"] == objects.manifest_of(LATER).revision
    assert os.listdir(daemon.store / "model_cache") == []


# ---- what is broken is put right


@pytest.fixture
def shown(make: Any, source: str) -> Daemon:
    daemon = make({"repo_id": source})
    there(at(daemon, source), TREE)
    return daemon


def test_a_view_that_was_tampered_with_is_right_after_a_start(shown: Daemon, source: str) -> None:
    shown.kill9()
    link, root = at(shown, source), shown.store / "model_cache"
    link.unlink()
    link.mkdir()
    (link / "evil.json").write_text("{}")
    (root / "mine").write_text("a stranger's")
    (root / "gone").mkdir()
    (root / "gone" / "m").symlink_to(f"../../snapshots/{'0' * 64}")
    shown.start()
    assert shows(link, TREE)
    assert sorted(os.listdir(root)) == sorted(["mine", link.parent.name])


def test_a_link_to_another_snapshot_or_in_the_place_of_a_parent_is_put_right(shown: Daemon, source: str, put: Put) -> None:
    other = granted(shown.acquire(put(LATER, "-other")))["revision"].removeprefix("sha256:")
    shown.kill9()
    link = at(shown, source)
    link.unlink()
    link.symlink_to(f"../../snapshots/{other}")
    shown.start()
    assert shows(link, TREE)
    shown.kill9()
    shutil.rmtree(link.parent)
    link.parent.symlink_to(f"../snapshots/{other}")
    shown.start()
    assert shows(link, TREE)
    assert shows(shown.store / "snapshots" / other, LATER)


def test_a_view_that_was_deleted_is_there_again_after_a_start(shown: Daemon, source: str) -> None:
    shown.kill9()
    shutil.rmtree(shown.store / "model_cache")
    shown.start()
    assert shows(at(shown, source), TREE)


def test_a_lost_index_is_rebuilt_with_the_view(shown: Daemon, source: str, recorder: Recorder) -> None:
    shown.kill9()
    seen = recorder.bytes_for("")
    shutil.rmtree(shown.store / "index")
    shown.start()
    assert shows(at(shown, source), TREE)
    assert recorder.bytes_for("") == seen


def test_blobs_found_wrong_do_not_show_until_they_are_healed(shown: Daemon, source: str) -> None:
    digest = objects.manifest_of(TREE)["unet/config.json"].digest
    path = shown.store / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    os.chmod(path, 0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    assert granted(shown.call("POST", "/v1/verify"))["wrong"]
    assert os.listdir(shown.store / "model_cache") == []
    granted(shown.acquire(source))
    assert shows(at(shown, source), TREE)


def test_a_blob_lost_while_nobody_looked_does_not_show_and_is_fetched_again(shown: Daemon, source: str) -> None:
    shown.kill9()
    digest = objects.manifest_of(TREE)["unet/config.json"].digest
    (shown.store / "blobs" / "sha256" / digest.hex[:2] / digest.hex).unlink()
    shown.start()
    there(at(shown, source), TREE)


def test_what_is_left_out_of_the_list_is_a_line_in_the_log(make: Any, source: str) -> None:
    daemon = make({"repo_id": source, "revision": "v2", "tokn": "s3cr3t"})
    assert "'tokn'" in daemon.log_text
    assert "revision" in daemon.log_text
    assert "s3cr3t" not in daemon.log_text
