"""The bytes of an S3 answer as they come: soon rather than in full buffers, and checked where a checksum came with them."""

from __future__ import annotations

import base64
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any, cast

from awscrt import checksums

from hotshelf_daemon.origin.port import CANNOT_SPLICE, Corrupted

#: A read returns what has come after this long, or with the next bytes where it cannot look ahead: a slow connection is to
#: be seen as slow, and not as silent.
LINGER_S = 0.25
READ_BYTES = 256 << 10
#: What goes through our memory all the same, at a time: no pipe that is worth it is smaller.
COPIED_BYTES = 64 << 10
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

    def __init__(self, stream: Any, as_ours: Callable[[Exception], Exception | None], promise: Promise | None = None) -> None:
        self._stream, self._as_ours, self._promise = stream, as_ours, promise
        self._read = _reader(stream._raw_stream)
        self._broken: Exception | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        taken = self._gather(lambda at: self._read(buffer[at:]), len(buffer))
        if self._promise is not None and taken:
            self._promise.came(buffer[:taken])
        return taken

    def _gather(self, more: Callable[[int], int], most: int) -> int:
        """Calls `more` with what there is so far, until there is enough or it takes too long."""
        try:
            if self._broken is not None:
                raise self._broken
            filled, until = 0, time.monotonic() + LINGER_S
            while filled < most:
                try:
                    taken = more(filled)
                except Exception as error:
                    if not filled:
                        raise
                    self._broken = error  # what came before it is good: the next call says so
                    break
                filled += taken
                if not taken or time.monotonic() >= until:
                    break
            return filled
        except Exception as error:
            if (ours := self._as_ours(error)) is None:
                raise
            raise ours from error

    def close(self) -> None:
        self._stream.close()


class PlainBody(StreamedBody):
    """One that comes over a socket as it is: not encrypted, not encoded, its length known and nothing else promised."""

    def __init__(self, stream: Any, as_ours: Callable[[Exception], Exception | None]) -> None:
        super().__init__(stream, as_ours)
        self._response: HTTPResponse = stream._raw_stream._fp
        self._socket = _socket_of(self._response)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        #: Whether bytes may wait in Python's buffer, where they came with the head of the answer.
        self._is_new = True
        self._can = True

    def splice(self, pipe: int, most: int, /) -> int:
        return self._gather(
            lambda there: self._moved(self._move(pipe, min(most - there, self._response.length or 0), there)), most
        )

    def _move(self, pipe: int, count: int, there: int) -> int:
        """More bytes into the pipe; 0 at the end, when no more fit, and when those that are there have waited long enough."""
        count = min(count, self._response.length or 0)
        if not count or (there and (self._is_new or not self._can)):
            return 0
        if self._is_new:
            held = self._response.fp.peek()
            self._is_new = len(held) > min(count, COPIED_BYTES)
            return os.write(pipe, self._response.fp.read1(min(count, len(held), COPIED_BYTES)))
        while self._can:
            try:
                return os.splice(self._socket.fileno(), pipe, count, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if self._readable.poll(0):  # the pipe has no room for it, or it comes to `recv` only
                    return 0 if there else self._copied(pipe, count)
            except OSError as error:
                if error.errno not in CANNOT_SPLICE:
                    raise
                self._can = False
                break
            wait_s = LINGER_S if there else self._socket.gettimeout()
            if not self._readable.poll(None if wait_s is None else 1e3 * wait_s):
                if there:
                    return 0
                raise TimeoutError("timed out")
        return self._copied(pipe, count)

    def _copied(self, pipe: int, count: int) -> int:
        return os.write(pipe, self._socket.recv(min(count, COPIED_BYTES)))

    def _moved(self, taken: int) -> int:
        return _counted_off(self._response, self._stream._raw_stream, taken) if taken else 0


def streamed(stream: Any, as_ours: Callable[[Exception], Exception | None], promise: Promise | None) -> StreamedBody:
    raw = stream._raw_stream
    if promise is None and _is_plain(raw) and type(_socket_of(raw._fp)) is socket.socket:
        return PlainBody(stream, as_ours)
    return StreamedBody(stream, as_ours, promise)


def _is_plain(raw: Any) -> bool:
    """A body of known length that is sent as it is: it needs no help from urllib3."""
    below = getattr(raw, "_fp", None)
    plain = isinstance(below, HTTPResponse) and below.length is not None and not below.chunked
    return plain and not raw.headers.get("content-encoding")


def _socket_of(response: HTTPResponse) -> Any:
    return getattr(getattr(response.fp, "raw", None), "_sock", None)


def _counted_off(response: HTTPResponse, raw: Any, taken: int) -> int:
    """Bytes that went past urllib3. After the last one its connection is given back."""
    assert response.length is not None
    response.length -= taken
    if not response.length:
        response.close()
        raw.release_conn()
    return taken


def _reader(raw: Any) -> Callable[[memoryview], int]:
    """Reads what has come into a buffer, 0 at the end.

    Not by botocore's own readinto, which comes back only when the buffer is full: at a byte a second, never. A body of known
    length that is sent as it is needs no copy either: it is read past urllib3, whose connection is then given back here.
    """

    def copied(buffer: memoryview) -> int:
        data = raw.read1(min(len(buffer), READ_BYTES))
        buffer[: len(data)] = data
        return len(data)

    if not _is_plain(raw):
        return copied
    below = raw._fp

    def straight(buffer: memoryview) -> int:
        if not below.length:
            return 0
        return _counted_off(below, raw, below.fp.readinto1(buffer[: below.length]))

    if not isinstance(encrypted := _socket_of(below), ssl.SSLSocket):
        return straight
    is_new = True  # bytes may wait in Python's buffer, where they came with the head of the answer

    def decrypted(buffer: memoryview) -> int:
        """A record of 16 KiB at a time, whatever is asked for: what Python does for each is dear."""
        nonlocal is_new
        if not (count := min(below.length, len(buffer))):
            return 0
        if is_new:
            held = len(below.fp.peek())
            is_new = held > count
            return straight(buffer[: min(held, count)])
        taken = cast(int, encrypted.read(count, buffer))
        if taken == below.length and encrypted.pending():
            raw.close()  # what comes after the last byte would be taken for the next answer
        return _counted_off(below, raw, taken) if taken else 0

    return decrypted
