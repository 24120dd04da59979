"""One revision becomes a directory, a ref and a ready row: visible only when all of it is durable."""

from __future__ import annotations

import asyncio
import sqlite3

from hotshelf_daemon.index import blobs, leases, snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import trees
from hotshelf_shared.digest import Digest
from hotshelf_shared.manifest import Manifest


class BlobsGone(Exception):
    """A blob of the tree was evicted or lost meanwhile: fetch it again."""

    def __init__(self, digests: set[Digest]) -> None:
        super().__init__(f"{len(digests)} blobs are not held")
        self.digests = digests


async def materialize(shelf: Shelf, tree: Manifest, ref: RefRow, *, resolution: str) -> None:
    """Lays the tree out, then in one durable transaction: ready, named, and held by whoever waits for `resolution`.

    Raises BlobsGone when a blob is missing; then nothing has changed.
    """
    async with shelf.hand:
        lacking = set(tree.blobs()) - shelf.index.read(lambda db: blobs.sizes(db, tree.blobs())).keys()
        if lacking:
            raise BlobsGone(lacking)
        await asyncio.shield(asyncio.create_task(_carry_out(shelf, tree, ref, resolution)))


async def _carry_out(shelf: Shelf, tree: Manifest, ref: RefRow, resolution: str) -> None:
    def on_disk() -> None:
        trees.lay_out(shelf.layout, tree)
        trees.write_json(shelf.layout, "refs", ref.wish, ref.to_json())

    def in_index(db: sqlite3.Connection) -> None:
        snapshots.add(db, tree)
        snapshots.flip(db, ref)
        leases.bind(db, resolution, tree.revision)
        snapshots.close_resolution(db, resolution)

    await asyncio.to_thread(on_disk)
    await shelf.index.write(in_index, durable=True)
