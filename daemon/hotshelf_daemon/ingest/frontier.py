"""sha256 of a file that arrives in segments: hashed in order, behind the contiguous frontier, while it arrives. And what
origins keep of it: its CRC-64/NVME is put together from the segments' own; its CRC32C, where one is kept, goes with the hash.

The thread that writes at the frontier hashes from its buffer; what arrived out of order is read back from the page cache
by a hashing thread, which goes before those that fetch: else the hash would be far behind when the last byte comes.
Invariant: at most one thread owns the hash at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable

from awscrt.checksums import combine_crc64nvme, crc32c

from hotshelf_daemon.objects import Algorithm, Checksum
from hotshelf_daemon.store import durable
from hotshelf_shared.digest import Digest

#: At each turn a hashing thread waits for Python's lock, behind all threads that fetch; more than this leaves the cache cold.
READ_BYTES = 1 << 20
#: How far behind the hash pages are let go, where they are not to be kept: writing them must not hold up the hash.
BEHIND_BYTES = 64 << 20
#: So much is hashed of a file before it is another one's turn, where there are more of them than threads.
TURN_BYTES = 256 << 20
_thread = threading.local()


class Frontier:
    """`keep` says whether the pages stay in the page cache, for whoever loads the file next. `aside` runs work elsewhere;
    without it whoever closes a gap hashes what it can. `inline` says whether who writes at the frontier is to hash.
    `kept` is what the bytes must come to, if that is known: only then is a CRC32C taken beside the hash."""

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        keep: bool = True,
        aside: Callable[[Callable[[], None]], object] | None = None,
        inline: Callable[[], bool] = lambda: True,
        kept: Checksum | None = None,
    ) -> None:
        self._fd = fd
        self._size = size
        self._keep = keep
        self._aside, self._inline = aside, inline
        self._forgotten = 0
        self._hash = hashlib.sha256()
        self._crc32c = 0 if kept is not None and kept.algorithm == "CRC32C" else None
        self._at = 0
        self._arrived: dict[int, int] = {}
        self._sums: dict[int, tuple[int, int]] = {}
        self._owned = False
        self._reading = False
        self._halted = False
        self._lock = threading.Condition()

    def own(self, start: int) -> bool:
        """Takes the hash for bytes from `start` on, if they are the next ones and nobody has it."""
        with self._lock:
            if self._owned or self._at != start or not self._inline():
                return False
            self._owned = True
            return True

    def feed(self, data: memoryview) -> None:
        """The owner's next bytes."""
        self._hash.update(data)
        if self._crc32c is not None:
            self._crc32c = crc32c(data, self._crc32c)
        self._at += len(data)

    def disown(self) -> None:
        with self._lock:
            self._owned = self._reading = False
            self._lock.notify_all()

    def halt(self) -> None:
        """Given up; returns when nobody reads the file any more."""
        with self._lock:
            self._halted = True
            self._lock.wait_for(lambda: not self._reading)

    def arrived(self, start: int, stop: int, crc: int) -> None:
        """[start, stop) is in the file, with this CRC-64/NVME. Hashes what is contiguous, unless another thread is at it."""
        with self._lock:
            self._arrived[start] = stop
            self._sums[start] = (stop, crc)
            if self._owned or self._halted or self._reach() == self._at:
                return
            self._owned = True
        if self._aside is None:
            self._catch_up()
        else:
            self._aside(self._follow)

    def _follow(self) -> None:
        # What fails here fails again, and is heard, when the digest is asked for.
        with contextlib.suppress(OSError):
            if self._catch_up(self._at + TURN_BYTES) and self._aside is not None:
                self._aside(self._follow)

    def _catch_up(self, until: int | None = None) -> bool:
        """The owner hashes what is contiguous, and owns no more; unless it comes to `until`, and goes on another time."""
        try:
            while (stop := self._next_stop()) > self._at:
                if until is not None and self._at >= until:
                    with self._lock:
                        self._reading = False
                        self._lock.notify_all()
                    return True
                stop = stop if until is None else min(stop, until)
                buffer = _buffer()
                while self._at < stop and not self._halted:
                    taken = os.preadv(self._fd, [buffer[: stop - self._at]], self._at)
                    if not taken:
                        raise OSError(f"the file ends at {self._at}, before {stop}")
                    self.feed(buffer[:taken])
        except BaseException:
            self.disown()
            raise
        return False

    def _next_stop(self) -> int:
        """How far the owner may read now; if no further than it is, it owns no more: who arrives next must know that."""
        with self._lock:
            stop = self._at if self._halted else self._reach()
            self._reading = stop > self._at
            if not self._reading:
                self._owned = False
                self._lock.notify_all()
            return stop

    def let_go(self) -> None:
        """Drops the pages that are hashed, but for the last ones. By whoever has just written a segment."""
        with self._lock:
            start, stop = self._forgotten, self._at - BEHIND_BYTES
            if self._keep or stop - start < BEHIND_BYTES:
                return
            self._forgotten = stop
        durable.forget_pages(self._fd, start, stop)

    def _reach(self) -> int:
        """How far the contiguous bytes go. Under the lock."""
        for start in [start for start, stop in self._arrived.items() if stop <= self._at]:
            del self._arrived[start]
        reach = self._at
        for start in sorted(self._arrived):
            if start > reach:
                break
            reach = max(reach, self._arrived[start])
        return reach

    def digest(self) -> Digest:
        """Of the whole file. Call it when every segment has arrived."""
        with self._lock:
            self._lock.wait_for(lambda: not self._owned)
            self._owned = True
        self._catch_up()
        if self._at != self._size:
            raise AssertionError(f"hashed {self._at} of {self._size} bytes")
        return Digest.from_hex(self._hash.hexdigest())

    def checksum(self, algorithm: Algorithm) -> Checksum:
        """Of the whole file, when every segment has arrived. The CRC32C after the digest, and only where one is kept."""
        if algorithm == "CRC-64/NVME":
            return Checksum.crc64nvme(self._crc64nvme())
        if self._crc32c is None or self._at != self._size:
            raise AssertionError(f"{self._at} of {self._size} bytes are hashed, and CRC32C is {self._crc32c}")
        return Checksum.crc32c(self._crc32c)

    def _crc64nvme(self) -> int:
        at = whole = 0
        for start, (stop, crc) in sorted(self._sums.items()):
            if start != at:
                break
            whole, at = combine_crc64nvme(whole, crc, stop - start), stop
        if at != self._size:
            raise AssertionError(f"segments reach {at} of {self._size} bytes")
        return whole


def _buffer() -> memoryview:
    """Kept for good by each thread that hashes: they are few."""
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(READ_BYTES))
    kept: memoryview = _thread.buffer
    return kept
