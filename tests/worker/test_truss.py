"""A Truss with every key that its docs have, imported, served and held: cold, warm, and after the bucket has changed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
from typing import Any

import pytest
import yaml

from tests import objects
from tests.daemon_process import Daemon
from tests.faults.scripted_gcs import ScriptedGcs, service_account_key
from tests.servers.hub import Hub
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

TREE, LATER = objects.model("deployed"), objects.model("deployed later")
WORKER = """
import json, sys
from hotshelf.adapters.truss import acquire_model_cache
with acquire_model_cache(sys.argv[1], timeout=60) as cache:
    print(json.dumps({name: [lease.revision, str(lease.path)] for name, lease in cache.items()}))
"""


@pytest.fixture
def truss(tmp_path: pathlib.Path, seaweedfs: SeaweedFS, bucket: str, prefix: str) -> pathlib.Path:
    """Its folder. The account is the right one, and private."""
    folder = tmp_path / "truss"
    (folder / "data").mkdir(parents=True)
    entry = {
        "repo_id": f"s3://{bucket}/{prefix}", "revision": "main", "kind": "s3",
        "allow_patterns": ["*.safetensors", "*.json", "*.txt"], "ignore_patterns": [f"{prefix}/tokenizer/*"],
    }  # fmt: skip
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model_name": "sdxl", "python_version": "py311", "model_cache": [entry]})
    )
    account = {"aws_access_key_id": seaweedfs.access_key_id, "aws_secret_access_key": seaweedfs.secret_access_key}
    (folder / "data" / "s3_credentials.json").write_text(json.dumps({**account, "aws_region": "us-east-1"}))
    objects.put(seaweedfs, bucket, prefix, TREE)
    return folder


def chosen(tree: objects.Tree) -> objects.Tree:
    return {path: data for path, data in tree.items() if not path.startswith("tokenizer/")}


def printed(truss: pathlib.Path) -> dict[str, Any]:
    """By `hotshelf import-truss`."""
    command = [f"{sysconfig.get_path('scripts')}/hotshelf", "import-truss", str(truss / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    settings: dict[str, Any] = yaml.safe_load(done.stdout)
    return settings


def imported(truss: pathlib.Path, recorder: Recorder) -> dict[str, Any]:
    """With this machine's S3 in the place of AWS."""
    settings = printed(truss)
    settings["origins"]["truss"] |= {"endpoint_url": recorder.endpoint_url, "addressing_style": "path"}
    return settings


def held(daemon: Daemon, truss: pathlib.Path) -> dict[str, list[str]]:
    command = [sys.executable, "-c", WORKER, str(truss / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=daemon.environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def shows(folder: pathlib.Path, tree: objects.Tree) -> bool:
    return folder.exists() and objects.read(folder) == tree


def test_a_truss_is_served_cold_warm_and_anew(
    truss: pathlib.Path, recorder: Recorder, seaweedfs: SeaweedFS, bucket: str, prefix: str, tmp_path: pathlib.Path
) -> None:
    settings = imported(truss, recorder)
    with Daemon(tmp_path / "d", **settings, revalidate_s=0.1) as daemon:
        where = daemon.store / "model_cache" / bucket / prefix
        wait_until(lambda: shows(where, chosen(TREE)), what="the preloaded files")
        assert seaweedfs.secret_access_key not in daemon.log_text
        assert {request.method for request in recorder.requests} <= {"GET", "HEAD"}  # which the policy in the README allows

        daemon.restart(revalidate_s=3_600)
        before = recorder.bytes_for("")
        revision, path = held(daemon, truss)[f"{bucket}/{prefix}"]
        assert revision == objects.manifest_of(chosen(TREE)).revision
        assert os.path.samefile(path, where)
        assert shows(where, chosen(TREE))
        assert recorder.bytes_for("") == before

        daemon.restart(revalidate_s=0.1)
        objects.put(seaweedfs, bucket, prefix, LATER)  # of which nobody tells the daemon, and nobody asks for it
        wait_until(lambda: shows(where, chosen(LATER)), what="the new revision")


def test_a_private_bucket_of_google_s_is_served_with_truss_s_key_and_lies_below_its_name(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    with ScriptedGcs() as server:
        server.token = "a token"
        server.objects |= {f"sdxl/{path}": data for path, data in TREE.items()}
        (tmp_path / "data" / "service_account.json").write_text(service_account_key(server.endpoint_url))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"hf_cache": [{"repo_id": "gs://tuned/sdxl", "kind": "gcs"}]}))
        settings = printed(tmp_path)
        settings["gcs"]["endpoint_url"] = server.endpoint_url
        with Daemon(tmp_path / "d", **settings) as daemon:
            wait_until(lambda: shows(daemon.store / "model_cache" / "tuned" / "sdxl", TREE), what="the preloaded files")
            assert held(daemon, tmp_path)["tuned/sdxl"][0] == objects.manifest_of(TREE).revision


