"""Which parts of a file are in the page cache, and how a file that cannot be read is said.

Asked with preadv2(2)'s RWF_NOWAIT: it reads what is cached and fails with EAGAIN where it would have to wait. mincore(2) and
cachestat(2) would be quicker, but say nothing of files that are not the asker's to write, as blobs are not a worker's.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hotshelf_shared.errors import AccessDenied, IntegrityError
from hotshelf_shared.mounts import file_system_of, is_in_memory

#: A byte is asked for in every so many: pages come and go in runs, and a wrong guess costs one read by whoever maps it.
PROBE_BYTES = 64 << 10
#: What is told apart, and read at once.
BLOCK_BYTES = 4 << 20
#: A byte in memory is had in one or two microseconds, one on a disk in more than this.
PROBE_MOST_S = 10e-6
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # not there when Python was built against an old C library


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of a file from `start` to before `stop`."""

    path: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor to read from. Whatever goes wrong with the file is an AccessDenied or IntegrityError that names it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    except PermissionError as error:
        raise AccessDenied(
            f"{path} may not be read here", hint="Run the worker in the group that the store's files belong to."
        ) from error
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read: {error.strerror or error}", hint="`hotshelf verify` checks what is on the shelf."
        ) from error


def missing(path: str, size: int, *, until: float) -> list[Span]:
    """The parts that are not cached, in order; all of it where the file system cannot tell, or there is no time to ask.

    Raises AccessDenied, or IntegrityError also for a file of another size.
    """
    if time.monotonic() >= until or not size:
        return [Span(path, 0, size)] if size else []
    with opened(path) as fd:
        if (found := os.fstat(fd).st_size) != size:
            raise IntegrityError(f"{path} has {found:,} bytes, not {size:,}", hint="`hotshelf verify` checks what is held.")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # else asking in vain makes the kernel read ahead
        with suppress(_CannotTell):
            return list(_joined(path, fd, size))
    return [] if is_in_memory(file_system_of(path)) else [Span(path, 0, size)]


class _CannotTell(Exception):
    """Network file systems and tmpfs know no RWF_NOWAIT."""


def _joined(path: str, fd: int, size: int) -> Iterator[Span]:
    begun: int | None = None
    for start in range(0, size, BLOCK_BYTES):
        if not _is_block_cached(fd, start, min(start + BLOCK_BYTES, size)):
            begun = start if begun is None else begun
        elif begun is not None:
            yield Span(path, begun, start)
            begun = None
    if begun is not None:
        yield Span(path, begun, size)


def _is_block_cached(fd: int, start: int, stop: int) -> bool:
    """A block is missing as soon as a page is; and when it took too long: a quick disk can have answered in between.

    To take a cached block for a missing one costs a copy in memory only.
    """
    probes = range(start, stop, PROBE_BYTES)
    began = time.perf_counter()
    return all(_is_cached(fd, at) for at in probes) and time.perf_counter() - began < len(probes) * PROBE_MOST_S


def _is_cached(fd: int, at: int) -> bool:
    if _NOWAIT is None:
        raise _CannotTell
    try:
        return os.preadv(fd, [bytearray(1)], at, _NOWAIT) == 1
    except BlockingIOError:
        return False  # and a page of it is on its way: nobody may ask twice
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise _CannotTell from error
        raise
