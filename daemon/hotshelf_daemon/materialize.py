"""One revision becomes a directory, a ref and a ready row: visible only when all of it is durable."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass

from hotshelf_daemon.index import blobs, handed_in, leases, pipelines, snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import pipelines as folders
from hotshelf_daemon.store import trees
from hotshelf_shared.built import Built
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict
from hotshelf_shared.manifest import Manifest


class BlobsGone(Exception):
    """A blob of the tree was evicted or lost meanwhile: fetch it again."""

    def __init__(self, digests: set[Digest]) -> None:
        super().__init__(f"{len(digests)} blobs are not held")
        self.digests = digests


@dataclass(frozen=True, slots=True)
class Binding:
    """A tree that is to be the pipeline of its key, in the name of `built.uid`.

    `builder` is the uid whose hand-ins become it; None when it came from the prefix `published_to`.
    """

    built: Built
    builder: int | None = None
    published_to: str | None = None


async def materialize(
    shelf: Shelf, tree: Manifest, ref: RefRow, *, resolution: str = "", binding: Binding | None = None
) -> None:
    """Lays the tree out, then in one durable transaction: ready, named, and held by whoever waits for `resolution`.

    With `binding` it becomes a pipeline in that same transaction. Raises BlobsGone when a blob is missing, and Conflict
    when the key stands for another tree that stays; then nothing has changed.
    """
    async with shelf.hand:
        lacking = set(tree.blobs()) - shelf.index.read(lambda db: blobs.sizes(db, tree.blobs())).keys()
        if lacking:
            raise BlobsGone(lacking)
        if binding is not None:
            check_free(shelf, binding.built)
        await asyncio.shield(asyncio.create_task(_carry_out(shelf, tree, ref, resolution, binding)))


async def _carry_out(shelf: Shelf, tree: Manifest, ref: RefRow, resolution: str, binding: Binding | None) -> None:
    def on_disk() -> None:
        trees.lay_out(shelf.layout, tree)
        trees.write_json(shelf.layout, "refs", ref.wish, ref.to_json())
        if binding is not None:
            folders.put(shelf.layout, binding.built)

    def in_index(db: sqlite3.Connection) -> list[str]:
        snapshots.add(db, tree)
        stale = pipelines.put(db, binding.built, published_to=binding.published_to) if binding is not None else []
        snapshots.flip(db, ref)
        leases.bind(db, resolution, tree.revision)
        snapshots.close_resolution(db, resolution)
        if binding is not None and binding.builder is not None:
            pipelines.add_builder(db, binding.built.key, binding.builder)
            handed_in.let_go(db, ((digest, binding.builder) for digest in tree.blobs()))
        return stale

    await asyncio.to_thread(on_disk)
    for wish in set(await shelf.index.write(in_index, durable=True)) - {ref.wish}:
        await asyncio.to_thread(trees.drop_record, shelf.layout, "refs", f"{wish}.json")


def check_free(shelf: Shelf, built: Built) -> None:
    """Raises Conflict when the key stands for another tree: the first one stays, unless only its builder trusts it."""
    row = shelf.index.read(lambda db: pipelines.find(db, built.key))
    if row is None or not row.is_ready or row.revision == built.revision:
        return
    if any(map(shelf.trusts, row.builders)) or not shelf.trusts(built.uid):
        raise Conflict(
            f"the pipeline {built.key} is {row.revision}; {built.revision} is another tree for the same recipe",
            hint="The first tree of a recipe stays until it is evicted: lease that one.",
            key=built.key,
        )
