"""The document of a built pipeline agrees with itself, or is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hotshelf_shared.built import MAX_BUILT_BYTES, BindRequest, Built
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, InvalidRequest, TooLarge
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.recipe import Recipe

TREE = Manifest.of({"model_index.json": FileEntry(Digest.of(b"{}"), 2), "unet/w.safetensors": FileEntry(Digest.of(b"w"), 1)})
RECIPE = Recipe(base=Digest.of(b"base"), dtype="float16")
BUILT = Built(RECIPE, TREE, 1000, 1_700_000_000.25, "0.1.0", {"torch": "2.13.0", "seconds": {"build": 1.5}})


def test_a_document_that_is_read_back_is_what_was_written() -> None:
    assert Built.parse(BUILT.canonical(), RECIPE.key) == BUILT
    assert Built.parse(json.dumps(BUILT.to_json(), indent=2).encode(), RECIPE.key) == BUILT


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(key="0" * 64),
        lambda body: body.update(key=["x"]),
        lambda body: body.update(version=2),
        lambda body: body.update(revision=str(RECIPE.base)),
        lambda body: body.update(revision=7),
        lambda body: body["recipe"].update(dtype="float32"),
        lambda body: body["recipe"].update(more=1),
        lambda body: body.update(files={}),
        lambda body: body.update(files=[]),
        lambda body: body["files"].pop("model_index.json"),
        lambda body: body["files"]["model_index.json"].update(size=3),
        lambda body: body["files"].update({"../x": body["files"]["model_index.json"]}),
        lambda body: body.update(uid=-1),
        lambda body: body.update(uid=True),
        lambda body: body.update(uid="0"),
        lambda body: body.update(created_at="yesterday"),
        lambda body: body.update(created_at=1e300),
        lambda body: body.update(build=[]),
        lambda body: body.update(build={"x": [1]}),
        lambda body: body.pop("build"),
        lambda body: body.pop("recipe"),
        lambda body: body.clear(),
    ],
)
def test_a_document_that_was_changed_is_refused(change: Callable[[Any], object]) -> None:
    body = json.loads(BUILT.canonical())
    change(body)
    with pytest.raises(IntegrityError):
        Built.parse(json.dumps(body).encode(), RECIPE.key)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b'{"a":1,"a":2}', b"\xff", b"[" * 5_000])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Built.parse(data, RECIPE.key)


def test_a_document_is_refused_under_any_other_key_and_beyond_its_size() -> None:
    with pytest.raises(IntegrityError, match="is that of"):
        Built.parse(BUILT.canonical(), "0" * 64)
    with pytest.raises(IntegrityError, match="over"):
        Built.parse(b" " * (MAX_BUILT_BYTES + 1), RECIPE.key)


def test_what_a_worker_sends_is_read_as_it_was_meant() -> None:
    body = {"recipe": RECIPE.to_json(), "manifest": TREE.to_json(), "build": {"torch": "2"}}
    assert BindRequest.parse(json.dumps(body).encode()) == BindRequest(RECIPE, TREE, {"torch": "2"})
    del body["build"]
    assert BindRequest.parse(json.dumps(body).encode()).build == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(more=1),
        lambda body: body.pop("recipe"),
        lambda body: body.pop("manifest"),
        lambda body: body.update(manifest=None),
        lambda body: body["manifest"].update(files=[]),
        lambda body: body["manifest"]["files"]["model_index.json"].update(digest="x"),
        lambda body: body.update(build={"x": float("nan")}),
        lambda body: body.update(build={"x": {"y": [1]}}),
    ],
)
def test_what_is_no_request_to_bind_is_invalid(change: Callable[[Any], object]) -> None:
    body = {"recipe": RECIPE.to_json(), "manifest": json.loads(TREE.canonical()), "build": {}}
    change(body)
    with pytest.raises(InvalidRequest):
        BindRequest.parse(json.dumps(body).encode())


def test_too_many_files_are_too_large() -> None:
    entry = {"digest": str(RECIPE.base), "size": 0}
    files = {f"f{number}": entry for number in range(50_001)}
    with pytest.raises(TooLarge):
        BindRequest.parse(json.dumps({"recipe": RECIPE.to_json(), "manifest": {"version": 1, "files": files}}).encode())
