"""What may go, goes: carries out what `plan` chose, so that no lease is ever broken and no crash leaves a half.

The order: one transaction takes the rows of snapshots that nothing holds and marks their loose blobs; then names leave
the tree for trash/ and are unlinked; then the marks go. A crash between is finished by the next start.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hotshelf_daemon import plan, views
from hotshelf_daemon.index import blobs, bundles, handed_in, ingests, journal, leases, pipelines, snapshots
from hotshelf_daemon.plan import Eviction, HeldSnapshot, Holdings
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import bundles as bundle_folders
from hotshelf_daemon.store import hub, places, trees
from hotshelf_daemon.store import pipelines as folders
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InUse


async def make_room(shelf: Shelf, need: int, *, active: Iterable[str], evict: bool = True, full: bool = False) -> int:
    """Room for `need` more bytes; the bytes freed. The caller holds the shelf's hand, and reserves under it.

    `active` are ingests somebody is carrying out; `full` says that the disk has refused, whatever it claims.
    Raises TooLarge or InsufficientSpace, naming who holds what.
    """
    held = sum(shelf.held_bytes().values())
    holdings = Holdings(shelf.budget_bytes(held), held, 0 if full else shelf.layout.room().free_bytes, {}, ())
    if need <= holdings.budget - held and need <= holdings.free:
        return 0
    if evict or need > holdings.budget:
        sums, claimed = holdings, frozenset(active)
        holdings = await shelf.index.look(lambda db: take_stock(shelf, db, sums, claimed))
    chosen = plan.make_room(holdings, need, holders=shelf.index.read(leases.holders))
    await apply(shelf, chosen, "room")
    return chosen.freed


def take_stock(shelf: Shelf, db: sqlite3.Connection, sums: Holdings, active: frozenset[str]) -> Holdings:
    """Everything held, as plain values for the plan."""
    rooted: set[str] = {*shelf.held_unwritten()}
    rooted |= {revision for (revision,) in db.execute("SELECT revision FROM leases WHERE revision IS NOT NULL")}
    rooted |= {revision for (revision,) in db.execute("SELECT revision FROM v_pins WHERE revision IS NOT NULL")}
    shown = views.revisions(shelf, db)
    trees_of: dict[str, set[Digest]] = {}
    for revision, digest in db.execute("SELECT revision, digest FROM files"):
        trees_of.setdefault(revision, set()).add(Digest(digest))
    rows = db.execute("SELECT revision, last_grant FROM snapshots ORDER BY last_grant").fetchall()
    return Holdings(
        budget=sums.budget,
        held=sums.held,
        free=sums.free,
        blobs=blobs.everything(db),
        snapshots=tuple(
            HeldSnapshot(
                Revision(revision), last_grant, frozenset(trees_of.get(revision, ())), revision in rooted, revision in shown
            )
            for revision, last_grant in map(tuple, rows)
        ),
        wanted=frozenset(Digest(digest) for (digest,) in db.execute("SELECT digest FROM wanted_blobs")) | handed_in.digests(db),
        abandoned={row.id: row.size for row in ingests.everything(db) if row.id not in active},
    )


async def apply(shelf: Shelf, chosen: Eviction, reason: str) -> None:
    """Carries an eviction out. The caller holds the shelf's hand."""
    if chosen:
        await shelf.hand.finish(_carry_out(shelf, chosen, reason))


@dataclass(frozen=True, slots=True)
class _Gone:
    """The snapshots that really go, the wishes that named them, the keys of pipelines and the bundles that they were."""

    snapshots: list[Revision]
    wishes: list[str]
    keys: list[str]
    bundles: list[tuple[BundleName, Revision]]


async def _carry_out(shelf: Shelf, chosen: Eviction, reason: str) -> None:
    gone = await shelf.index.write(lambda db: _take(shelf, db, chosen, reason), durable=True)
    await asyncio.to_thread(_remove_files, shelf, gone, chosen)
    await finish_deletions(shelf)
    shelf.room_bell.ring()
    if gone.snapshots:
        shelf.metrics.evictions.labels(reason).inc(len(gone.snapshots))


