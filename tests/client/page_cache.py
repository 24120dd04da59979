"""What of a file is in the page cache, as the kernel's mincore(2) says; and out of it again."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def drop(path: Path) -> None:
    """Takes a file's pages out of the cache, as far as its file system does that."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # what is not on disk stays
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def written(path: Path, size: int) -> Path:
    """A file of `size` bytes that nobody has in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    drop(path)
    return path


def cached_bytes(path: Path, start: int = 0, stop: int | None = None) -> int:
    """How many bytes of a file of ours are cached, in whole pages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        done = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), pages)
        del first
        assert done == 0, os.strerror(ctypes.get_errno())
        end = len(mapped) if stop is None else stop
    return sum(page & 1 for page in pages[start // mmap.PAGESIZE : -(-end // mmap.PAGESIZE)]) * mmap.PAGESIZE
