"""What of a file is in the page cache, as the kernel's mincore(2) says; and out of it again."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from hotshelf_shared.mounts import file_system_of, is_in_memory

from .fakes import PATIENCE_S

_libc = ctypes.CDLL(None, use_errno=True)


def drop(path: Path) -> None:
    """Takes a file's pages out of the cache. Skips where that cannot be done: on a tmpfs, say."""
    until = time.monotonic() + (0 if is_in_memory(file_system_of(path)) else PATIENCE_S)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # what is not on disk stays
        while True:  # and so does, for a moment, what the kernel is busy with
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not path.stat().st_size or not cached_bytes(path):
                return
            if time.monotonic() > until:
                pytest.skip(f"this machine lacks a disk below {path.parent} whose pages can be dropped")
    finally:
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
