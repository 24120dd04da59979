"""How bytes get from an origin's answer into a file: through a buffer of ours, or, where the kernel can, through a pipe.

The pipe hands the network's own pages to the file system: one copy instead of two, and a quarter of the steps in Python. What
is checked is then read back from the file while it is still warm.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from typing import Protocol

from hotshelf_daemon.origin import CANNOT_SPLICE, Body, SplicedBody
from hotshelf_daemon.store.durable import pwrite_all

#: Small enough for a processor's cache.
BUFFER_BYTES = 256 << 10
#: So much is written at once: twice as much costs three times as much where the kernel makes folios as large as writes.
WRITTEN_BYTES = 128 << 10
#: What is shorter is not worth a pipe.
SPLICED_BYTES = 64 << 10
#: As much as an unprivileged user may have in a pipe.
PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_thread = threading.local()


class Mover(Protocol):
    """`take`, `put`, `pieces`, in this order, again and again. By one thread."""

    def take(self, most: int) -> int:
        """Waits for the next bytes and holds them; how many, 0 at the end. Raises what the body does."""
        ...

    def put(self, fd: int, at: int) -> None:
        """Writes what was taken. OSError is the file's."""
        ...

    def pieces(self, fd: int, at: int) -> Iterator[memoryview]:
        """What was put, to be looked at."""
        ...


@contextlib.contextmanager
def mover(body: Body, count: int) -> Iterator[Mover]:
    """The best way for so many bytes."""
    if count < SPLICED_BYTES or not isinstance(body, SplicedBody):
        yield Copying(body)
        return
    if (pipe := _pipe()) is None:
        yield Copying(body)
        return
    try:
        yield Splicing(body, *pipe)
    finally:
        for end in pipe:
            os.close(end)


def _pipe() -> tuple[int, int] | None:
    """One of PIPE_BYTES: a smaller one is dearer than a copy. None without descriptors, or when this user has many pipes."""
    try:
        pipe = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(pipe[0], _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        for end in pipe:
            os.close(end)
        return None
    return pipe


class Copying:
    def __init__(self, body: Body) -> None:
        self._body, self._held = body, memoryview(b"")

    def take(self, most: int) -> int:
        buffer = _buffer()
        taken = self._body.readinto(buffer[:most])
        self._held = buffer[:taken]
        return taken

    def put(self, fd: int, at: int) -> None:
        for start in range(0, len(self._held), WRITTEN_BYTES):
            pwrite_all(fd, self._held[start : start + WRITTEN_BYTES], at + start)

    def pieces(self, fd: int, at: int) -> Iterator[memoryview]:  # noqa: ARG002
        yield self._held


class Splicing:
    """Invariant: the pipe is empty but between `take` and `put`."""

    def __init__(self, body: SplicedBody, reading: int, writing: int) -> None:
        self._body, self._reading, self._writing = body, reading, writing
        self._held, self._can = 0, True

    def take(self, most: int) -> int:
        self._held = self._body.splice(self._writing, min(most, PIPE_BYTES))
        return self._held

    def put(self, fd: int, at: int) -> None:
        stop = at + self._held
        while self._can and at < stop:
            try:
                at += os.splice(self._reading, fd, min(stop - at, WRITTEN_BYTES), offset_dst=at)
            except OSError as error:
                if error.errno not in CANNOT_SPLICE:
                    raise
                self._can = False
        while at < stop:
            count = os.readv(self._reading, [_buffer()[: min(stop - at, WRITTEN_BYTES)]])
            pwrite_all(fd, _buffer()[:count], at)
            at += count

    def pieces(self, fd: int, at: int) -> Iterator[memoryview]:
        return pieces_of(fd, at, at + self._held)


def pieces_of(fd: int, start: int, stop: int) -> Iterator[memoryview]:
    """What the file holds there now, a buffer at a time; less where the file ends before."""
    buffer = _buffer()
    while start < stop and (count := os.preadv(fd, [buffer[: stop - start]], start)):
        yield buffer[:count]
        start += count


def _buffer() -> memoryview:
    """Each thread keeps one for good: no allocation for each chunk."""
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(BUFFER_BYTES))
    kept: memoryview = _thread.buffer
    return kept
