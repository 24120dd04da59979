"""Where a signature is looked for, and how often anybody is asked for one."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import pytest

from hotshelf_daemon.acquire import resolve
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.vouching import vouch
from hotshelf_daemon.origin import MemoryOrigin
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.provenance import Unvouched, Vouched
from hotshelf_shared.errors import AccessDenied
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from tests import objects, signing
from tests.objects import Tree
from tests.signing import Pair

TREE = objects.model("vouched", unet=200, text_encoder=200, vae=200)
HEX = objects.manifest_of(TREE).revision.hex


class Unlisted(MemoryOrigin):
    """What S3 is to who may read and not list: a key that is not there is forbidden."""

    def read(self, key: str, limit: int) -> bytes | None:
        if (data := super().read(key, limit)) is None and key.endswith(".sig"):
            raise AccessDenied(f"reading {key} is forbidden")
        return data


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [signing.pair(tmp_path_factory.mktemp("keys"), name) for name in ("old", "new")]


def asked_for(origin: MemoryOrigin) -> list[str]:
    """The signatures that were asked for, in order."""
    return [key for verb, key, _, _ in origin.requests if verb == "read" and key.endswith(".sig")]


def vouched(origin: MemoryOrigin, there: Mapping[str, bytes], pairs: list[Pair], path: str = "m") -> Vouched:
    origin.objects = {f"m/{name}": data for name, data in there.items()}
    want = Want(Source("s3", "weights", path), Patterns.parse(None, None), Policy())
    found = resolve.find(origin, want)
    return vouch(origin, want, found, resolve.narrow(want, origin, found, {}, signed=True), [p.trusted for p in pairs])


def named(pair: Pair) -> str:
    return f"manifests/{HEX}.{pair.trusted.id[:16]}.sig"


def published(**more: bytes) -> Tree:
    return {**objects.published(TREE), **more}


def test_a_signature_by_the_first_key_is_found_with_one_request(pairs: list[Pair]) -> None:
    origin = MemoryOrigin()
    assert vouched(origin, {**published(), named(pairs[0]): pairs[0].sign(TREE)}, pairs).by == pairs[0].trusted.id
    assert asked_for(origin) == [f"m/{named(pairs[0])}"]


def test_each_key_s_own_signature_is_looked_for_and_then_the_plain_one(pairs: list[Pair]) -> None:
    origin = MemoryOrigin()
    with pytest.raises(Unvouched, match="s3://weights/m is not signed"):
        vouched(origin, published(), pairs)
    assert asked_for(origin) == [f"m/{named(pairs[0])}", f"m/{named(pairs[1])}", "m/model.sig"]


def test_a_plain_folder_is_asked_for_a_signature_only_when_it_lists_one(pairs: list[Pair]) -> None:
    origin = MemoryOrigin()
    with pytest.raises(Unvouched, match="is not signed"):
        vouched(origin, TREE, pairs)
    assert asked_for(origin) == []
    assert vouched(origin, {**TREE, "model.sig": pairs[1].sign(TREE)}, pairs).by == pairs[1].trusted.id
    assert asked_for(origin) == ["m/model.sig"]


def test_of_several_wrong_signatures_the_first_is_told_of(pairs: list[Pair], tmp_path: pathlib.Path) -> None:
    stranger = signing.pair(tmp_path, "stranger")
    there = {**published(), named(pairs[0]): stranger.sign(TREE), "model.sig": b"{}"}
    with pytest.raises(Unvouched, match=stranger.trusted.id[:16]):
        vouched(MemoryOrigin(), there, pairs)


def test_without_leave_to_list_a_signature_that_is_there_is_found(pairs: list[Pair]) -> None:
    assert vouched(Unlisted(), {**published(), named(pairs[1]): pairs[1].sign(TREE)}, pairs).by == pairs[1].trusted.id


def test_without_leave_to_list_nobody_can_say_that_there_is_none(pairs: list[Pair]) -> None:
    with pytest.raises(AccessDenied):
        vouched(Unlisted(), published(), pairs)


def test_one_object_has_its_signature_beside_it_or_in_its_folder(pairs: list[Pair]) -> None:
    origin = MemoryOrigin()
    style = {"style.safetensors": objects.lora()}
    there = {**style, "model.sig": pairs[0].sign(style)}
    assert vouched(origin, there, pairs, "m/style.safetensors").by == pairs[0].trusted.id
    assert asked_for(origin) == ["m/style.safetensors.sig", "m/model.sig"]
