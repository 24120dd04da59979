"""Blobs on disk: ingests become blobs by seal → rename → sync, and are read back only to be checked."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest


def open_ingest(layout: Layout, name: str, size: int, *, resume: bool) -> tuple[int, bool]:
    """The ingest's file, open for writing, and whether it holds what an earlier daemon wrote."""
    if resume:
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout["ingest"])
            seen = os.fstat(fd)
            if stat.S_ISREG(seen.st_mode) and seen.st_size == size:
                return fd, True
            os.close(fd)
    with durable.disk_errors("making room for a download"):
        with contextlib.suppress(FileExistsError):
            return durable.create(layout["ingest"], name, size), False
        layout.remove("ingest", name)
        return durable.create(layout["ingest"], name, size), False


def drop_ingest(layout: Layout, name: str) -> None:
    with durable.disk_errors("removing a download"), contextlib.suppress(FileNotFoundError):
        layout.remove("ingest", name)


def publish(layout: Layout, sealed: Mapping[str, Digest], *, known: Iterable[Digest] = ()) -> None:
    """Sealed ingests become blobs: rename without replacement, then one sync per directory for the whole batch.

    `known` are digests that the index holds: a second copy of one of them is dropped. An unknown file that already has
    a blob's name is a stranger whose bytes nobody vouches for: it makes way, into quarantine. When it fails, what it had
    placed is taken back.
    """
    held, placed = set(known), set[Digest]()
    try:
        with durable.disk_errors("committing a blob"):
            for name, digest in sealed.items():
                shard = layout.shard(digest.hex)
                try:
                    durable.rename_new(layout["ingest"], name, shard, digest.hex)
                except FileExistsError:
                    if digest in held | placed:
                        layout.remove("ingest", name)
                        continue
                    layout.quarantine(shard, digest.hex)
                    durable.rename_new(layout["ingest"], name, shard, digest.hex)
                placed.add(digest)
            for shard in {layout.shard(digest.hex) for digest in placed}:
                os.fsync(shard)
    except BaseException:
        withdraw(layout, placed)
        raise


def withdraw(layout: Layout, digests: Iterable[Digest]) -> None:
    """Blobs whose commit failed half-way: no row will speak of them. Best effort; the next start adopts what is left."""
    with contextlib.suppress(HotshelfError):
        discard(layout, digests)


def discard(layout: Layout, digests: Iterable[Digest]) -> None:
    """Removes blobs that the index has marked for deletion; one that is gone already is fine."""
    with durable.disk_errors("removing a blob"):
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                layout.discard(layout.shard(digest.hex), digest.hex)


def quarantine(layout: Layout, digest: Digest) -> None:
    with durable.disk_errors("quarantining a blob"), contextlib.suppress(FileNotFoundError):
        layout.quarantine(layout.shard(digest.hex), digest.hex)


def open_blob(layout: Layout, digest: Digest) -> int:
    """A descriptor for reading. Raises FileNotFoundError, or IntegrityError when it is no regular file."""
    fd = os.open(digest.hex, durable.READ_ONLY_FLAGS, dir_fd=layout.shard(digest.hex))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IntegrityError(f"the blob {digest} is no regular file")
    return fd


def read(layout: Layout, digest: Digest, limit: int) -> bytes:
    """A small blob's bytes (JSON that policy looks into). Raises as `open_blob`."""
    fd = open_blob(layout, digest)
    try:
        return os.pread(fd, limit, 0)
    finally:
        os.close(fd)


def size_of(layout: Layout, digest: Digest) -> int | None:
    """Its size on disk; None when there is no such regular file. What the index says is held against this."""
    return None if (seen := mark(layout, digest)) is None else seen.size


@dataclass(frozen=True, slots=True)
class Mark:
    """Which file it is and when it last changed: nobody but the kernel sets `changed_ns`, so an equal mark is an equal file."""

    inode: int
    size: int
    changed_ns: int


def mark(layout: Layout, digest: Digest) -> Mark | None:
    """None when there is no such regular file."""
    try:
        seen = os.stat(digest.hex, dir_fd=layout.shard(digest.hex), follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Mark(seen.st_ino, seen.st_size, seen.st_ctime_ns) if stat.S_ISREG(seen.st_mode) else None


def is_right(layout: Layout, digest: Digest) -> bool:
    """Reads and hashes it all. An error of the disk counts as wrong: bytes that cannot be read cannot be served."""
    try:
        fd = open_blob(layout, digest)
    except (OSError, HotshelfError) as error:
        _refuse_to_judge(error)
        return False
    try:
        return Digest.of_fd(fd) == digest
    except OSError as error:
        _refuse_to_judge(error)
        return False
    finally:
        os.close(fd)


def _refuse_to_judge(error: Exception) -> None:
    """Having no descriptor or memory left says nothing about a blob."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise durable.as_ours(error, "checking a blob") from error


def strangers(layout: Layout) -> Iterator[tuple[int, str, Digest | None]]:
    """Everything below blobs/sha256 as (directory, name, digest); digest None when the name is none."""
    with os.scandir(layout["blobs/sha256"]) as shards:
        names = sorted(shard.name for shard in shards)
    for shard_name in names:
        try:
            shard = layout.shard(shard_name) if len(shard_name) == 2 else None
        except OSError:
            shard = None
        if shard is None:
            yield layout["blobs/sha256"], shard_name, None
            continue
        with os.scandir(shard) as entries:
            found = sorted(entry.name for entry in entries)
        for name in found:
            try:
                digest = Digest.from_hex(name)
            except InvalidRequest:
                yield shard, name, None
                continue
            yield shard, name, digest if name.startswith(shard_name) else None
