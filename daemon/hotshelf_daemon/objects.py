"""One version of one object at an origin: the value that origins list, ingests fetch and the index remembers."""

from __future__ import annotations

from dataclasses import dataclass

from hotshelf_shared.digest import Digest


@dataclass(frozen=True, slots=True)
class OriginObject:
    """`size` in bytes; `version` is its ETag or what serves as one, "" where the origin gives none.

    `digest` is what the origin itself says that its bytes are: a promise, which they must keep.
    """

    key: str
    size: int
    version: str
    digest: Digest | None = None
