"""Pack: a folder of regular files becomes one archive, the same bytes for the same files."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
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
from hotshelf_shared.errors import IntegrityError, InvalidRequest, TooLarge
from hotshelf_shared.manifest import FileEntry, Manifest

#: Three times smaller at 90 MB/s and core; level 6 is a sixth smaller still, at a quarter of the speed.
_LEVEL = 1


def pack(folder: StrPath, archive: StrPath, *, limits: Limits = LIMITS) -> FileEntry:
    """Writes the files below `folder` into `archive`, which appears (or is replaced) complete; its digest and size.

    The same files make the same bytes, whatever their times, modes and order (with the same zlib). Raises InvalidRequest for
    anything but regular files and folders, TooLarge, IntegrityError for a file that changes meanwhile, InsufficientSpace.
    """
    target = Path(archive)
    with disk_errors(f"packing {os.fspath(folder)}"), opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root:
        tree = Manifest.of(dict(_look(root, "", limits.depth)))
        unseen = target.with_name(f".{secrets.token_hex(8)}")
        try:
            entry = _write_archive(root, tree, unseen, _LEVEL)
            if limits.is_bomb(tree, entry.size):  # zeros, say: kept as they are, or `unpack` would refuse them
                unseen.unlink()
                entry = _write_archive(root, tree, unseen, 0)
            limits.check(tree, entry.size)
            unseen.replace(target)
        except BaseException:
            unseen.unlink(missing_ok=True)
            raise
    return entry


def _look(folder: int, above: str, depth: int) -> Iterator[tuple[str, FileEntry]]:
    """Every file with its digest. Raises InvalidRequest naming what is neither file nor folder, TooLarge."""
    for name in sorted(os.listdir(folder)):
        path = f"{above}{name}"
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if not depth:
                raise TooLarge(f"{path[:80]!r}… lies too many folders deep")
            with opened(name, FOLDER, folder) as below:
                yield from _look(below, f"{path}/", depth - 1)
        elif stat.S_ISREG(mode):
            with opened(name, os.O_RDONLY | FILE, folder) as fd:
                yield path, FileEntry(Digest.of_fd(fd), os.fstat(fd).st_size)
        else:
            raise InvalidRequest(f"{path} is neither a file nor a folder", hint="Leave links, sockets and the like out.")


def _write_archive(root: int, tree: Manifest, path: Path, level: int) -> FileEntry:
    hasher, squeeze, size, head = hashlib.sha256(), zlib.compressobj(level), 0, tree.canonical()
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags | FILE, 0o600)) as file:

        def write(data: bytes) -> None:
            nonlocal size
            hasher.update(data)
            size += file.write(data)

        write(MAGIC + len(head).to_bytes(LENGTH_BYTES, "big") + head)
        for name, entry in tree.items():
            for piece in _pieces(root, name, entry):
                write(squeeze.compress(piece))
        write(squeeze.flush())
    return FileEntry(Digest.from_hex(hasher.hexdigest()), size)


def _pieces(root: int, path: str, entry: FileEntry) -> Iterator[bytes]:
    """Raises IntegrityError when they are not what they were a moment ago."""
    hasher = hashlib.sha256()
    with opened(path, os.O_RDONLY | FILE, root) as fd:
        while piece := os.read(fd, PIECE_BYTES):
            hasher.update(piece)
            yield piece
    if Digest.from_hex(hasher.hexdigest()) != entry.digest:
        raise IntegrityError(f"{path} changed while it was packed", hint="Pack when nothing is being compiled.")
