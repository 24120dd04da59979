"""`hotshelf push --sign` as a shell sees it, and what it leaves on the bucket."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from hotshelf.cli import hotshelf
from hotshelf_daemon.provenance import verify
from tests import objects, signing
from tests.conftest import BUCKET
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.signing import Pair

TREE = objects.model("pushed", unet=2_000, text_encoder=200, vae=200)
REVISION = objects.manifest_of(TREE).revision
PASSWORD = "correct horse battery staple"
Push = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return objects.write(tmp_path / "model", TREE)


@pytest.fixture
def ours(tmp_path: pathlib.Path) -> Pair:
    return signing.pair(tmp_path, "ours")


@pytest.fixture
def push(seaweedfs: SeaweedFS, recorder: Recorder, prefix: str, folder: pathlib.Path, tmp_path: pathlib.Path) -> Push:
    """`push("--sign", key)` publishes `folder` below this test's prefix, through `recorder`."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"origins": {"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)}}))

    def run(*words: object, env: dict[str, str] | None = None) -> Result:
        argv = ["push", str(folder), f"s3://{BUCKET}/{prefix}", "--config", str(config), *map(str, words)]
        return CliRunner().invoke(hotshelf, argv, env=env, prog_name="hotshelf")

    return run


def there(seaweedfs: SeaweedFS, prefix: str) -> dict[str, Any]:
    """What lies below the prefix: name → answer to GET, with its bytes as `data`."""
    with seaweedfs.client() as client:
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        found: dict[str, Any] = {}
        for entry in listed:
            answer = client.get_object(Bucket=BUCKET, Key=entry["Key"])
            found[entry["Key"].removeprefix(f"{prefix}/")] = {**answer, "data": answer["Body"].read()}
        return found


def test_a_signed_push_leaves_a_signature_named_by_revision_and_key_before_anything_names_the_manifest(
    push: Push, ours: Pair, seaweedfs: SeaweedFS, recorder: Recorder, prefix: str
) -> None:
    result = push("--sign", ours.private)
    assert result.exit_code == 0, result.output
    assert f"signed with the key {ours.trusted.id[:16]}" in result.stdout
    found = there(seaweedfs, prefix)
    name = f"manifests/{REVISION.hex}.{ours.trusted.id[:16]}.sig"
    vouched = verify(found[name]["data"], [ours.trusted], name)
    assert vouched.statement.files == {path: entry.digest for path, entry in objects.manifest_of(TREE).items()}
    assert "immutable" in found[name]["CacheControl"]
    assert found.keys() == {*objects.published(TREE), name}
    written = [one.key.removeprefix(f"{prefix}/") for one in recorder.matching(method="PUT", prefix=prefix)]
    assert written[-3:] == [f"manifests/{REVISION.hex}.json", name, "hotshelf.json"]


def test_with_tree_it_is_there_under_its_plain_name_too_and_others_verify_the_download(
    push: Push, ours: Pair, seaweedfs: SeaweedFS, prefix: str, tmp_path: pathlib.Path
) -> None:
    assert push("--sign", ours.private, "--tree").exit_code == 0
    found = {name: one["data"] for name, one in there(seaweedfs, prefix).items()}
    download = objects.write(tmp_path / "download", found)
    assert signing.others_verify(download, download / "model.sig", ours)


def test_signing_again_with_another_key_leaves_both_and_with_the_same_changes_nothing(
    push: Push, ours: Pair, seaweedfs: SeaweedFS, prefix: str, tmp_path: pathlib.Path
) -> None:
    other = signing.pair(tmp_path, "other")
    push("--sign", ours.private)
    before = {name: one["data"] for name, one in there(seaweedfs, prefix).items()}
    push("--sign", ours.private)
    assert {name: one["data"] for name, one in there(seaweedfs, prefix).items()} == before
    push("--sign", other.private)
    added = there(seaweedfs, prefix).keys() - before.keys()
    assert added == {f"manifests/{REVISION.hex}.{other.trusted.id[:16]}.sig"}


def test_an_encrypted_key_takes_its_password_from_the_environment_or_a_file(
    push: Push, seaweedfs: SeaweedFS, prefix: str, tmp_path: pathlib.Path
) -> None:
    hidden = signing.pair(tmp_path, "hidden", password=PASSWORD)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    for variable, value in (
        ("HOTSHELF_SIGN_PASSWORD", PASSWORD),
        ("HOTSHELF_SIGN_PASSWORD_FILE", str(tmp_path / "password")),
    ):
        result = push("--sign", hidden.private, env={variable: value})
        assert result.exit_code == 0, result.output
        assert PASSWORD not in result.output
    assert f"manifests/{REVISION.hex}.{hidden.trusted.id[:16]}.sig" in there(seaweedfs, prefix)


def test_a_key_that_cannot_sign_is_refused_before_anything_is_sent(
    push: Push, recorder: Recorder, ours: Pair, tmp_path: pathlib.Path
) -> None:
    hidden = signing.pair(tmp_path, "hidden", password=PASSWORD)
    for words, env in (
        (("--sign", hidden.private), {}),
        (("--sign", hidden.private), {"HOTSHELF_SIGN_PASSWORD": f"not {PASSWORD}"}),
        (("--sign", hidden.private), {"HOTSHELF_SIGN_PASSWORD_FILE": str(tmp_path / "none")}),
        (("--sign", ours.public), {}),
        (("--sign", tmp_path / "none"), {}),
    ):
        result = push(*words, env=env)
        assert result.exit_code in (2, 78), result.output
        assert PASSWORD not in result.output
    assert recorder.requests == []


def test_a_private_key_in_the_folder_is_not_published(push: Push, folder: pathlib.Path, recorder: Recorder) -> None:
    within = signing.pair(folder, "ours")
    result = push("--sign", within.private)
    assert result.exit_code == 2
    assert "ours.pem" in result.stderr
    assert recorder.requests == []


def test_an_older_signature_in_the_folder_stays_behind(
    push: Push, folder: pathlib.Path, ours: Pair, seaweedfs: SeaweedFS, prefix: str
) -> None:
    (folder / "model.sig").write_bytes(b"an older one")
    assert json.loads(push("--sign", ours.private, "--format", "json").stdout)["revision"] == REVISION
    assert json.loads(push("--format", "json").stdout)["revision"] != REVISION
    assert json.loads(push("--format", "json").stdout)["signed_by"] is None
