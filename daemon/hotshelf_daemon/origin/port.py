"""The port to where bytes come from: one bucket of an S3 service, one folder tree, or one dictionary in a test.

Called from any number of threads. What it raises: `NotFound` (no such bucket), `AccessDenied`, `OriginUnavailable` (worth
a retry when `.retryable`), `IntegrityError` (it answered something that is not what was asked for), and `Changed` when
the object is no longer the version that was listed. Never one of the library beneath.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_shared.errors import IntegrityError, OriginUnavailable

#: What a file system, a kernel or a sandbox says that cannot splice.
CANNOT_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


class Changed(IntegrityError):
    """The object changed at the origin while it was being fetched."""

    default_hint = "Publish under a new prefix, or with `hotshelf push`, and ask again."


class Misanswered(IntegrityError):
    """The answer is not to what was asked: another request may be answered better."""

    default_hint = "The service in front of the bucket must honour Range (Accept-Ranges: bytes) and Content-Range."


class Corrupted(IntegrityError):
    """The bytes do not match the checksum that came with them: all of them have to be fetched again."""


class Busy(OriginUnavailable):
    """The origin asks everybody to slow down."""


class Body(Protocol):
    """Bytes of a ranged read, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills `buffer` from its start; the number of bytes, 0 at the end."""
        ...


@runtime_checkable
class SplicedBody(Body, Protocol):
    """One whose bytes the kernel can hand on without showing them to us."""

    def splice(self, pipe: int, most: int, /) -> int:
        """Moves the next bytes into an empty pipe; their number, 0 at the end."""
        ...


class Origin(Protocol):
    """`name` tells this bucket apart from every other, for good; `label` is its short name in metrics and messages."""

    name: str
    label: str

    def head(self, key: str) -> OriginObject | None:
        """The object under exactly this key; None when there is none."""
        ...

    def checksum(self, obj: OriginObject) -> Checksum | None:
        """The one that it keeps of all bytes of exactly this version; None when it keeps none. CRC32C only if `obj` has it."""
        ...

    def list(self, folder: str) -> Iterator[OriginObject]:
        """Every object below `folder` ("" is all of the bucket), whatever its depth; never the folder's own marker."""
        ...

    def read(self, key: str, limit: int) -> bytes | None:
        """A small object whole; None when there is none. Raises IntegrityError when it is over `limit` bytes."""
        ...

    def open(self, obj: OriginObject, start: int, stop: int) -> AbstractContextManager[Body]:
        """Bytes [start, stop) of exactly this version. Raises Changed when it is another by now."""
        ...
