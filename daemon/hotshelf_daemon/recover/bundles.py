"""Bundles after a crash or a lost index: signed rows and signed folders of `bundles/` made to agree.

A row wins over its folder, which is written anew. A folder without a row is adopted only when its document is signed with
this daemon's key and its snapshot is ready: the last issued of a name. What is not signed so is never believed, row or
folder; it becomes an event.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from functools import partial

from hotshelf_daemon.index import Index, bundles, journal, leases, snapshots
from hotshelf_daemon.store import Layout
from hotshelf_daemon.store import bundles as folders
from hotshelf_shared.bundle import Bundle, BundleName
from hotshelf_shared.digest import Revision


def reconcile(layout: Layout, index: Index, key: bytes) -> int:
    """Runs when snapshots have been put right. How many were adopted."""
    _drop_unsigned_rows(index, key)
    index.write_now(_drop_rows_without_snapshot, durable=True)
    leased = index.read(_leased)
    found = {(name, revision): folders.read(layout, name, revision) for name, revision in folders.names(layout)}
    signed = [bundle for bundle in found.values() if bundle is not None and bundle.is_signed_with(key)]
    for name, revision in found.keys() - {_place(bundle) for bundle in signed}:
        if revision not in leased:  # a leased path is never removed; nobody is told of it any more
            _set_aside(layout, index, name, revision)
    adopted = index.read(lambda db: _adoptable(db, signed))
    for bundle in adopted:
        index.write_now(partial(bundles.put, bundle=bundle), durable=True)
    _make_true(layout, index, leased)
    return len(adopted)


def _place(bundle: Bundle) -> tuple[BundleName, str]:
    return bundle.name, bundle.revision.hex


def _leased(db: sqlite3.Connection) -> set[str]:
    """Revisions, as folders are called."""
    return {row.revision.hex for row in leases.everything(db) if row.revision is not None}


def _adoptable(db: sqlite3.Connection, signed: Iterable[Bundle]) -> list[Bundle]:
    """Of each name that no row speaks of, the last issued whose archive is held."""
    bound = bundles.everything(db)
    last: dict[BundleName, Bundle] = {}
    for bundle in sorted(signed, key=lambda one: one.issued):
        if bundle.name not in bound and snapshots.is_ready(db, bundle.revision):
            last[bundle.name] = bundle
    return list(last.values())


def _make_true(layout: Layout, index: Index, leased: set[str]) -> None:
    """Every row has its folder, and every folder is a row's, or was, or is leased."""
    bound, replaced = index.read(bundles.everything), index.read(bundles.replaced)
    for name, bundle in bound.items():
        if folders.read(layout, name, bundle.revision.hex) != bundle:
            folders.put(layout, bundle)
    known = {_place(bundle) for bundle in bound.values()} | {(name, revision.hex) for name, revision in replaced}
    for name, revision in folders.names(layout):
        if (name, revision) not in known and revision not in leased:
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
