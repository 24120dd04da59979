"""What goes out to a bucket: a file as it was when it was hashed, cut into parts, and read as it is sent.

Nothing here holds a file in memory: bodies are read by offset, so any number of threads share one descriptor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from awscrt import checksums

from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest

PART_BYTES = 16 << 20
#: S3's; B2, R2 and MinIO have the same.
MOST_PARTS = 10_000
_READ_BYTES = 1 << 20


class Part(NamedTuple):
    """Bytes [start, stop) of a file; numbers start at 1, as S3's do."""

    number: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What the origin says of a part that it holds. The ETag is the part's MD5 at some services and means nothing at others."""

    number: int
    size: int
    etag: str
    crc64nvme: int | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file and the key it goes to. `named`: the key tells the content, so that whatever else is there is wrong."""

    key: str
    path: str
    real: str
    size: int
    mtime_ns: int
    digest: Digest
    cache_control: str
    named: bool = True
    crc64nvme: int | None = None

    def parts(self) -> list[Part]:
        step = part_bytes(self.size)
        starts = range(0, self.size, step)
        return [Part(number, start, min(start + step, self.size)) for number, start in enumerate(starts, 1)]

    def has_crc64nvme(self, theirs: int) -> bool:
        """Reads the whole file where nobody has before."""
        if self.crc64nvme is not None:
            return self.crc64nvme == theirs
        with opened(self.real) as fd:
            return _crc64nvme(fd, 0, self.size) == theirs

    def changed(self) -> InvalidRequest:
        return InvalidRequest(f"{self.path} changed while it was pushed", hint="Push again when it is finished.")

    def refuse_changed(self) -> None:
        """Raises InvalidRequest when it is no longer what was hashed; FileNotFoundError when it is gone."""
        seen = os.stat(self.real)
        if (seen.st_size, seen.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self.changed()


def part_bytes(size: int) -> int:
    """The same for the same size, so that a later push cuts as this one did; 64 MiB at the most up to 625 GiB."""
    step = PART_BYTES
    while step * MOST_PARTS < size:
        step *= 2
    return step


def digest_and_crc64nvme(fd: int) -> tuple[Digest, int]:
    """Of all of an open file, in one pass."""
    hasher, crc = hashlib.sha256(), 0
    for data in _pieces(fd, 0, os.fstat(fd).st_size):
        hasher.update(data)
        crc = checksums.crc64nvme(data, crc)
    return Digest.from_hex(hasher.hexdigest()), crc


def agrees(fd: int, part: Part, theirs: StoredPart) -> bool:
    """Whether the origin shows that it holds these very bytes: by size, and by its checksum or an ETag that is their MD5."""
    if theirs.size != part.size:
        return False
    if theirs.crc64nvme is not None:
        return _crc64nvme(fd, part.start, part.stop) == theirs.crc64nvme
    hasher = hashlib.md5(usedforsecurity=False)
    for data in _pieces(fd, part.start, part.stop):
        hasher.update(data)
    return hasher.hexdigest() == theirs.etag.strip('"').lower()


@contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _crc64nvme(fd: int, start: int, stop: int) -> int:
    crc = 0
    for data in _pieces(fd, start, stop):
        crc = checksums.crc64nvme(data, crc)
    return crc


def _pieces(fd: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (data := os.pread(fd, min(_READ_BYTES, stop - start), start)):
        yield data
        start += len(data)


class OutgoingBody:
    """A request's body. `on_bytes` hears of what goes out, not of what is read to be signed; what it raises ends the request.

    botocore makes an error of its own of whatever reading raises: `error` is the one that it was.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, on_bytes: Callable[[int], object]) -> None:
        """`read_at(offset, count)`; fewer bytes than that are taken for an error of the file."""
        self._read_at, self._size, self._on_bytes = read_at, size, on_bytes
        self._at = 0
        #: Bytes that `on_bytes` has heard of.
        self.counted = 0
        self._leaves = False
        self.error: BaseException | None = None

    @classmethod
    def of_part(cls, fd: int, file: Outgoing, part: Part, on_bytes: Callable[[int], object]) -> OutgoingBody:
        def read_at(offset: int, count: int) -> bytes:
            if len(data := os.pread(fd, count, part.start + offset)) < count:
                raise file.changed()
            return data

        return cls(read_at, part.size, on_bytes)

    def leaves(self) -> None:
        """It is signed; what is read from now on is sent."""
        self._leaves = True

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._at
        count = left if count < 0 else min(count, left)
        try:
            data = self._read_at(self._at, count)
            if self._leaves and (new := self._at + count - self.counted) > 0:
                self.counted += new
                self._on_bytes(new)
        except BaseException as error:
            self.error = error
            raise
        self._at += count
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at


def body_leaves(request: Any, **_: object) -> None:
    """botocore's `request-created`, after the signature."""
    if isinstance(request.data, OutgoingBody):
        request.data.leaves()
