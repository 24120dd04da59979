"""Origins that require signatures: what a trusted key has signed is served, and nothing else is, whatever lies there."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf_daemon.provenance.envelope import MAX_SIGNATURE_BYTES
from tests import objects, signing
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import blobs_on_disk, granted, index_of, names_in, refused, rows, tree_of, value
from tests.daemon_process import Daemon
from tests.objects import Digest, Tree
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.signing import Pair
from tests.waiting import wait_until

Prefix = str
FREE = "free-weights"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return signing.pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return signing.pair(tmp_path_factory.mktemp("keys"), "other")


def requiring(seaweedfs: SeaweedFS, wire: Recorder, *trusted: Pair) -> dict[str, Any]:
    keys = [str(pair.public) for pair in trusted]
    return {"weed": seaweedfs.settings(BUCKET, endpoint_url=wire.endpoint_url, verify="required", keys=keys)}


def not_requiring(seaweedfs: SeaweedFS, wire: Recorder) -> dict[str, Any]:
    return {"weed": seaweedfs.settings(BUCKET, endpoint_url=wire.endpoint_url)}


@pytest.fixture(scope="module")
def kept_strict(seaweedfs: SeaweedFS, wire: Recorder, ours: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("strict"), origins=requiring(seaweedfs, wire, ours)) as daemon:
        yield daemon


@pytest.fixture
def strict(kept_strict: Daemon, wire: Recorder) -> Iterator[Daemon]:
    """A daemon whose one origin requires `ours`, the same for all tests: for those that change nothing for others."""
    yield kept_strict
    wire.heal()


@pytest.fixture
def make_strict(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder) -> Callable[..., Daemon]:
    """`make_strict(ours, other)`: one that may be restarted, reading through `recorder`."""

    def make(*trusted: Pair, **settings: Any) -> Daemon:
        return make_daemon(origins=requiring(seaweedfs, recorder, *trusted), revalidate_s=600, **settings)

    return make


def signed(tree: Tree, *pairs: Pair) -> Tree:
    """What `hotshelf push --sign` leaves below a prefix."""
    return {**objects.published(tree), **{signature(tree, pair): pair.sign(tree) for pair in pairs}}


def signature(tree: Tree, pair: Pair) -> str:
    return f"manifests/{objects.manifest_of(tree).revision.hex}.{pair.trusted.id[:16]}.sig"


def model(prefix: Prefix) -> Tree:
    """A small model that no other test has."""
    return objects.model(prefix, unet=5_000, text_encoder=2_000, vae=1_000)


def nothing_served(daemon: Daemon, source: str, why: str) -> dict[str, Any]:
    """Refused as bytes that are not what they claim to be, and nothing visible; the problem."""
    problem = refused(daemon.acquire(source), "integrity_error")
    assert why in problem["detail"]
    assert problem["retryable"] is False
    assert rows(daemon, "SELECT * FROM v_refs WHERE source LIKE ? || '%'", source) == []
    assert rows(daemon, "SELECT * FROM v_leases WHERE source LIKE ? || '%'", source) == []
    return problem


def weights_fetched(wire: Recorder, prefix: Prefix) -> int:
    """Bytes of objects that are neither manifest, pointer nor signature."""
    about = ("manifests/", "hotshelf.json", "model.sig")
    reads = [one for one in wire.matching(prefix=f"{prefix}/") if one.is_object_read]
    return sum(one.body_bytes for one in reads if not one.key.removeprefix(f"{prefix}/").startswith(about))


# ---- published and signed


def test_what_a_trusted_key_has_signed_is_served_and_whose_it_was_is_on_record(
    strict: Daemon, put: Put, prefix: Prefix, ours: Pair
) -> None:
    source = put(signed(model(prefix), ours))
    lease = granted(strict.acquire(source))
    assert tree_of(strict, lease) == model(prefix)
    assert value(strict, "SELECT signed_by FROM v_refs WHERE source = ?", source) == ours.trusted.id
    assert granted(strict.call("GET", f"/v1/snapshots/{lease['revision']}"))["signed_by"] == [ours.trusted.id]


def test_a_hit_on_what_was_verified_asks_the_origin_nothing(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix, ours: Pair
) -> None:
    source = put(signed(model(prefix), ours))
    first = granted(strict.acquire(source))
    asked = wire.count(prefix=prefix)
    assert granted(strict.acquire(source))["revision"] == first["revision"]
    assert value(strict, "SELECT outcome FROM v_requests WHERE source = ? ORDER BY id DESC", source) == "hit"
    assert wire.count(prefix=prefix) - asked <= 3  # the background's look whether anything has changed


def test_what_nobody_signed_is_refused_before_a_byte_of_weights_is_fetched(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix
) -> None:
    source = put(objects.published(model(prefix)))
    problem = nothing_served(strict, source, f"{source} is not signed")
    assert "hotshelf push" in problem["hint"]
    assert weights_fetched(wire, prefix) == 0
    assert wire.count(prefix=prefix) <= 6  # one look at each place where a signature may lie, and no second one
    assert 'hotshelf_verify_failures_total{reason="signature"}' in strict.get_http("/metrics").body


def test_what_it_would_resolve_to_is_refused_as_well(strict: Daemon, put: Put, prefix: Prefix) -> None:
    source = put(objects.published(model(prefix)))
    refused(strict.call("POST", "/v1/resolve", {"source": source}), "integrity_error")


def test_a_pinned_revision_needs_its_signature_too(strict: Daemon, put: Put, prefix: Prefix, ours: Pair) -> None:
    tree = model(prefix)
    pinned = f"{put(objects.published(tree))}@{objects.manifest_of(tree).revision}"
    nothing_served(strict, pinned, "is not signed")
    put(signed(tree, ours))
    assert tree_of(strict, granted(strict.acquire(pinned))) == tree


def test_a_part_by_patterns_is_vouched_for_by_the_signature_of_the_whole(
    strict: Daemon, put: Put, prefix: Prefix, ours: Pair
) -> None:
    lease = granted(strict.acquire(put(signed(model(prefix), ours)), allow_patterns=["unet/*"]))
    assert {file["path"] for file in lease["files"]} == {path for path in model(prefix) if path.startswith("unet/")}


def test_files_that_execute_are_left_out_of_what_is_signed_too(strict: Daemon, put: Put, prefix: Prefix, ours: Pair) -> None:
    tree = {**model(prefix), "evil.py": b"import os"}
    lease = granted(strict.acquire(put(signed(tree, ours))))
    assert (tree_of(strict, lease), lease["skipped"]) == (model(prefix), [{"path": "evil.py", "reason": "python code"}])


def tampered(data: bytes) -> bytes:
    body = json.loads(data)
    payload = base64.b64decode(body["dsseEnvelope"]["payload"]).replace(b'"name":"unet', b'"name":"UNET')
    body["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda tree, ours, other: other.sign(tree), "not trusted for this origin"),
        (lambda tree, ours, other: ours.sign({**tree, "unet/config.json": b"{ }"}), "unet/config.json has the digest"),
        (lambda tree, ours, other: ours.sign({k: v for k, v in tree.items() if "vae" not in k}), "vae/config.json is not"),
        (lambda tree, ours, other: ours.sign({**tree, "more.json": b"{}"}), "more.json was signed and is not there"),
        (lambda tree, ours, other: ours.sign({"another/model.safetensors": b"x"}), "was signed and is not there"),
        (lambda tree, ours, other: tampered(ours.sign(tree)), "is broken"),
        (lambda tree, ours, other: ours.sign(tree)[:-40], "not valid JSON"),
        (lambda tree, ours, other: ours.sign(tree)[:-40].ljust(MAX_SIGNATURE_BYTES + 1), "bytes"),
        (lambda tree, ours, other: b"", "not valid JSON"),
        (lambda tree, ours, other: b"[" * 5_000, "not valid JSON"),
        (lambda tree, ours, other: b"[" + b"[]," * 1_000_000, "far more values"),
        (lambda tree, ours, other: json.dumps({"mediaType": "x", "dsseEnvelope": None}).encode(), "no Sigstore bundle"),
    ],
    ids=[
        "another key", "another digest", "a file that is not named", "a file taken away", "another prefix's", "changed",
        "truncated", "huge", "empty", "deep", "wide", "malformed",
    ],
)  # fmt: skip
def test_a_signature_that_is_not_this_model_s_is_refused_before_a_byte_of_weights_is_fetched(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix, ours: Pair, other: Pair,
    make: Callable[[Tree, Pair, Pair], bytes], why: str,
) -> None:  # fmt: skip
    tree = model(prefix)
    source = put({**objects.published(tree), signature(tree, ours): make(tree, ours, other)})
    problem = nothing_served(strict, source, why)
    assert prefix in problem["detail"]
    assert weights_fetched(wire, prefix) == 0
    assert wire.count(prefix=prefix) <= 6


def test_a_good_signature_is_found_beside_a_bad_one(strict: Daemon, put: Put, prefix: Prefix, ours: Pair) -> None:
    tree = model(prefix)
    source = put({**objects.published(tree), signature(tree, ours): b"{}", "model.sig": ours.sign(tree)})
    assert tree_of(strict, granted(strict.acquire(source))) == tree


def test_an_origin_that_is_down_is_not_an_unsigned_one(strict: Daemon, put: Put, wire: Recorder, prefix: Prefix) -> None:
    source = put(objects.published(model(prefix)))
    wire.answer(503, prefix=f"{prefix}/manifests/", times=None)
    assert refused(strict.acquire(source), "origin_unavailable")["retryable"] is True


# ---- signed by others


def test_a_plain_folder_that_model_signing_signed_is_served_without_the_signature(
    strict: Daemon, put: Put, prefix: Prefix, ours: Pair, tmp_path: pathlib.Path
) -> None:
    tree = model(prefix)
    data = signing.sign_as_others_do(objects.write(tmp_path / "model", tree), tmp_path / "model" / "model.sig", ours)
    lease = granted(strict.acquire(put({**tree, "model.sig": data})))
    assert tree_of(strict, lease) == tree
    assert lease["skipped"] == [{"path": "model.sig", "reason": "the signature itself"}]


def test_a_folder_that_was_signed_first_and_pushed_then_is_served(
    strict: Daemon, put: Put, prefix: Prefix, ours: Pair, tmp_path: pathlib.Path
) -> None:
    tree = model(prefix)
    data = signing.sign_as_others_do(objects.write(tmp_path / "model", tree), tmp_path / "model" / "model.sig", ours)
    lease = granted(strict.acquire(put(objects.published({**tree, "model.sig": data}))))
    assert tree_of(strict, lease) == tree


def test_one_file_may_be_signed_by_itself_or_with_its_folder(
    strict: Daemon, put: Put, prefix: Prefix, ours: Pair, tmp_path: pathlib.Path
) -> None:
    files = {f"{name}.safetensors": objects.lora((prefix, name)) for name in ("alone", "together", "unsigned")}
    objects.write(tmp_path / "loras", files)
    alone = signing.sign_as_others_do(tmp_path / "loras" / "alone.safetensors", tmp_path / "alone.sig", ours)
    together = ours.sign({"together.safetensors": files["together.safetensors"]})
    source = put({**files, "alone.safetensors.sig": alone, "model.sig": together})
    for name in ("alone", "together"):
        lease = granted(strict.acquire(f"{source}/{name}.safetensors"))
        assert tree_of(strict, lease) == {f"{name}.safetensors": files[f"{name}.safetensors"]}
    nothing_served(strict, f"{source}/unsigned.safetensors", "unsigned.safetensors is not among the files")


def test_one_file_with_other_bytes_than_were_signed_is_refused_once_it_is_here(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix, ours: Pair
) -> None:
    signature = ours.sign({"style.safetensors": objects.lora("what was signed")})
    source = put({"style.safetensors": objects.lora((prefix, "what is there")), "model.sig": signature})
    nothing_served(strict, f"{source}/style.safetensors", "style.safetensors has the digest")
    fetched = weights_fetched(wire, prefix)
    nothing_served(strict, f"{source}/style.safetensors", "style.safetensors has the digest")
    assert weights_fetched(wire, prefix) == fetched


def test_a_file_added_to_a_signed_folder_is_refused_before_a_byte_is_fetched(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix, ours: Pair
) -> None:
    tree = model(prefix)
    source = put({**tree, "added.safetensors": b"x" * 100, "model.sig": ours.sign(tree)})
    nothing_served(strict, source, "added.safetensors is not among")
    assert weights_fetched(wire, prefix) == 0
    assert granted(strict.acquire(source, ignore_patterns=["added*"]))["files"]


def test_a_file_changed_in_a_signed_folder_is_refused_once_it_is_here_and_not_fetched_again(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix, ours: Pair
) -> None:
    tree = model(prefix)
    source = put({**tree, "unet/config.json": b'{"evil": true}', "model.sig": ours.sign(tree)})
    before = names_in(strict, "snapshots")
    nothing_served(strict, source, "unet/config.json has the digest")
    assert names_in(strict, "snapshots") == before
    fetched = weights_fetched(wire, prefix)
    nothing_served(strict, source, "unet/config.json has the digest")
    assert weights_fetched(wire, prefix) == fetched


def test_an_unsigned_plain_folder_is_refused_before_a_byte_is_fetched(
    strict: Daemon, put: Put, wire: Recorder, prefix: Prefix
) -> None:
    nothing_served(strict, put(model(prefix)), "is not signed")
    assert weights_fetched(wire, prefix) == 0


# ---- what is held already


def test_what_was_fetched_before_signatures_were_required_is_not_served_unless_it_is_signed(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    daemon = make_daemon(origins=not_requiring(seaweedfs, recorder), revalidate_s=600)
    tree = model(prefix)
    source = put(objects.published(tree))
    lease = granted(daemon.acquire(source))
    assert value(daemon, "SELECT signed_by FROM v_refs") is None
    daemon.restart(origins=requiring(seaweedfs, recorder, ours))
    fetched = weights_fetched(recorder, prefix)
    refused(daemon.acquire(source), "integrity_error")
    refused(daemon.acquire(f"{source}@{lease['revision']}"), "integrity_error")
    with recorder.down():
        refused(daemon.acquire(source), "origin_unavailable")
    put(signed(tree, ours))
    assert granted(daemon.acquire(source))["revision"] == lease["revision"]
    assert weights_fetched(recorder, prefix) == fetched, "the bytes were held: only their signature was lacking"
    assert value(daemon, "SELECT signed_by FROM v_refs") == ours.trusted.id


def test_a_preload_of_what_was_never_verified_verifies_it(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    source = put(signed(model(prefix), ours))
    daemon = make_daemon(origins=not_requiring(seaweedfs, recorder), models={"m": {"source": source}})
    granted(daemon.acquire("m"))
    daemon.restart(origins=requiring(seaweedfs, recorder, ours), models={"m": {"source": source, "preload": True}})
    wait_until(lambda: value(daemon, "SELECT signed_by FROM v_refs") == ours.trusted.id, what="a verified preload")
    with recorder.down():
        granted(daemon.acquire("m"))


def test_keys_take_each_other_s_place(
    make_strict: Callable[..., Daemon], seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: Prefix,
    ours: Pair, other: Pair,
) -> None:  # fmt: skip
    tree = model(prefix)
    source = put(signed(tree, ours))
    daemon = make_strict(ours)
    granted(daemon.acquire(source))
    daemon.restart(origins=requiring(seaweedfs, recorder, other, ours))
    with recorder.down():
        granted(daemon.acquire(source))  # a key more is no reason to ask again
    daemon.restart(origins=requiring(seaweedfs, recorder, other))
    refused(daemon.acquire(source), "integrity_error")
    put(signed(tree, ours, other))
    granted(daemon.acquire(source))
    assert value(daemon, "SELECT signed_by FROM v_refs") == other.trusted.id


def test_who_signed_is_known_after_a_restart(
    make_strict: Callable[..., Daemon], recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    daemon = make_strict(ours)
    source = put(signed(model(prefix), ours))
    granted(daemon.acquire(source))
    with recorder.down():
        daemon.restart()
        assert tree_of(daemon, granted(daemon.acquire(source))) == model(prefix)


def test_without_the_index_what_lies_on_the_volume_vouches_for_nothing(
    make_strict: Callable[..., Daemon], recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    """Somebody else may have written it: the signature is asked for anew, the weights are not."""
    daemon = make_strict(ours)
    source = put(signed(model(prefix), ours))
    granted(daemon.acquire(source))
    assert daemon.terminate() == 0
    shutil.rmtree(daemon.store / "index")
    for record in (daemon.store / "refs").iterdir():
        body = json.loads(record.read_text())
        record.unlink()
        record.write_text(json.dumps({**body, "signed_by": ours.trusted.id}))
    with recorder.down():
        daemon.restart()
        refused(daemon.acquire(source), "origin_unavailable")
    weights = f"{prefix}/blobs/"
    before = recorder.bytes_for(weights)
    assert tree_of(daemon, granted(daemon.acquire(source))) == model(prefix)
    assert recorder.bytes_for(weights) == before > 0


def test_an_index_from_before_signatures_is_brought_up_to_date(
    make_strict: Callable[..., Daemon], put: Put, prefix: Prefix, ours: Pair
) -> None:
    daemon = make_strict(ours)
    source = put(signed(model(prefix), ours))
    granted(daemon.acquire(source))
    assert daemon.terminate() == 0
    with contextlib.closing(sqlite3.connect(index_of(daemon))) as db, db:
        (view,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'v_refs'").fetchone()
        db.execute("DROP VIEW v_refs")
        db.execute("ALTER TABLE refs DROP COLUMN signed_by")
        db.execute(view.replace(", signed_by", ""))
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'm005_add_who_signed'")
    daemon.restart()
    assert value(daemon, "SELECT signed_by FROM v_refs") is None
    granted(daemon.acquire(source))
    assert value(daemon, "SELECT signed_by FROM v_refs") == ours.trusted.id


def test_bytes_that_are_held_from_elsewhere_need_not_be_fetched_again_to_be_vouched_for(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    tree = model(prefix)
    with seaweedfs.client() as client:
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=FREE)
        objects.upload(client, FREE, prefix, tree)
    free = {"free": seaweedfs.settings(FREE, endpoint_url=recorder.endpoint_url)}
    daemon = make_daemon(origins={**requiring(seaweedfs, recorder, ours), **free})
    granted(daemon.acquire(f"s3://{FREE}/{prefix}"))
    before = recorder.bytes_for(f"{prefix}/blobs/", bucket=BUCKET)
    assert tree_of(daemon, granted(daemon.acquire(put(signed(tree, ours))))) == tree
    assert recorder.bytes_for(f"{prefix}/blobs/", bucket=BUCKET) == before == 0
    assert {Digest.of(data) for data in tree.values()} <= blobs_on_disk(daemon).keys()


def test_a_new_version_that_nobody_signed_leaves_the_signed_one_in_place(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: Prefix, ours: Pair
) -> None:
    daemon = make_daemon(origins=requiring(seaweedfs, recorder, ours), revalidate_s=0.05)
    source = put(signed(model(prefix), ours))
    first = granted(daemon.acquire(source))
    put(objects.published({**model(prefix), "evil.json": b"{}"}))

    def told() -> list[dict[str, Any]]:
        granted(daemon.acquire(source))
        return rows(daemon, "SELECT detail FROM v_events WHERE kind = 'background_failed' AND subject = ?", source)

    wait_until(told, what="a look at the new version")
    assert "is not signed" in told()[0]["detail"]
    assert granted(daemon.acquire(source))["revision"] == first["revision"]


def test_a_rollback_serves_what_was_signed_then_and_asks_again_who_signed_it_only_when_the_index_is_lost(
    make_strict: Callable[..., Daemon], recorder: Recorder, put: Put, prefix: Prefix, ours: Pair, other: Pair
) -> None:
    old, new = model(prefix), {**model(prefix), "new.json": b"{}"}
    daemon = make_strict(ours, other)
    source = put(signed(old, ours))
    granted(daemon.acquire(source))
    put(signed(new, other))
    for verb in ("refresh", "rollback"):
        granted(daemon.call("POST", f"/v1/{verb}", {"source": source}))
    with recorder.down():
        assert tree_of(daemon, granted(daemon.acquire(source))) == old
    assert rows(daemon, "SELECT signed_by FROM v_refs") == [{"signed_by": ours.trusted.id}]
    assert daemon.terminate() == 0
    shutil.rmtree(daemon.store / "index")
    daemon.start()
    before = weights_fetched(recorder, prefix)
    assert tree_of(daemon, granted(daemon.acquire(source))) == old
    assert weights_fetched(recorder, prefix) == before


# ---- the configuration


@pytest.mark.parametrize("keys", ["none", "private", "absent", "text"])
def test_a_daemon_that_could_verify_nothing_does_not_start_and_names_the_setting(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, ours: Pair, tmp_path: pathlib.Path, keys: str
) -> None:
    (tmp_path / "text").write_text("s3cr3t words")
    paths = {"none": [], "private": [str(ours.private)], "absent": ["/none/here"], "text": [str(tmp_path / "text")]}
    origins = {"weed": seaweedfs.settings(BUCKET, verify="required", keys=paths[keys])}
    daemon = make_daemon(start=False, origins=origins)
    daemon.launch()
    assert daemon.wait() == 78
    assert "origins.weed.keys" in daemon.log_text
    assert all(path in daemon.log_text for path in paths[keys])
    assert "s3cr3t" not in daemon.log_text
    assert ours.private.read_text().splitlines()[1] not in daemon.log_text


@pytest.mark.parametrize("built", ["pipelines", "bundles"])
def test_what_is_built_is_not_shared_through_an_origin_that_requires_signatures(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, ours: Pair, recorder: Recorder, tmp_path: pathlib.Path, built: str
) -> None:
    origins, key = requiring(seaweedfs, recorder, ours), tmp_path / "key"
    key.write_text("k" * 40)
    key.chmod(0o600)
    publish, bundles = {built: f"s3://{BUCKET}/built"}, {"key_file": str(key)}
    daemon = make_daemon(start=False, origins=origins, publish=publish, bundles=bundles)
    daemon.launch()
    assert daemon.wait() == 78
    assert f"publish.{built} is s3://{BUCKET}/built, whose origin requires signatures" in daemon.log_text


def test_keys_that_are_not_required_change_nothing(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, prefix: Prefix, ours: Pair
) -> None:
    origins = {"weed": seaweedfs.settings(BUCKET, verify="off", keys=[str(ours.public)])}
    tree = {**model(prefix), "model.sig": b"not even one"}
    daemon = make_daemon(origins=origins)
    assert tree_of(daemon, granted(daemon.acquire(put(tree)))) == tree