def _take(shelf: Shelf, db: sqlite3.Connection, chosen: Eviction, reason: str) -> _Gone:
    """Takes the rows of what nothing holds at this moment."""
    gone = _Gone([], [], [], [])
    for revision in chosen.snapshots:
        if _is_held(shelf, db, revision):
            continue
        (size,) = db.execute("SELECT bytes FROM snapshots WHERE revision = ?", (revision,)).fetchone() or (0,)
        gone.keys.extend(keys := pipelines.of_revision(db, revision))
        gone.wishes.extend(snapshots.drop_refs_to(db, revision) + pipelines.drop(db, keys))
        gone.bundles.extend((name, revision) for name in bundles.drop_revision(db, revision))
        snapshots.remove(db, revision)
        journal.eviction(db, revision, size, reason)
        gone.snapshots.append(revision)
    blobs.mark_deleting(db, [digest for digest in chosen.blobs if not _is_claimed(db, digest)])
    ingests.close(db, chosen.ingests)
    return gone


def _is_held(shelf: Shelf, db: sqlite3.Connection, revision: Revision) -> bool:
    if revision in shelf.held_unwritten():
        return True
    query = "SELECT EXISTS (SELECT 1 FROM leases WHERE revision = ?1) OR EXISTS (SELECT 1 FROM v_pins WHERE revision = ?1)"
    return bool(db.execute(query, (revision,)).fetchone()[0])


def _is_claimed(db: sqlite3.Connection, digest: Digest) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM files WHERE digest = ?1) OR EXISTS (SELECT 1 FROM wanted_blobs WHERE digest = ?1)"
    return bool(db.execute(query, (digest,)).fetchone()[0]) or handed_in.is_held(db, digest)


def _remove_files(shelf: Shelf, gone: _Gone, chosen: Eviction) -> None:
    places.hide(shelf.layout, gone.snapshots)
    for key in gone.keys:
        folders.remove(shelf.layout, key)
    for name, revision in gone.bundles:
        bundle_folders.remove(shelf.layout, name, revision.hex)
    for revision in gone.snapshots:
        trees.forget(shelf.layout, revision)
    for wish in gone.wishes:
        trees.drop_record(shelf.layout, "refs", f"{wish}.json")
    for ingest in chosen.ingests:
        files.drop_ingest(shelf.layout, ingest)


async def finish_deletions(shelf: Shelf) -> None:
    """Unlinks what is marked, then removes the marks. The caller holds the shelf's hand."""
    marked = shelf.index.read(blobs.deleting)
    if marked:
        staying = await shelf.index.look(lambda db: views.staying(shelf, db))
        await asyncio.to_thread(hub.hide, shelf.layout, marked, staying)
        await asyncio.to_thread(files.discard, shelf.layout, marked)
        await shelf.index.write(lambda db: blobs.remove(db, marked), durable=True)


async def evict(shelf: Shelf, revision: Revision, *, reason: str) -> int:
    """Removes one snapshot and what only it holds; the bytes freed. Raises InUse naming the holders."""
    async with shelf.hand:
        holders = [holder for holder in shelf.index.read(leases.holders) if holder["revision"] == revision]
        if shelf.index.read(lambda db: _is_held(shelf, db, revision)):
            who = "; ".join(f"{h['leases']} leases of uids {h['uids']}{', pinned' if h['pinned'] else ''}" for h in holders)
            raise InUse(f"{revision} is in use: {who or 'leased or pinned'}", holders=holders)
        stock = shelf.index.read(lambda db: take_stock(shelf, db, Holdings(0, 0, 0, {}, ()), frozenset()))
        others = {blob for snapshot in stock.snapshots if snapshot.revision != revision for blob in snapshot.blobs}
        mine = {blob for snapshot in stock.snapshots if snapshot.revision == revision for blob in snapshot.blobs}
        loose = tuple(blob for blob in mine - others - stock.wanted if blob in stock.blobs)
        freed = sum(stock.blobs[blob] for blob in loose)
        await apply(shelf, Eviction(snapshots=(revision,), blobs=loose, freed=freed), reason)
        return freed


async def collect(shelf: Shelf, *, active: Callable[[], Iterable[str]], dry_run: bool) -> Eviction:
    """Removes what nobody's snapshot holds: loose blobs and interrupted downloads.

    `active` is asked under the hand: a download reserved while we waited for it is somebody's.
    """
    async with shelf.hand:
        sums = Holdings(1 << 62, 1, 1 << 62, {}, ())
        stock = shelf.index.read(lambda db: take_stock(shelf, db, sums, frozenset(active())))
        claimed = {blob for snapshot in stock.snapshots for blob in snapshot.blobs} | stock.wanted
        loose = tuple(blob for blob in stock.blobs if blob not in claimed)
        freed = sum(stock.blobs[blob] for blob in loose) + sum(stock.abandoned.values())
        chosen = Eviction(tuple(stock.abandoned), (), loose, freed)
        if not dry_run:
            await apply(shelf, chosen, "collect")
        return chosen