def test_a_gated_repository_is_served_with_truss_s_token_and_lies_in_its_volume_s_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "hf_access_token").write_text("hf_of-truss")
    with Hub() as hub:
        commit = hub.push("acme/sdxl", TREE)
        hub.repos["acme/sdxl"].private = True
        hub.repos["acme/sdxl"].readers.add("hf_of-truss")
        hub.tokens.add("hf_of-truss")
        entry = {"repo_id": "acme/sdxl", "revision": commit, "use_volume": True, "volume_folder": "sdxl", "kind": "hf"}
        plain = {"repo_id": "acme/sdxl", "allow_patterns": ["unet/*"], "runtime_secret_name": "hf_access_token"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model_cache": [entry, plain]}))
        settings = {**printed(tmp_path), "hf": {"endpoint": hub.endpoint_url, "token_file": str(tmp_path / "hf_access_token")}}
        with Daemon(tmp_path / "d", **settings) as daemon:
            wait_until(lambda: shows(daemon.store / "model_cache" / "sdxl", TREE), what="the preloaded files")
            leases = held(daemon, tmp_path)
            unet = {path: data for path, data in TREE.items() if path.startswith("unet/")}
            assert leases["acme/sdxl"][0] == objects.manifest_of(unet).revision
            assert leases[f"acme/sdxl@{commit}"][0] == objects.manifest_of(TREE).revision
            main = daemon.store / "hub" / "models--acme--sdxl" / "refs" / "main"
            assert main.read_text() == commit
            assert shows(main.parents[1] / "snapshots" / commit, TREE)  # where the Hugging Face libraries look
            assert "hf_of-truss" not in daemon.log_text


def test_in_a_worker_the_folder_of_truss_is_a_link(
    truss: pathlib.Path, recorder: Recorder, bucket: str, prefix: str, tmp_path: pathlib.Path
) -> None:
    with Daemon(tmp_path / "d", **imported(truss, recorder)) as daemon:
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / "model_cache").symlink_to(daemon.store / "model_cache")
        wait_until(lambda: shows(tmp_path / "app" / "model_cache" / bucket / prefix, chosen(TREE)), what="the files")


def test_an_account_that_has_expired_is_read_anew(
    truss: pathlib.Path, recorder: Recorder, seaweedfs: SeaweedFS, bucket: str, prefix: str, tmp_path: pathlib.Path
) -> None:
    file = truss / "data" / "s3_credentials.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps({**good, "aws_secret_access_key": "of-yesterday"}))
    with Daemon(tmp_path / "d", **imported(truss, recorder)) as daemon:
        assert daemon.acquire(f"{bucket}/{prefix}").body["code"] == "access_denied"
        file.write_text(json.dumps(good))
        assert daemon.acquire(f"{bucket}/{prefix}").status == 200
        assert "of-yesterday" not in daemon.log_text
