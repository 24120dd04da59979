"""One revision becomes a directory, a ref and a ready row: visible only when all of it is durable."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import Protocol

from hotshelf_daemon import views
from hotshelf_daemon.index import blobs, bundles, handed_in, journal, leases, pipelines, preparing, rollbacks, snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import Layout, trees
from hotshelf_daemon.store import bundles as bundle_folders
from hotshelf_daemon.store import pipelines as folders
from hotshelf_shared.built import Built
from hotshelf_shared.bundle import Bundle
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict
from hotshelf_shared.manifest import Manifest


class BlobsGone(Exception):
    """A blob of the tree was evicted or lost meanwhile: fetch it again."""

    def __init__(self, digests: set[Digest]) -> None:
        super().__init__(f"{len(digests)} blobs are not held")
        self.digests = digests


class Turned(Exception):
    """Its source was rolled back, or freed again, since this was resolved: it is not what the source stands for."""


class Binding(Protocol):
    """What a tree is to be besides a snapshot, in the same transaction."""

    def check_free(self, shelf: Shelf) -> None:
        """Raises Conflict when its key stands for another tree that stays. Asked under the shelf's hand."""

    def on_disk(self, layout: Layout) -> None:
        """Its record, durable. On a thread, before the transaction."""

    def in_index(self, db: sqlite3.Connection) -> list[str]:
        """Its rows; the wishes of refs that it dropped."""


@dataclass(frozen=True, slots=True)
class PipelineBinding:
    """A tree that is to be the pipeline of its key, in the name of `built.uid`.

    `builder` is the uid whose hand-ins become it; None when it came from the prefix `published_to`.
    """

    built: Built
    builder: int | None = None
    published_to: str | None = None

    def check_free(self, shelf: Shelf) -> None:
        """The first tree stays, unless only its builder trusts it."""
        built = self.built
        row = shelf.index.read(lambda db: pipelines.find(db, built.key))
        if row is None or not row.is_ready or row.revision == built.revision:
            return
        if any(map(shelf.trusts, row.builders)) or not shelf.trusts(built.uid):
            raise Conflict(
                f"the pipeline {built.key} is {row.revision}; {built.revision} is another tree for the same recipe",
                hint="The first tree of a recipe stays until it is evicted: lease that one.",
                key=built.key,
            )

    def on_disk(self, layout: Layout) -> None:
        folders.put(layout, self.built)

    def in_index(self, db: sqlite3.Connection) -> list[str]:
        stale = pipelines.put(db, self.built, published_to=self.published_to)
        if self.builder is not None:
            pipelines.add_builder(db, self.built.key, self.builder)
            handed_in.let_go(db, ((digest, self.builder) for digest in self.built.tree.blobs()))
        return stale


@dataclass(frozen=True, slots=True)
class BundleBinding:
    """An archive that is to be the bundle of its name. `builder` is the uid whose hand-in becomes it; ours for one that came
    from the prefix `published_to`.

    `unsound` was looked into and cannot be served: it is in nobody's way.
    """

    bundle: Bundle
    builder: int
    unsound: Bundle | None
    published_to: str | None = None

    def check_free(self, shelf: Shelf) -> None:
        row = shelf.index.read(lambda db: bundles.find(db, self.bundle.name))
        if row is None or not row.is_ready or row.bundle.digest == self.bundle.digest or row.bundle == self.unsound:
            return
        if any(map(shelf.trusts, row.builders)) or not shelf.trusts(self.builder):
            raise Conflict(
                f"bundle:{self.bundle.name} is {row.bundle.digest}; {self.bundle.digest} is another archive",
                hint="The first one stays until it is evicted: lease that one.",
                key=str(self.bundle.name),
            )

    def on_disk(self, layout: Layout) -> None:
        bundle_folders.put(layout, self.bundle)

    def in_index(self, db: sqlite3.Connection) -> list[str]:
        bundles.put(db, self.bundle, published_to=self.published_to)
        bundles.add_builder(db, self.bundle.name, self.builder)
        handed_in.let_go(db, [(self.bundle.digest, self.builder)])
        return []


async def materialize(
    shelf: Shelf,
    tree: Manifest,
    ref: RefRow,
    *,
    resolution: str = "",
    binding: Binding | None = None,
    rolled_back_at: float | None = None,
    flips: bool = True,
) -> None:
    """Lays the tree out, then in one durable transaction: ready, named, and held by whoever waits for `resolution`.

    With `binding` it becomes a pipeline or a bundle in that same transaction. Raises BlobsGone when a blob is missing, and
    Conflict when the key stands for another tree that stays; then nothing has changed. So does Turned, unless the source was
    rolled back at `rolled_back_at`, or is not when that is None. With `flips` False it is made ready, and not named.
    """
    async with shelf.hand:
        lacking = set(tree.blobs()) - shelf.index.read(lambda db: blobs.sizes(db, tree.blobs())).keys()
        if lacking:
            raise BlobsGone(lacking)
        if binding is not None:
            binding.check_free(shelf)
        if shelf.index.read(lambda db: rollbacks.moment(db, ref.source)) != rolled_back_at:
            raise Turned
        await shelf.hand.finish(_carry_out(shelf, tree, ref if flips else None, resolution, binding))


async def _carry_out(shelf: Shelf, tree: Manifest, ref: RefRow | None, resolution: str, binding: Binding | None) -> None:
    def on_disk() -> None:
        trees.lay_out(shelf.layout, tree)
        if ref is not None:
            trees.write_json(shelf.layout, "refs", ref.wish, ref.to_json())
        if binding is not None:
            binding.on_disk(shelf.layout)

    def in_index(db: sqlite3.Connection) -> list[str]:
        snapshots.add(db, tree)
        stale = [] if binding is None else binding.in_index(db)
        if ref is not None:
            before = snapshots.ref(db, ref.wish)
            if binding is None and before is not None and before.revision != ref.revision:
                journal.event(db, "flipped", ref.source, str(ref.revision))
            snapshots.flip(db, ref)
        leases.bind(db, resolution, tree.revision)
        preparing.close(db, resolution)
        return stale

    await asyncio.to_thread(on_disk)
    stale = await shelf.index.write(in_index, durable=True)
    if ref is not None:
        await views.show(shelf, [ref])
    shelf.room_bell.ring()  # what it named before may go now
    for wish in set(stale) - {ref.wish if ref is not None else ""}:
        await asyncio.to_thread(trees.drop_record, shelf.layout, "refs", f"{wish}.json")
