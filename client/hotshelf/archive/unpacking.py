"""Unpack: an archive that somebody else made becomes a folder, or nothing at all.

Invariant: no byte is parsed before all of them have been found to be `digest`; nothing is made outside a folder that is fresh
and our own; that folder is seen only when every file in it is right.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotshelf.archive.form import (
    FILE,
    FOLDER,
    LENGTH_BYTES,
    LIMITS,
    MAGIC,
    PIECE_BYTES,
    Limits,
    StrPath,
    disk_errors,
    opened,
)
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict, InsufficientSpace, IntegrityError, TooLarge
from hotshelf_shared.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest


def unpack(archive: StrPath, into: StrPath, *, digest: str, limits: Limits = LIMITS) -> Manifest:
    """The archive's files below `into`, which appears complete (0700, files 0600) or not at all; what it holds.

    `into` is nothing yet, or an empty folder; the folder above it is there. `digest` is what the lease says of the archive.
    Raises IntegrityError, TooLarge, Conflict, InsufficientSpace. What is unpacked is not synced to the disk.
    """
    wanted = Digest.parse(digest)
    with disk_errors(f"unpacking into {os.fspath(into)}"), opened(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or Digest.of_fd(fd) != wanted:
            raise IntegrityError(f"{os.fspath(archive)} is not {wanted}", hint="Nothing of it was looked at: lease it anew.")
        reader = _Reader(fd)
        tree = _read_manifest(reader)
        limits.check(tree, os.fstat(fd).st_size)
        with _unseen(Path(into), tree.size) as folder:
            stream, made = _Inflated(reader), set[str]()
            for path, entry in tree.items():
                _write_file(folder, path, entry, stream, made)
            stream.finish()
            if reader.digest != wanted:
                raise IntegrityError(f"{os.fspath(archive)} changed while it was unpacked")
    return tree


class _Reader:
    """The archive from its beginning, hashed as it is read: what is parsed is what was verified."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at, self._hasher = fd, 0, hashlib.sha256()

    def read(self, most: int) -> bytes:
        data = os.pread(self._fd, most, self._at)
        self._at += len(data)
        self._hasher.update(data)
        return data

    @property
    def digest(self) -> Digest:
        return Digest.from_hex(self._hasher.hexdigest())


class _Inflated:
    """The zlib stream, never more of it in memory than was asked for."""

    def __init__(self, reader: _Reader) -> None:
        self._reader, self._inflate, self._input = reader, zlib.decompressobj(), b""

    def read(self, most: int) -> bytes:
        """Empty at its end. Raises IntegrityError when it is broken or cut off."""
        while not self._inflate.eof:
            self._input = self._input or self._reader.read(PIECE_BYTES)
            is_last = not self._input
            try:
                data = self._inflate.decompress(self._input, most)
            except zlib.error as error:
                raise IntegrityError(f"the archive's bytes do not unpack: {error}") from error
            self._input = self._inflate.unconsumed_tail
            if data:
                return data
            if is_last and not self._inflate.eof:
                raise IntegrityError("the archive is cut off")
        return b""

    def finish(self) -> None:
        if self.read(1) or self._inflate.unused_data or self._input or self._reader.read(1):
            raise IntegrityError("the archive holds more than its manifest says")


def _read_manifest(reader: _Reader) -> Manifest:
    """Raises IntegrityError or TooLarge; every path in what it returns can be made below a folder and nowhere else."""
    head = reader.read(len(MAGIC) + LENGTH_BYTES)
    if len(head) < len(MAGIC) + LENGTH_BYTES or not head.startswith(MAGIC):
        raise IntegrityError("it is no archive of hotshelf", hint="Make it with hotshelf.archive.pack; no tar, no zip.")
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > MAX_MANIFEST_BYTES:
        raise TooLarge(f"a manifest of {length:,} bytes; {MAX_MANIFEST_BYTES:,} is the most")
    data = reader.read(length)
    tree = Manifest.parse(data)
    if tree.canonical() != data:
        raise IntegrityError("the archive's manifest is cut off, or not in its canonical form")
    return tree


@contextmanager
def _unseen(into: Path, need: int) -> Iterator[int]:
    """A fresh folder, private to us, that becomes `into` when all goes well and is gone when not. Raises Conflict."""
    with opened(into.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as parent:
        room = os.fstatvfs(parent)
        if need > room.f_bavail * room.f_frsize:
            raise InsufficientSpace(
                f"{need:,} bytes are to be unpacked into {into}, and {room.f_bavail * room.f_frsize:,} are free",
                hint="Free room on that disk.",
            )
        name = f".unpacking-{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            with opened(name, FOLDER, parent) as folder:
                yield folder
            try:
                os.rename(name, into.name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                raise Conflict(f"{into} is there already", hint="Unpack into a folder that is not there yet.") from error
        except BaseException:
            with suppress(OSError):  # a hidden folder that stays is litter, and the failure that is raised says more
                shutil.rmtree(name, dir_fd=parent)
            raise


def _write_file(root: int, path: str, entry: FileEntry, stream: _Inflated, made: set[str]) -> None:
    hasher, left = hashlib.sha256(), entry.size
    with _folder_of(root, path, made) as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE
        with opened(path.rpartition("/")[2], flags, folder) as fd:
            while left:
                data = stream.read(min(left, PIECE_BYTES))
                if not data:
                    raise IntegrityError(f"the archive ends within {path}")
                hasher.update(data)
                left -= len(data)
                while data:
                    data = data[os.write(fd, data) :]
    if Digest.from_hex(hasher.hexdigest()) != entry.digest:
        raise IntegrityError(f"{path} holds other bytes than the archive's manifest says")


@contextmanager
def _folder_of(root: int, path: str, made: set[str]) -> Iterator[int]:
    """The folder of a file, made on the way down; no link is followed, and there is none."""
    above, _, _ = path.rpartition("/")
    if not above:
        yield root
        return
    with _folder_of(root, above, made) as parent:
        name = above.rpartition("/")[2]
        if above not in made:
            os.mkdir(name, 0o700, dir_fd=parent)
            made.add(above)
        with opened(name, FOLDER, parent) as folder:
            yield folder
