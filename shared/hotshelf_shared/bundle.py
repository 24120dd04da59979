"""A bundle: a torch compile cache as one archive, under the keys of the environment and the graph that it was made for.

What a worker hands in to bind one, and the signed document that records it (`bundle.json`). A compile cache is code:
invariant: a document is believed only when `is_signed_with` the daemon's own key, over every field that it has. One that
comes from a bucket is signed with `publishing_key` of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest
from hotshelf_shared.manifest import MAX_FILE_BYTES, FileEntry, Manifest, parse_json

#: The one file of a bundle's tree.
ARCHIVE = "archive"
DOCUMENT_VERSION = 1
MAX_DOCUMENT_BYTES = 4 << 10
MAX_BUNDLE_BODY_BYTES = 4 << 10
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}\Z")
_HMAC = re.compile(r"[0-9a-f]{64}\Z")
_SIGNED = ("version", "environment_key", "graph_key", "digest", "size", "uid", "issued")
#: The year 10000: beyond it there are no dates to show.
_LATEST_S = 253_402_300_800


@dataclass(frozen=True, slots=True, order=True)
class BundleName:
    """ENVIRONMENT/GRAPH. Both are safe as names of folders."""

    environment_key: str
    graph_key: str

    @classmethod
    def of(cls, environment: object, graph: object) -> Self:
        """Raises InvalidRequest."""
        return cls(environment_key(environment), _key(graph, "a graph key"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequest."""
        environment, _, graph = text.partition("/")
        return cls.of(environment, graph)

    def __str__(self) -> str:
        return f"{self.environment_key}/{self.graph_key}"


def environment_key(value: object) -> str:
    """Raises InvalidRequest."""
    return _key(value, "an environment key")


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """`PUT /v1/bundles/{environment_key}/{graph_key}`: the archive, which is held; `size` in bytes."""

    digest: Digest
    size: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises InvalidRequest."""
        body = parse_json(data, "the body", InvalidRequest)
        if not isinstance(body, dict) or set(body) != {"digest", "size"}:
            raise InvalidRequest("the body is {digest, size}: of the archive, which was handed in before")
        return cls(Digest.parse(body["digest"]), _whole(body["size"], 1, MAX_FILE_BYTES, "size"))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bound bundle. `uid` built it; `issued` is when it was signed, in whole seconds since the epoch."""

    name: BundleName
    digest: Digest
    size: int
    uid: int
    issued: int
    hmac: str = ""

    @property
    def tree(self) -> Manifest:
        return Manifest({ARCHIVE: FileEntry(self.digest, self.size)})

    @property
    def revision(self) -> Revision:
        return self.tree.revision

    def signed(self, key: bytes) -> Self:
        return replace(self, hmac=self._hmac(key))

    def is_signed_with(self, key: bytes) -> bool:
        return hmac.compare_digest(self.hmac.encode(), self._hmac(key).encode())

    def _hmac(self, key: bytes) -> str:
        body = self.to_json()
        return hmac.new(key, _canonical({name: body[name] for name in _SIGNED}), hashlib.sha256).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "version": DOCUMENT_VERSION,
            "environment_key": self.name.environment_key,
            "graph_key": self.name.graph_key,
            "digest": self.digest,
            "size": self.size,
            "uid": self.uid,
            "issued": self.issued,
            "hmac": self.hmac,
        }

    def canonical(self) -> bytes:
        return _canonical(self.to_json())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Of the right form; whose it is, `is_signed_with` says. Raises IntegrityError."""
        if len(data) > MAX_DOCUMENT_BYTES:
            raise IntegrityError(f"the document of a bundle is over {MAX_DOCUMENT_BYTES:,} bytes")
        body = parse_json(data, "the document of a bundle", IntegrityError)
        if not isinstance(body, dict) or set(body) != {*_SIGNED, "hmac"}:
            raise IntegrityError(f"the document of a bundle is an object of {', '.join((*_SIGNED, 'hmac'))}")
        try:
            _whole(body["version"], DOCUMENT_VERSION, DOCUMENT_VERSION, "version")
            bundle = cls(
                name=BundleName.of(body["environment_key"], body["graph_key"]),
                digest=Digest.parse(body["digest"]),
                size=_whole(body["size"], 1, MAX_FILE_BYTES, "size"),
                uid=_whole(body["uid"], 0, 1 << 32, "uid"),
                issued=_whole(body["issued"], 0, _LATEST_S, "issued"),
                hmac=body["hmac"] if isinstance(body["hmac"], str) and _HMAC.match(body["hmac"]) else "",
            )
        except HotshelfError as error:
            raise IntegrityError(f"the document of a bundle is unusable: {error.message}") from error
        if bundle.canonical() != data:
            raise IntegrityError("the document of a bundle is not in its canonical form")
        return bundle


def publishing_key(key: bytes) -> bytes:
    """What documents for other nodes are signed with: a daemon also signs what strangers bound, for those strangers only.

    Who may write the bucket could otherwise put such a document there, for everybody.
    """
    return hmac.new(key, b"hotshelf: published bundles", hashlib.sha256).digest()


def _key(value: object, what: str) -> str:
    if not isinstance(value, str) or not _KEY.match(value):
        raise InvalidRequest(
            f"{str(value)[:80]!r} is no {what.partition(' ')[2]}",
            hint=f"{what.capitalize()} is 1 to 200 letters, digits and ._=-, and begins with a letter, a digit or _.",
        )
    return value


def _whole(value: object, least: int, most: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(f"{what} is a whole number from {least:,} to {most:,}")
    return value


def _canonical(body: Mapping[str, Any]) -> bytes:
    """UTF-8 JSON, keys sorted, no white space."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
