"""The identity of bytes: ``sha256:<64 lower-case hex>``.

A `Digest` is a `str`, so it prints, compares and serialises as one, but only `parse` and `of` make one: a value of this
type has been checked.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Self

from hotshelf_shared.errors import InvalidRequest

_FORM = re.compile(r"sha256:[0-9a-f]{64}\Z")
_READ_BYTES = 1 << 20  # pragma: no mutate - any size reads the same


class Digest(str):
    """A checked ``sha256:…`` name."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Self:
        """Raises InvalidRequest when `text` is not of the form."""
        if not isinstance(text, str) or not _FORM.match(text):
            raise InvalidRequest(f"not a digest: {str(text)[:80]!r}", hint="A digest is sha256: and 64 hex digits.")
        return cls(text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        return cls.from_hex(hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, hex_digits: str) -> Self:
        return cls.parse(f"sha256:{hex_digits}")

    @classmethod
    def of_fd(cls, fd: int) -> Self:
        """The digest of all of an open file, read by offset: the descriptor's position is left alone."""
        hasher, buffer, at = hashlib.sha256(), bytearray(_READ_BYTES), 0
        view = memoryview(buffer)
        while n := os.preadv(fd, [view], at):
            hasher.update(view[:n])
            at += n
        return cls.from_hex(hasher.hexdigest())

    @property
    def hex(self) -> str:
        return self[7:]


#: The digest of a canonical manifest.
Revision = Digest
