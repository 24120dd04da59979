"""Bundles after a crash or a lost index: signed rows and signed folders of `bundles/` made to agree.

A row wins over its folder, which is written anew. A folder without a row is adopted only when its document is signed with
this daemon's key and its snapshot is ready: the last issued of a name. What is not signed so is never believed, row or
folder; it becomes an event.
"""

from __future__ import annotations

import sqlite3

from hotshelf_daemon.index import Index, bundles, journal, snapshots
from hotshelf_daemon.store import Layout
from hotshelf_daemon.store import bundles as folders
from hotshelf_shared.bundle import Bundle, BundleName
from hotshelf_shared.digest import Revision


def reconcile(layout: Layout, index: Index, key: bytes) -> int:
    """Runs when snapshots have been put right. How many were adopted."""
    _drop_unsigned_rows(index, key)
    index.write_now(_drop_rows_without_snapshot, durable=True)
    bound, replaced = index.read(bundles.everything), index.read(bundles.replaced)
    adoptable: dict[BundleName, Bundle] = {}
    for name, revision in folders.names(layout):
        found = folders.read(layout, name, revision)
        if found is None or not found.is_signed_with(key):
            _set_aside(layout, index, name, revision)
        elif (name, found.revision) in replaced or _is_row(bound.get(name), found):
            continue  # still leased perhaps, or what it should be
        elif name in bound or not index.read(lambda db: snapshots.is_ready(db, found.revision)):  # noqa: B023 - run at once
            folders.remove(layout, name, revision)  # bound or evicted half-way, or its archive is lost
        elif name not in adoptable or adoptable[name].issued < found.issued:
            adoptable[name] = found
    for bundle in adoptable.values():
        index.write_now(lambda db: bundles.put(db, bundle), durable=True)  # noqa: B023 - run at once
    _make_true(layout, index)
    return len(adoptable)


def _is_row(row: Bundle | None, found: Bundle) -> bool:
    """The folder of what is bound; its document may be an earlier one, which is then written anew."""
    return row is not None and row.revision == found.revision


def _make_true(layout: Layout, index: Index) -> None:
    """Every row has its folder, and every folder is somebody's."""
    bound, replaced = index.read(bundles.everything), index.read(bundles.replaced)
    for name, bundle in bound.items():
        if folders.read(layout, name, bundle.revision.hex) != bundle:
            folders.put(layout, bundle)
    known = {(name, bundle.revision.hex) for name, bundle in bound.items()} | {(name, r.hex) for name, r in replaced}
    for name, revision in folders.names(layout):
        if (name, revision) not in known:
            folders.remove(layout, name, revision)


def _drop_unsigned_rows(index: Index, key: bytes) -> None:
    """Another key was put in its place, or somebody wrote into the index."""
    unsigned = [bundle for bundle in index.read(bundles.everything).values() if not bundle.is_signed_with(key)]

    def drop(db: sqlite3.Connection) -> None:
        for bundle in unsigned:
            bundles.drop(db, bundle.name)
            journal.event(db, "bundle_refused", f"bundle:{bundle.name}", "its row is not signed with this daemon's key")

    if unsigned:
        index.write_now(drop, durable=True)


def _drop_rows_without_snapshot(db: sqlite3.Connection) -> None:
    for name, bundle in bundles.everything(db).items():
        if not _has_snapshot(db, bundle.revision):
            bundles.drop(db, name)
    db.execute("DELETE FROM replaced_bundles WHERE revision NOT IN (SELECT revision FROM snapshots)")


def _has_snapshot(db: sqlite3.Connection, revision: Revision) -> bool:
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM snapshots WHERE revision = ?)", (revision,)).fetchone()[0])


def _set_aside(layout: Layout, index: Index, name: BundleName, revision: str) -> None:
    kept = folders.quarantine(layout, name, revision)
    why = f"its document is not signed with this daemon's key; kept as quarantine/{kept}"
    index.write_now(lambda db: journal.event(db, "bundle_refused", f"bundle:{name}", why))
