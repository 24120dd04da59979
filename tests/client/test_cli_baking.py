"""`hotshelf bake`: what an image is built with, and what a daemon of that image makes of it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests import objects
from tests.conftest import BUCKET
from tests.daemon.looking import assert_index_and_disk_agree, granted, rows, tree_of
from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

TREES = {"sdxl": objects.model("baked"), "flux": objects.model("other")}


@pytest.fixture
def configuration(seaweedfs: SeaweedFS, recorder: Recorder, prefix: str) -> dict[str, Any]:
    for name, tree in TREES.items():
        objects.put(seaweedfs, BUCKET, f"{prefix}/{name}", objects.published(tree))
    models = {name: {"source": f"s3://{BUCKET}/{prefix}/{name}"} for name in TREES}
    return {"origins": {"it": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)}, "models": models}


def baked(
    folder: pathlib.Path, configuration: dict[str, Any], *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    argv = [sys.executable, "-m", "hotshelf", "bake", str(folder / "config.yaml"), str(folder / "d" / "store"), *words]
    os.makedirs(folder / "d", exist_ok=True)
    env = clean_environment(HOME=str(folder), **environment)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)


def test_what_was_baked_is_served_at_once_with_the_origin_away(
    tmp_path: pathlib.Path, configuration: dict[str, Any], recorder: Recorder
) -> None:
    done = baked(tmp_path, configuration, "--format", "json")
    assert done.returncode == 0, done.stderr
    told = {one["name"]: one["revision"] for one in json.loads(done.stdout)["baked"]}
    assert told == {name: objects.manifest_of(tree).revision for name, tree in TREES.items()}
    with recorder.down(), Daemon(tmp_path / "d", **configuration) as daemon:
        for name, tree in TREES.items():
            assert tree_of(daemon, granted(daemon.acquire(name))) == tree
        assert {row["outcome"] for row in rows(daemon, "SELECT outcome FROM v_requests WHERE id > 2")} == {"hit"}
        assert_index_and_disk_agree(daemon)


def test_nothing_of_the_baking_holds_anything_afterwards(tmp_path: pathlib.Path, configuration: dict[str, Any]) -> None:
    assert baked(tmp_path, configuration).returncode == 0
    assert sorted(os.listdir(tmp_path / "d" / "store" / "index")) == ["index.db"]  # no WAL: a plain read-only open works
    with Daemon(tmp_path / "d", **configuration) as daemon:
        assert rows(daemon, "SELECT * FROM v_leases") == []


def test_baking_again_fetches_what_is_new_and_nothing_else(
    tmp_path: pathlib.Path, configuration: dict[str, Any], recorder: Recorder
) -> None:
    one = {**configuration, "models": {"sdxl": configuration["models"]["sdxl"]}}
    assert baked(tmp_path, one).returncode == 0
    recorder.reset()
    assert baked(tmp_path, configuration).returncode == 0
    new = {objects.Digest.of(data) for data in TREES["flux"].values()} - {objects.Digest.of(d) for d in TREES["sdxl"].values()}
    fetched = {one.key.rpartition("/")[2] for one in recorder.requests if "/blobs/sha256/" in one.key}
    assert fetched == {digest.hex for digest in new}


def test_what_is_not_there_fails_the_build_and_is_named(tmp_path: pathlib.Path, configuration: dict[str, Any]) -> None:
    configuration["models"]["gone"] = {"source": f"s3://{BUCKET}/nowhere"}
    done = baked(tmp_path, configuration)
    assert done.returncode == 3
    assert "nowhere" in done.stderr


def test_models_that_do_not_fit_together_fail_the_build(tmp_path: pathlib.Path, configuration: dict[str, Any]) -> None:
    configuration["budget"] = max(objects.size_of(tree) for tree in TREES.values()) + 10_000
    assert baked(tmp_path, configuration).returncode == 5


def test_no_key_that_signs_goes_into_the_image(tmp_path: pathlib.Path, configuration: dict[str, Any]) -> None:
    assert baked(tmp_path, configuration).returncode == 0
    assert not list((tmp_path / "d" / "store").glob(".*.key"))


def test_an_index_that_would_not_be_part_of_the_image_is_refused(tmp_path: pathlib.Path, configuration: dict[str, Any]) -> None:
    configuration["index"] = {"path": str(tmp_path / "elsewhere" / "index.db")}
    done = baked(tmp_path, configuration)
    assert done.returncode == 78
    assert "index.path" in done.stderr


def test_a_configuration_that_names_nothing_is_refused(tmp_path: pathlib.Path) -> None:
    done = baked(tmp_path, {})
    assert done.returncode == 78
    assert "names nothing" in done.stderr


def test_a_daemon_that_does_not_start_says_why_and_leaks_no_secret(
    tmp_path: pathlib.Path, configuration: dict[str, Any]
) -> None:
    configuration["bundles"] = {"key_file": "/proc/nothing.key"}
    done = baked(tmp_path, configuration)
    assert done.returncode == 78
    assert "/proc/nothing.key" in done.stderr
    assert configuration["origins"]["it"]["secret_access_key"] not in done.stdout + done.stderr
