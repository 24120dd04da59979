"""Whether a file executes when it is loaded, by its bytes: a pickle is a pickle under any name.

A file that the pickle machine would reject before its first import is no pickle (`pickles`); a zip is what it holds.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import zipfile
from typing import Any

from hotshelf_daemon.policy.pickles import Data, is_pickle

_MAX_MEMBERS = 20_000
#: What is no larger is read rather than mapped: to unmap stops all processors for a moment.
READ_BYTES = 256 << 10
_ZIP = b"PK\x03\x04", b"PK\x05\x06"


def reason_by_bytes(fd: int, size: int) -> str | None:
    """Why the open file is left out; None when it is inert. Of a large one only the first pages, unless it is a pickle."""
    if size < 2:
        return None
    if size <= READ_BYTES:
        return _reason(_read(fd, size))
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        return _reason(data)


def _read(fd: int, size: int) -> bytes:
    """All of it: of half a pickle nothing could be said."""
    data = b""
    while len(data) < size:
        if not (more := os.pread(fd, size - len(data), len(data))):
            raise OSError(errno.EIO, "the file is shorter than it was")
        data += more
    return data


def _reason(data: Data) -> str | None:
    if data[:4] in _ZIP:
        return _reason_of_zip(data)
    return "pickle by content" if is_pickle(data) else None


def _reason_of_zip(data: Data) -> str | None:
    """torch.save and joblib write zips with pickles inside; a zip that cannot be read through is not trusted either."""
    try:
        file: Any = _Seekable(data)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError):
        return "unreadable zip archive"
    if len(names) > _MAX_MEMBERS or any(name.lower().endswith((".pkl", ".pickle", ".py", "/data.pkl")) for name in names):
        return "zip archive with pickle or code"
    return None


class _Seekable(io.RawIOBase):
    """What was mapped or read as a seekable file."""

    def __init__(self, data: Data) -> None:
        self._data, self._at = data, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        taken = self._data[self._at : self._at + n] if n >= 0 else self._data[self._at :]
        self._at += len(taken)
        return taken
