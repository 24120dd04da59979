"""What an archive is, and how much one may hold.

The form: `MAGIC`; the length of the manifest in 8 bytes, big-endian; the manifest, canonical JSON, path → digest and size; a
zlib stream of the files' bytes in the order of the manifest, and nothing after it. It has no words for links, devices, modes,
owners, holes or names given twice, so none can be smuggled in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotshelf_shared.errors import HotshelfError, InsufficientSpace, InvalidRequest, TooLarge
from hotshelf_shared.manifest import MAX_FILES, Manifest

StrPath = str | os.PathLike[str]
MAGIC = b"hotshelf bundle 1\n"
LENGTH_BYTES = 8
#: Small, because what zlib has not taken yet is copied for each file.
PIECE_BYTES = 64 << 10
FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold: files, folders one below the other, bytes of all files, and how many times its own size.

    Below `slack` bytes no ratio is asked for.
    """

    files: int = MAX_FILES
    depth: int = 32
    total_bytes: int = 16 << 30
    ratio: int = 100
    slack_bytes: int = 1 << 20

    def check(self, tree: Manifest, archive_bytes: int) -> None:
        """Raises TooLarge, or InvalidRequest for a tree that is none."""
        if not tree:
            raise InvalidRequest("there is no file in it", hint="Compile something first.")
        if len(tree) > self.files:
            raise TooLarge(f"it holds {len(tree):,} files; {self.files:,} is the most")
        if deep := next((path for path in tree if path.count("/") > self.depth), None):
            raise TooLarge(f"{deep[:80]!r}… lies more than {self.depth} folders deep")
        if tree.size > self.total_bytes:
            raise TooLarge(f"its files have {tree.size:,} bytes; {self.total_bytes:,} is the most")
        if self.is_bomb(tree, archive_bytes):
            raise TooLarge(f"{archive_bytes:,} bytes that become {tree.size:,}: over {self.ratio} times as many")

    def is_bomb(self, tree: Manifest, archive_bytes: int) -> bool:
        return tree.size > max(self.slack_bytes, self.ratio * archive_bytes)


LIMITS = Limits()


@contextmanager
def opened(path: StrPath, flags: int, folder: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{doing} failed: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientSpace(reason, hint="Free room on that disk.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
            raise InvalidRequest(reason, hint="Name a folder and a file that this process may use.") from error
        raise HotshelfError(reason, hint="Look at the disk.") from error
