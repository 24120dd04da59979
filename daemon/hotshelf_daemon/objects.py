"""One version of one object at an origin: the value that origins list, ingests fetch and the index remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hotshelf_shared.digest import Digest

Algorithm = Literal["CRC-64/NVME", "CRC32C"]


@dataclass(frozen=True, slots=True)
class Checksum:
    """What all bytes of an object come to, as its origin keeps it."""

    algorithm: Algorithm
    value: int

    @classmethod
    def crc64nvme(cls, value: int) -> Checksum:
        return cls("CRC-64/NVME", value)

    @classmethod
    def crc32c(cls, value: int) -> Checksum:
        return cls("CRC32C", value)


@dataclass(frozen=True, slots=True)
class OriginObject:
    """`size` in bytes; `version` is its ETag or what serves as one, "" where the origin gives none.

    `checksum` is what the origin says of it unasked; where it says nothing, its port can be asked.
    `digest` is what the origin itself says that its bytes are: a promise, which they must keep.
    """

    key: str
    size: int
    version: str
    checksum: Checksum | None = None
    digest: Digest | None = None
