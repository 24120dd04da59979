"""Folders of this machine as an origin: only below configured roots, and never through a link that leaves them.

Invariant: whatever is opened is looked up again through its descriptor (/proc/self/fd): its real path must lie below the
root, so that no race with a planted link can make the daemon read what the worker who asked may not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_shared.errors import AccessDenied, IntegrityError, OriginUnavailable

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class _File:
    def __init__(self, fd: int, start: int, stop: int) -> None:
        self._fd, self._at, self._stop = fd, start, stop

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            taken = os.preadv(self._fd, [buffer[: self._stop - self._at]], self._at)
        except OSError as error:
            raise OriginUnavailable(f"reading the file failed: {error.strerror}") from error
        self._at += taken
        return taken


class FileOrigin:
    """One configured root. Keys are absolute paths without the leading slash, as in a ``file:///…`` source."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.name = f"file://{self.root}"
        self.label = "file"

    def head(self, key: str) -> OriginObject | None:
        fd = self._open(key)
        if fd is None:
            return None
        try:
            seen = os.fstat(fd)
            return _object(key, seen) if stat.S_ISREG(seen.st_mode) else None
        finally:
            os.close(fd)

    def checksum(self, _obj: OriginObject) -> Checksum | None:
        return None

    def list(self, folder: str) -> Iterator[OriginObject]:
        for at, folders, names in os.walk(f"/{folder}", onerror=_raise_unless_gone):
            folders.sort()
            for name in sorted(names):
                key = f"{at}/{name}".lstrip("/")
                if (found := self.head(key)) is not None:
                    yield found

    def read(self, key: str, limit: int) -> bytes | None:
        found = self.head(key)
        if found is None:
            return None
        if found.size > limit:
            raise IntegrityError(f"{key} is {found.size:,} bytes; {limit:,} is the most here")
        buffer = bytearray(found.size)
        with self.open(found, 0, found.size) as body:
            taken = body.readinto(memoryview(buffer)) if buffer else 0
        if taken != len(buffer):
            raise Changed(f"/{key} changed while it was read")
        return bytes(buffer)

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        fd = self._open(obj.key)
        if fd is None:
            raise Changed(f"/{obj.key} is gone")
        try:
            if _object(obj.key, os.fstat(fd)) != obj:
                raise Changed(f"/{obj.key} changed while it was fetched")
            yield _File(fd, start, stop)
            if _object(obj.key, os.fstat(fd)) != obj:
                raise Changed(f"/{obj.key} changed while it was fetched")
        finally:
            os.close(fd)

    def _open(self, key: str) -> int | None:
        """A descriptor whose real path is below the root; None when there is nothing."""
        try:
            fd = os.open(f"/{key}", _FLAGS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                return None
            raise _translated(error, f"/{key}") from error
        real = os.readlink(f"/proc/self/fd/{fd}")
        if real != self.root and not real.startswith(self.root.rstrip("/") + "/"):
            os.close(fd)
            raise AccessDenied(f"/{key} lies outside the configured roots", hint="Add its folder to `roots`.")
        return fd


def _translated(error: OSError, path: object) -> AccessDenied | OriginUnavailable:
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"the daemon may not read {path}", hint="Give its user read access.")
    return OriginUnavailable(f"opening {path} failed: {error.strerror}")


def _raise_unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is an error: a tree that silently lacks a part must never become a snapshot."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise _translated(error, error.filename) from error


def _object(key: str, seen: os.stat_result) -> OriginObject:
    return OriginObject(key, seen.st_size, f"{seen.st_ino}-{seen.st_mtime_ns}-{seen.st_ctime_ns}-{seen.st_size}")


def root_for(path: str, roots: list[str]) -> str:
    """The configured root that holds `path`. Raises AccessDenied, the same whether or not anything is there."""
    for root in roots:
        real = os.path.realpath(root)
        if path == real or path.startswith((real.rstrip("/") + "/", root.rstrip("/") + "/")):
            return root
    raise AccessDenied(
        f"file://{path} is below none of the configured roots",
        hint="An operator can allow a folder with `roots: [/FOLDER]`.",
    )
