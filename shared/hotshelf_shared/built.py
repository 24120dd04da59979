"""A pipeline that was built: what a worker hands in to bind one, and the document that records it (`build.json`).

Invariant: a `Built` agrees with itself. Its key is its recipe's, its revision its files'; `parse` refuses any other, so a
document that somebody changed, on the volume or on a bucket, is never taken for what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest
from hotshelf_shared.manifest import MAX_MANIFEST_BYTES, Manifest, parse_json, refuse_millions
from hotshelf_shared.recipe import MAX_RECIPE_BYTES, Recipe, check_plain

MAX_BIND_BODY_BYTES = MAX_MANIFEST_BYTES
MAX_BUILD_BYTES = 64 << 10
MAX_BUILT_BYTES = MAX_MANIFEST_BYTES + 4 * (MAX_RECIPE_BYTES + MAX_BUILD_BYTES)
DOCUMENT_VERSION = 1
#: The year 10000: beyond it there are no dates to show.
_LATEST_S = 253_402_300_800
_BIND = frozenset(("recipe", "manifest", "build"))


@dataclass(frozen=True, slots=True)
class BindRequest:
    """`PUT /v1/pipelines/{key}`: a tree over blobs that are held, what it was built from, and how."""

    recipe: Recipe
    tree: Manifest
    build: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises InvalidRequest, or TooLarge for too many files."""
        refuse_millions(data, "the body", InvalidRequest)
        body = parse_json(data, "the body", InvalidRequest)
        if not isinstance(body, dict) or not body.keys() <= _BIND:
            raise InvalidRequest(f"the body is a JSON object with no other field than {', '.join(sorted(_BIND))}")
        manifest = body.get("manifest")
        if not isinstance(manifest, dict) or set(manifest) != {"version", "files"} or not manifest["files"]:
            raise InvalidRequest("manifest is {version: 1, files: {path: {digest, size}}} with a file at the least")
        try:
            tree = Manifest.of_json(manifest)
        except IntegrityError as error:
            raise InvalidRequest(error.message) from error
        return cls(Recipe.parse(body.get("recipe")), tree, check_build(body.get("build")))


@dataclass(frozen=True, slots=True)
class Built:
    """A bound pipeline. `created_at` in seconds since the epoch; `hotshelf` is the version of the daemon that bound it."""

    recipe: Recipe
    tree: Manifest
    uid: int
    created_at: float
    hotshelf: str
    build: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.recipe.key

    @property
    def revision(self) -> Revision:
        return self.tree.revision

    def to_json(self) -> dict[str, Any]:
        return {
            "version": DOCUMENT_VERSION,
            "key": self.key,
            "revision": self.revision,
            "recipe": self.recipe.to_json(),
            "files": self.tree.to_json()["files"],
            "uid": self.uid,
            "created_at": self.created_at,
            "hotshelf": self.hotshelf,
            "build": dict(self.build),
        }

    def canonical(self) -> bytes:
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def parse(cls, data: bytes, key: str) -> Self:
        """The document that is kept under `key`. Raises IntegrityError when it is another's, or does not agree with itself."""
        if len(data) > MAX_BUILT_BYTES:
            raise IntegrityError(f"the document of the pipeline {key} is over {MAX_BUILT_BYTES:,} bytes")
        refuse_millions(data, f"the document of the pipeline {key}", IntegrityError)
        body = parse_json(data, f"the document of the pipeline {key}", IntegrityError)
        try:
            built = cls._of(body)
        except (KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"the document of the pipeline {key} is none: {error!r}") from error
        except HotshelfError as error:
            raise IntegrityError(f"the document of the pipeline {key} is unusable: {error.message}") from error
        if built.key != key or body["key"] != key:
            raise IntegrityError(f"the document of the pipeline {key} is that of {built.key}")
        if built.revision != body["revision"]:
            raise IntegrityError(
                f"the document of the pipeline {key} says {body['revision']!s:.80}; its files are {built.revision}"
            )
        return built

    @classmethod
    def _of(cls, body: dict[str, Any]) -> Self:
        uid, created_at = body["uid"], body["created_at"]
        if body["version"] != DOCUMENT_VERSION or not isinstance(uid, int) or isinstance(uid, bool) or uid < 0:
            raise IntegrityError("its version or uid is none")
        if not isinstance(created_at, int | float) or isinstance(created_at, bool) or not 0 <= created_at < _LATEST_S:
            raise IntegrityError("its created_at is no time")
        if not body["files"]:
            raise IntegrityError("it names no files")
        return cls(
            recipe=Recipe.parse(body["recipe"]),
            tree=Manifest.of_json({"version": 1, "files": body["files"]}),
            uid=uid,
            created_at=float(created_at),
            hotshelf=str(body["hotshelf"])[:80],
            build=check_build(body["build"]),
        )


def check_build(value: object) -> dict[str, Any]:
    """Library versions, seconds and the like: a small object of scalars and objects. Raises InvalidRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("build is an object of scalars and objects")
    build: dict[str, Any] = check_plain(value, "build")
    if _holds_a_list(build):
        raise InvalidRequest("build is an object of scalars and objects; it holds a list")
    if len(json.dumps(build)) > MAX_BUILD_BYTES:
        raise InvalidRequest(f"build is over {MAX_BUILD_BYTES:,} bytes")
    return build


def _holds_a_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_holds_a_list, value.values())))
