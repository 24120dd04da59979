"""Files below blobs/ that the index does not know: hashed, then adopted or kept out of the way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from hotshelf_daemon.index import Index, blobs
from hotshelf_daemon.policy import reason_by_bytes
from hotshelf_daemon.store import Layout, durable
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.digest import Digest


def remove_nameless(layout: Layout) -> int:
    """What cannot be a blob by its name or place goes to quarantine; how many."""
    nameless = [(shard, name) for shard, name, digest in files.strangers(layout) if digest is None]
    for shard, name in nameless:
        layout.quarantine(shard, name)
    return len(nameless)


def unknown(layout: Layout, index: Index) -> list[Digest]:
    """What has a blob's name and no row."""
    held = index.read(blobs.everything)
    return [digest for _, _, digest in files.strangers(layout) if digest is not None and digest not in held]


def judge(layout: Layout, digests: Sequence[Digest]) -> dict[Digest, bool]:
    """Reads and hashes them all, on every core, and changes nothing: whether each is what its name says."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        return dict(zip(digests, threads.map(lambda digest: files.is_right(layout, digest), digests), strict=True))


def place(layout: Layout, index: Index, verdicts: Mapping[Digest, bool]) -> int:
    """Adopts the right ones, durably, and quarantines the others; how many were adopted."""
    adopted: dict[Digest, int] = {}
    for digest, is_right in verdicts.items():
        size = files.size_of(layout, digest) if is_right else None
        if size is not None:
            _make_safe(layout, digest)
            adopted[digest] = size
        else:
            files.quarantine(layout, digest)
    if adopted:
        unsafe = {digest: _unsafe(layout, digest) for digest in adopted}
        index.write_now(lambda db: blobs.add(db, adopted, unsafe), durable=True)
    return len(adopted)


def _unsafe(layout: Layout, digest: Digest) -> str | None:
    """The policy looks at adopted bytes as it does at fetched ones."""
    with _opened(layout, digest) as fd:
        return reason_by_bytes(fd, os.fstat(fd).st_size)


def _make_safe(layout: Layout, digest: Digest) -> None:
    """An adopted file may never have been synced: it is before a row speaks of it."""
    with _opened(layout, digest) as fd:
        os.fchmod(fd, 0o440)
        os.fsync(fd)
        os.fsync(layout.shard(digest.hex))


@contextmanager
def _opened(layout: Layout, digest: Digest) -> Iterator[int]:
    with durable.disk_errors(f"adopting the blob {digest}"):
        fd = files.open_blob(layout, digest)
        try:
            yield fd
        finally:
            os.close(fd)
