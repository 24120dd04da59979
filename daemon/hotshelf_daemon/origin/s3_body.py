"""The bytes of an S3 answer as they come: soon rather than in full buffers, and checked where a checksum came with them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPResponse
from typing import Any

from awscrt import checksums

from hotshelf_daemon.origin.port import Corrupted

#: A read returns what has come after this long: a slow connection is to be seen as slow, and not as silent.
LINGER_S = 0.25
READ_BYTES = 256 << 10
_CHECKSUMS: dict[str, tuple[Callable[[Any, int], int], int]] = {
    "x-amz-checksum-crc64nvme": (checksums.crc64nvme, 8),
    "x-amz-checksum-crc32c": (checksums.crc32c, 4),
    "x-amz-checksum-crc32": (checksums.crc32, 4),
}


class Promise:
    """The checksum that a whole object's answer came with. A composite one (of parts, ``…-3``) says nothing about bytes."""

    def __init__(self, name: str, text: str, size: int) -> None:
        self._compute, width = _CHECKSUMS[name]
        self._wanted = int.from_bytes(base64.b64decode(text, validate=True)[:width], "big")
        self._so_far, self._left, self._name = 0, size, name

    @classmethod
    def of(cls, headers: dict[str, str], size: int) -> Promise | None:
        for name in _CHECKSUMS:
            if (text := headers.get(name)) and "-" not in text:
                try:
                    return cls(name, text, size)
                except ValueError:
                    continue
        return None

    def came(self, data: memoryview) -> None:
        """Raises Corrupted when these were the last bytes and the sum is another."""
        self._so_far = self._compute(data, self._so_far)
        self._left -= len(data)
        if self._left == 0 and self._so_far != self._wanted:
            raise Corrupted(f"the bytes do not match the {self._name} they came with")


def kept_of_all(headers: dict[str, str]) -> int | None:
    """The CRC-64/NVME of a whole object, if the service tells one that can be read."""
    try:
        data = base64.b64decode(headers.get("x-amz-checksum-crc64nvme", ""), validate=True)
    except ValueError:
        return None
    return int.from_bytes(data, "big") if len(data) == 8 else None


class StreamedBody:
    """A streaming body whose own errors are translated, and only those: the reader's disk errors are not the origin's."""

    def __init__(self, stream: Any, guard: Callable[[], AbstractContextManager[None]], promise: Promise | None = None) -> None:
        self._stream, self._guard, self._promise = stream, guard, promise
        self._read = _reader(stream._raw_stream)
        self._broken: Exception | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        with self._guard():
            taken = self._fill(buffer)
        if self._promise is not None and taken:
            self._promise.came(buffer[:taken])
        return taken

    def _fill(self, buffer: memoryview) -> int:
        if self._broken is not None:
            raise self._broken
        filled, until = 0, time.monotonic() + LINGER_S
        while filled < len(buffer):
            try:
                taken = self._read(buffer[filled:])
            except Exception as error:
                if not filled:
                    raise
                self._broken = error  # what came before it is good: the next call says so
                break
            if not taken:
                break
            filled += taken
            if time.monotonic() >= until:
                break
        return filled

    def close(self) -> None:
        self._stream.close()


def _reader(raw: Any) -> Callable[[memoryview], int]:
    """Reads what has come into a buffer, 0 at the end.

    Not by botocore's own readinto, which comes back only when the buffer is full: at a byte a second, never. A body of known
    length that is sent as it is needs no copy either: it is read past urllib3, whose connection is then given back here.
    """
    below = getattr(raw, "_fp", None)

    def copied(buffer: memoryview) -> int:
        data = raw.read1(min(len(buffer), READ_BYTES))
        buffer[: len(data)] = data
        return len(data)

    if not isinstance(below, HTTPResponse) or below.length is None or below.chunked or raw.headers.get("content-encoding"):
        return copied

    def straight(buffer: memoryview) -> int:
        if not below.length:
            return 0
        taken: int = below.fp.readinto1(buffer[: below.length])
        below.length -= taken
        if not below.length:
            below.close()
            raw.release_conn()
        return taken

    return straight
