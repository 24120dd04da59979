"""Signatures by themselves: the same to model-signing as to us, and nothing believed that no trusted key has signed."""

from __future__ import annotations

import base64
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hotshelf_daemon.provenance import PublicKey, SigningKey, Statement, Unvouched, sign, verify
from hotshelf_daemon.provenance.envelope import MAX_SIGNATURE_BYTES, Envelope, to_sign
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import BadConfiguration, InvalidRequest
from hotshelf_shared.manifest import MAX_FILES, MAX_MANIFEST_BYTES, FileEntry, Manifest
from tests import objects, signing
from tests.servers.child import clean_environment
from tests.signing import Pair

TREE = objects.model("signed", unet=200, text_encoder=200, vae=200)
DIGESTS: dict[str, Digest | None] = {path: Digest.of(data) for path, data in TREE.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return signing.pair(tmp_path_factory.mktemp("keys"), "ours")


def unvouched(data: bytes, *trusted: Pair) -> Unvouched:
    with pytest.raises(Unvouched) as refusal:
        verify(data, [one.trusted for one in trusted], "s3://weights/m/model.sig")
    assert "s3://weights/m/model.sig" in refusal.value.message
    assert refusal.value.hint
    return refusal.value


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with its statement changed and the signature left as it was."""
    body = json.loads(data)
    statement = json.loads(base64.b64decode(body["dsseEnvelope"]["payload"]))
    change(statement)
    body["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(body).encode()


def signed(pair: Pair, statement: object) -> bytes:
    """Any statement at all, with a good signature."""
    payload = json.dumps(statement).encode()
    return Envelope(payload, pair.key.sign(to_sign(payload)), pair.key.public.id).pack()


def statement() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(Statement.of(objects.manifest_of(TREE)).payload("m"))
    return body


# ---- with model-signing


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_what_we_sign_model_signing_verifies(tmp_path: pathlib.Path, curve: type[ec.EllipticCurve]) -> None:
    ours, other = signing.pair(tmp_path, "ours", curve=curve), signing.pair(tmp_path, "other", curve=curve)
    folder = objects.write(tmp_path / "model", TREE)
    (folder / "model.sig").write_bytes(ours.sign(TREE))
    assert signing.others_verify(folder, folder / "model.sig", ours)
    assert not signing.others_verify(folder, folder / "model.sig", other)
    (folder / "unet" / "config.json").write_text("{}")
    assert not signing.others_verify(folder, folder / "model.sig", ours)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_what_model_signing_signs_we_verify(tmp_path: pathlib.Path, curve: type[ec.EllipticCurve]) -> None:
    ours, other = signing.pair(tmp_path, "ours", curve=curve), signing.pair(tmp_path, "other", curve=curve)
    data = signing.sign_as_others_do(objects.write(tmp_path / "model", TREE), tmp_path / "model.sig", ours)
    vouched = verify(data, [other.trusted, ours.trusted], "here")
    assert (vouched.statement.files, vouched.by) == (DIGESTS, ours.trusted.id)
    assert "not trusted" in unvouched(data, other).message


def test_a_downloaded_prefix_verifies_with_all_that_a_push_leaves_in_it(pair: Pair, tmp_path: pathlib.Path) -> None:
    folder = objects.write(tmp_path / "model", {**TREE, **objects.published(TREE), "model.sig": pair.sign(TREE)})
    assert signing.others_verify(folder, folder / "model.sig", pair)
    (folder / "more.safetensors").write_bytes(b"x")
    assert not signing.others_verify(folder, folder / "model.sig", pair)


def test_a_model_with_a_folder_called_blobs_has_it_signed_like_any_other(pair: Pair, tmp_path: pathlib.Path) -> None:
    tree = {**TREE, "blobs/a.safetensors": b"a"}
    folder = objects.write(tmp_path / "model", {**tree, "model.sig": pair.sign(tree)})
    assert signing.others_verify(folder, folder / "model.sig", pair)
    (folder / "blobs" / "a.safetensors").write_bytes(b"b")
    assert not signing.others_verify(folder, folder / "model.sig", pair)


# ---- what is believed


def test_the_same_tree_and_key_make_the_same_signature(pair: Pair) -> None:
    assert pair.sign(TREE) == pair.sign(dict(reversed(TREE.items())))
    assert Envelope.parse(pair.sign(TREE)).pack() == pair.sign(TREE)


def test_a_statement_that_was_changed_is_not_looked_at(pair: Pair) -> None:
    data = changed(pair.sign(TREE), lambda body: body["predicate"]["resources"].pop())
    assert "broken" in unvouched(data, pair).message


@pytest.mark.parametrize("wrong", [b"", b"\x30", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\xff" * 100_000])
def test_a_signature_of_any_other_bytes_is_refused(pair: Pair, wrong: bytes) -> None:
    envelope = Envelope.parse(pair.sign(TREE))
    assert "broken" in unvouched(Envelope(envelope.payload, wrong, envelope.hint).pack(), pair).message


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_signature_is_refused(pair: Pair, cut: int) -> None:
    unvouched(pair.sign(TREE)[:cut], pair)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 5_000, b'{"a": 1, "a": 2}', b"x" * (MAX_SIGNATURE_BYTES + 1),
        b'{"mediaType": [], "dsseEnvelope": {"payloadType": {}, "payload": 3, "signatures": [{"sig": 3}]}}',
        b'{"mediaType": "m", "dsseEnvelope": {"payloadType": "p", "payload": "", "signatures": []}}',
        b'{"mediaType": "m", "dsseEnvelope": {"payloadType": "p", "payload": "", "signatures": [{"sig": ""}, {"sig": ""}]}}',
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_what_is_no_bundle_is_refused(pair: Pair, data: bytes) -> None:
    unvouched(data, pair)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'"",', b"1,", b"[["], ids=str)
def test_a_signature_made_to_keep_a_parser_busy_is_refused_at_once(pair: Pair, piece: bytes) -> None:
    began = time.monotonic()
    assert "far more" in unvouched(b"[" + piece * (MAX_SIGNATURE_BYTES // len(piece) - 1), pair).message
    assert time.monotonic() - began < 1


def test_the_largest_model_s_signature_is_no_larger_than_what_is_read(pair: Pair) -> None:
    """Fifty thousand files, named as long as a manifest of 8 MiB lets them be, written as model-signing does."""
    paths = [f"{number:05d}/{'x' * 50}.safetensors" for number in range(MAX_FILES)]
    tree = Manifest.of({path: FileEntry(Digest.of(b""), 1 << 40) for path in paths})
    assert len(tree.canonical()) > MAX_MANIFEST_BYTES * 0.95
    wide = json.dumps(json.loads(Statement.of(tree).payload("m")), indent=2).encode()
    assert len(Envelope(wide, b"x" * 140, "y" * 64).pack()) < MAX_SIGNATURE_BYTES
    assert verify(sign(tree, "m", pair.key), [pair.trusted], "here").statement == Statement.of(tree)


def test_a_bundle_around_another_kind_of_payload_is_refused(pair: Pair) -> None:
    body = json.loads(pair.sign(TREE))
    body["dsseEnvelope"]["payloadType"] = "application/vnd.cyclonedx+json"
    assert "cyclonedx" in unvouched(json.dumps(body).encode(), pair).message


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda body: body.update(_type="https://in-toto.io/Statement/v0.1"), "v0.1"),
        (lambda body: body.update(predicateType="https://slsa.dev/provenance/v1"), "slsa"),
        (lambda body: body.update(subject=[]), "malformed"),
        (lambda body: body["subject"].append(body["subject"][0]), "malformed"),
        (lambda body: body["subject"][0]["digest"].update(sha256="0" * 64), "agree with itself"),
        (lambda body: body["predicate"]["serialization"].update(method="shards"), "shards"),
        (lambda body: body["predicate"]["serialization"].update(hash_type="blake3"), "blake3"),
        (lambda body: body["predicate"]["resources"][0].update(algorithm="md5"), "malformed"),
        (lambda body: body["predicate"]["resources"][0].update(digest="../../etc"), "malformed"),
        (lambda body: body["predicate"]["resources"][0].update(name=7), "malformed"),
        (lambda body: body["predicate"]["resources"].append(body["predicate"]["resources"][0]), "twice"),
        (lambda body: body["predicate"].update(resources=[{}] * 50_001), "50,001"),
        (lambda body: body["predicate"].update(resources={"a": 1}), "malformed"),
        (lambda body: body.pop("predicate"), "malformed"),
    ],
)
def test_a_signed_statement_of_another_make_is_refused(
    pair: Pair, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    body = statement()
    change(body)
    assert why in unvouched(signed(pair, body), pair).message


def test_a_signature_may_name_any_path_because_none_is_ever_used_as_one(pair: Pair) -> None:
    tree = {"/etc/passwd": b"x", "../..": b"y"}
    data = Statement({path: Digest.of(content) for path, content in tree.items()}).payload("m")
    vouched = verify(signed(pair, json.loads(data)), [pair.trusted], "here")
    with pytest.raises(Unvouched, match=r"etc/passwd was signed and is not there"):
        vouched.statement.check_whole(["a"], "s3://b/m")


# ---- what is held to it


def test_some_of_the_files_that_were_signed_are_vouched_for() -> None:
    whole = Statement.of(objects.manifest_of(TREE))
    whole.check({"model_index.json": DIGESTS["model_index.json"], "unet/config.json": None}, "s3://b/m")
    whole.check_whole(TREE, "s3://b/m")


def test_the_file_that_is_not_vouched_for_is_named() -> None:
    whole = Statement.of(objects.manifest_of(TREE))
    with pytest.raises(Unvouched, match=r"s3://b/m: evil\.json is not among"):
        whole.check({**DIGESTS, "evil.json": None}, "s3://b/m")
    with pytest.raises(Unvouched, match=r"unet/config\.json has the digest .* was signed"):
        whole.check({**DIGESTS, "unet/config.json": Digest.of(b"evil")}, "s3://b/m")
    with pytest.raises(Unvouched, match=r"unet/config\.json was signed and is not there"):
        whole.check_whole(TREE.keys() - {"unet/config.json"}, "s3://b/m")


def test_hidden_files_may_be_signed_and_left_out_as_a_push_does() -> None:
    Statement.of(objects.manifest_of({**TREE, ".cache/x": b"", "unet/.lock": b""})).check_whole(TREE, "s3://b/m")


# ---- keys


@pytest.mark.parametrize("password", [None, "correct horse"])
def test_a_key_may_be_encrypted(tmp_path: pathlib.Path, password: str | None) -> None:
    made = signing.pair(tmp_path, "ours", password=password)
    key = SigningKey.load(str(made.private), password or "not needed")
    assert key.public == made.trusted
    assert verify(sign(objects.manifest_of(TREE), "m", key), [made.trusted], "here").by == made.trusted.id


def test_an_encrypted_key_needs_its_password_and_says_how_to_give_it(tmp_path: pathlib.Path) -> None:
    made = signing.pair(tmp_path, "ours", password="correct horse")
    with pytest.raises(InvalidRequest) as refusal:
        SigningKey.load(str(made.private))
    assert "HOTSHELF_SIGN_PASSWORD_FILE" in refusal.value.hint
    with pytest.raises(InvalidRequest, match="does not open with that password"):
        SigningKey.load(str(made.private), "wrong")


def foreign(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files that are no elliptic-curve key of ours: each as a private and as a public half."""
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    for name, key in (
        ("rsa", rsa.generate_private_key(65537, 2048)),
        ("curve", ec.generate_private_key(ec.SECP256K1())),
    ):
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    (folder / "text").write_bytes(b"s3cr3t words")
    (folder / "large").write_bytes(b"s3cr3t" * 20_000)
    return {path.name: path for path in folder.iterdir()}


def test_a_file_that_is_no_public_key_is_refused_without_its_content(pair: Pair, tmp_path: pathlib.Path) -> None:
    cases = {**foreign(tmp_path), "ours": pair.private, "none": tmp_path / "none", "folder": tmp_path}
    for name, path in cases.items():
        with pytest.raises(BadConfiguration) as refusal:
            PublicKey.load(str(path), "origins.weed.keys")
        said = f"{refusal.value.message} {refusal.value.hint}"
        assert f"origins.weed.keys: {path} " in said, name
        assert "s3cr3t" not in said
        assert not path.is_file() or path.read_text()[:64] not in said
    with pytest.raises(BadConfiguration, match="holds a private key"):
        PublicKey.load(str(pair.private), "origins.weed.keys")


def test_a_file_that_is_no_private_key_is_refused_without_its_content(pair: Pair, tmp_path: pathlib.Path) -> None:
    for path in (*foreign(tmp_path).values(), pair.public, tmp_path / "none"):
        with pytest.raises(InvalidRequest) as refusal:
            SigningKey.load(str(path), "s3cr3t")
        assert str(path) in refusal.value.message
        assert "s3cr3t" not in refusal.value.message + refusal.value.hint


def test_keys_are_not_shown(pair: Pair) -> None:
    assert pair.private.read_text().splitlines()[1] not in repr(pair.key)
    assert repr(pair.key).count("_key") == 0


def test_nothing_is_imported_for_signatures_until_there_is_a_key() -> None:
    look = "import sys, hotshelf_daemon.app; print('cryptography' in sys.modules, 'sigstore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_without_the_library_a_key_says_what_to_install(pair: Pair) -> None:
    look = (
        "import sys; sys.modules['cryptography'] = None; from hotshelf_daemon.provenance import PublicKey;"
        f"PublicKey.load({str(pair.public)!r}, 'origins.weed.keys')"
    )
    done = subprocess.run([sys.executable, "-c", look], env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert "pip install 'hotshelf[sign]'" in done.stderr
